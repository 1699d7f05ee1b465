"""Reads arrays of numbers that anybody may have written, within limits, and never as anything else.

What a file declares is compared with what it holds before memory is taken for it: a header can claim any shape, and a
megabyte of an archive unpacks to a gigabyte of zeros.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from compiler.foreign_files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST_ARRAYS = 1 << 30
MOST_ARRAYS = 20_000
KINDS = "biuf"
"""Numbers alone: no objects (which are pickles), no texts, no records."""
UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, SyntaxError, KeyError, IndexError, RecursionError, MemoryError,
    OverflowError, NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What `zipfile` and numpy raise on files that are none of theirs."""


def load_array(file: Path, limit: int | None = None) -> NDArray[Any]:
    """The array of numbers in a `.npy` file.

    Raises:
        ValueError: it is none, its header does not fit its size, or it is larger than `limit` bytes.
    """
    import numpy as np

    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_header(stream, size, limit)
            stream.seek(0)
            found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return found
    except UNREADABLE as error:
        raise ValueError(_words(error)) from None


def load_arrays(file: Path, limit: int = LARGEST_ARRAYS) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in an `.npz` file, of at most `limit` bytes together.

    Raises:
        ValueError: it is none, a header does not fit its member's size, or they are larger than that.
    """
    import numpy as np

    found = {}
    try:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            for info in _checked(archive, limit):
                with archive.open(info) as stream:
                    found[info.filename.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(_words(error)) from None
    return found


def describe_arrays(file: Path, limit: int = LARGEST_ARRAYS) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array in an `.npz` file, read from the headers alone.

    Raises:
        ValueError: as `load_arrays`.
    """
    found = {}
    try:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            for info in _checked(archive, limit):
                with archive.open(info) as stream:
                    shape, dtype = _check_header(stream, info.file_size, limit)
                    found[info.filename.removesuffix(".npy")] = (shape, str(dtype))
    except UNREADABLE as error:
        raise ValueError(_words(error)) from None
    return found


def _checked(archive: zipfile.ZipFile, limit: int) -> list[zipfile.ZipInfo]:
    """The members, after what they declare was compared with the limit and with their headers."""
    members = archive.infolist()
    if len(members) > MOST_ARRAYS:
        raise ValueError(f"it holds {len(members)} arrays")
    if sum(info.file_size for info in members) > limit:
        raise ValueError(f"its arrays are larger than {limit} bytes")
    if len({info.filename for info in members}) != len(members):
        raise ValueError("it holds an array twice")
    for info in members:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename!r} is packed in a way that arrays are not")
        if not info.filename.endswith(".npy"):
            raise ValueError(f"{info.filename!r} is no array")
        with archive.open(info) as stream:
            _check_header(stream, info.file_size, limit)
    return members


def _check_header(stream: IO[bytes], size: int, limit: int | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype in the header of an array of `size` bytes in all, which it must fill."""
    import numpy as np

    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError("it is no array of numbers")
    shape, _, dtype = readers[version](stream)
    if dtype.kind not in KINDS or dtype.subdtype is not None:
        raise ValueError(f"it holds {dtype}, not numbers")
    needed = math.prod(shape) * dtype.itemsize
    if limit is not None and needed > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    if any(n < 0 for n in shape) or needed != size - stream.tell():
        raise ValueError(f"its header says {shape} of {dtype}, which is not what it holds")
    return shape, dtype


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0][:200] or type(error).__name__
