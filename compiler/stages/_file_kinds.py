"""What kind of file a checkpoint is, by its content: suffixes say little, and any of these is called `model.pt`."""

from __future__ import annotations

import codecs
import zipfile
from pathlib import Path

SAFETENSORS, TORCH, SCRIPT, PROGRAM, OTHER = "safetensors", "torch", "torchscript", "exported program", "other"

HTML = "an HTML page: the download did not give the weights"
POINTER = "a Git LFS pointer: the weights themselves were not fetched"
NUMPY_ARCHIVE = "an archive of NumPy arrays"
TAR = "a tar archive, or a file of PyTorch before 0.1.10"
ZIP = "a ZIP archive that PyTorch did not write"
COMPRESSED = "a compressed file"
ONNX = "an ONNX model"
DAMAGED = "corrupt: a damaged archive"
EMPTY = "corrupt: an empty file"

SIGNS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": POINTER,
    b"<!doctype": HTML,
    b"<html": HTML,
    b"<?xml": "an XML file",
    b"\x1f\x8b": COMPRESSED,
    b"BZh": COMPRESSED,
    b"\xfd7zXZ": COMPRESSED,
    b"\x28\xb5\x2f\xfd": COMPRESSED,
    b"{": "JSON text",
}
REMEDIES = {
    HTML: "fetch it again, by the address of the file and not of the page that shows it",
    POINTER: "fetch the weights: git lfs pull",
    NUMPY_ARCHIVE: "make a state dict of it by the lines above",
    TAR: "give a file in it, or torch.save(model.state_dict(), FILE) of what today's PyTorch read from it",
    ZIP: "unpack it, and give the file in it that holds the weights",
    COMPRESSED: "unpack it, and give the file in it",
    ONNX: "give the state dict of the network that it was exported from",
    DAMAGED: "save or fetch it again",
    EMPTY: "save or fetch it again",
}
"""What to do about a file that is no checkpoint; the rest is told what a checkpoint is."""
HEAD = 512


def kind_of(path: Path) -> tuple[str, str]:
    """One of the kinds above, and for OTHER what the file is in words.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    size = path.stat().st_size
    if not head:
        return OTHER, EMPTY
    if 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        return SAFETENSORS, ""
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head.startswith(b"\x80"):
        return TORCH, ""  # the format before PyTorch 1.6
    return OTHER, _words_of(head)


def _words_of(head: bytes) -> str:
    """What a file is that begins with `head`, in words; empty where that is not known."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # pages may begin with a mark, and with blank lines
    for sign, words in SIGNS.items():
        if head.startswith(sign) or start.startswith(sign.lower()):
            return words
    if head[257:262] == b"ustar":
        return TAR
    if head[4:8] == b"TFL3":
        return "a TFLite model"
    if head[:1] == b"\x08" and 0 < head[1] < 32 and head[2:3] in (b"\x12", b"\x3a"):  # ir_version, producer or graph
        return ONNX
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return ""
    return "plain text" if all(c.isprintable() or c in "\r\n\t" for c in text) else ""


def _kind_of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return OTHER, DAMAGED
    if any(name.endswith(("/constants.pkl", "serialized_exported_program.json", "/archive_format")) for name in names):
        exported = any(name.endswith(("serialized_exported_program.json", "/archive_format")) for name in names)
        return (PROGRAM if exported else SCRIPT), ""
    if any(name.startswith("models/") or "/models/" in name for name in names):
        return PROGRAM, ""
    if any(name.endswith("data.pkl") for name in names):
        return TORCH, ""
    if names and all(name.endswith(".npy") for name in names):
        return OTHER, NUMPY_ARCHIVE
    return OTHER, ZIP
