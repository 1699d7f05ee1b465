"""Where finished artifacts go and come from: an OCI image-layout folder, or any OCI registry.

A registry is four calls (`Registry`); whatever it answers is data, and `transfer` verifies it. Another kind of
registry is a module here with a class of these four, and a line in `connect`. What waits for long in one of them asks
`workers.current()` whether the transfer has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from compiler.registries.oci import Descriptor
from compiler.registries.reference import Reference

Tell = Callable[[int], None]
"""Is told how many more bytes have gone through."""
Unless = Callable[[str, bytes], bool]
"""Is asked, with a tag and the manifest that it leads to now, whether the tag is to stay where it is."""
GO_ON = "free some space or choose another place; the next call goes on where this one was"
"""What to do about a full disk: the hint for `compiler.disk.explained`."""


class Registry(Protocol):
    """One repository of a registry."""

    def manifest(self, name: str) -> bytes | None:
        """The manifest under a tag or a digest (`sha256:...`), as it is; None where there is none."""

    def read(self, blob: Descriptor, start: int) -> Iterator[bytes]:
        """A blob's bytes from `start` on, in pieces, unverified.

        Raises:
            Broken: the connection broke; asking again from where it broke may do.
        """

    def write(
        self, blob: Descriptor, source: Path | bytes, tags: Sequence[str], tell: Tell, unless: Unless | None = None
    ) -> bool:
        """Stores a blob, or a manifest under `tags`; False where it was there and nothing was sent.

        Readers see it whole or not at all. A manifest's blobs are written before it. `unless` is asked about each tag
        that leads somewhere, directly before that tag is moved: in a layout nobody can move it in between.
        """

    def tags(self) -> list[str]:
        """Every tag, sorted."""


class Broken(Exception):
    """A transfer ended before its time: the connection was lost, or the server is not there for the moment.

    `retry_after_s`: how long the server asks to be left alone, in seconds, where it does (RFC 9110, section 10.2.3).
    """

    def __init__(self, what: str, retry_after_s: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


def connect(reference: Reference, writing: bool = False) -> Registry:
    """The registry that holds a reference's repository; nothing is asked of it yet."""
    if reference.kind == "file":
        from compiler.registries.layout import Layout

        return Layout(Path(reference.place))
    from compiler.registries.remote import Remote

    return Remote(reference.place, reference.repository, writing)
