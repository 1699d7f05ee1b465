"""Files that anybody may have written or replaced: regular ones only, within a limit, without waiting."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_limited(file: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    A FIFO, a socket or a device is not waited for, and a link is followed only to a regular file.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it is not a regular file, or larger.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return data
