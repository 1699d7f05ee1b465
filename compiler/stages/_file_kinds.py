"""What kind of file a checkpoint is, by its content: suffixes say little, and any of these is called `model.pt`."""

from __future__ import annotations

import zipfile
from pathlib import Path

SAFETENSORS, TORCH, SCRIPT, PROGRAM, OTHER = "safetensors", "torch", "torchscript", "exported program", "other"

SIGNS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer: the weights themselves were not fetched",
    b"<!doctype": "an HTML page: the download did not give the weights",
    b"<html": "an HTML page: the download did not give the weights",
    b"\x1f\x8b": "a gzip archive",
    b"{": "JSON text",
}


def kind_of(path: Path) -> tuple[str, str]:
    """One of the kinds above, and for OTHER what the file is in words.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if not head:
        return OTHER, "an empty file"
    if 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        return SAFETENSORS, ""
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head.startswith(b"\x80"):
        return TORCH, ""  # the format before PyTorch 1.6
    words = (text for sign, text in SIGNS.items() if head.lower().startswith(sign.lower()))
    return OTHER, next(words, "")


def _kind_of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return OTHER, "a damaged archive"
    if any(name.endswith(("/constants.pkl", "serialized_exported_program.json", "/archive_format")) for name in names):
        exported = any(name.endswith(("serialized_exported_program.json", "/archive_format")) for name in names)
        return (PROGRAM if exported else SCRIPT), ""
    if any(name.startswith("models/") or "/models/" in name for name in names):
        return PROGRAM, ""
    if any(name.endswith("data.pkl") for name in names):
        return TORCH, ""
    if names and all(name.endswith(".npy") for name in names):
        return OTHER, "an archive of NumPy arrays"
    return OTHER, "a ZIP archive"
