"""Files that anybody may have written or replaced: regular ones only, within a limit, without waiting."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO

PIECE = 1 << 20


def open_regular(file: Path) -> BufferedReader:
    """A regular file, opened for reading.

    A FIFO, a socket or a device is not waited for, and a link is followed only to a regular file.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it is not a regular file.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is not a regular file")
    return os.fdopen(handle, "rb")


def read_limited(file: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; see `open_regular`.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it is not a regular file, or larger.
    """
    with open_regular(file) as stream:
        if os.fstat(stream.fileno()).st_size <= limit:
            data = bytearray()  # one read of `limit` bytes would take that much memory for any file
            while len(data) <= limit and (piece := stream.read(min(PIECE, limit + 1 - len(data)))):
                data += piece
            if len(data) <= limit:
                return bytes(data)
    raise ValueError(f"it is larger than {limit} bytes")


def open_lock_file(file: Path) -> IO[str]:
    """Open a regular file to take locks on, for reading and appending; create it if it is missing.

    Raises:
        OSError: it cannot be made or opened, or what is there is not a regular file.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EEXIST, "it is not a regular file", str(file))
    return os.fdopen(handle, "a+")
