"""References: `file:PATH[:TAG][@DIGEST]` and `oci://HOST/REPOSITORY[:TAG][@DIGEST]`."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass

from compiler.errors import ConfigError

LATEST = "latest"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?:{LABEL}(?:\.{LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
MAX_HOST = 253
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{PART}(?:/{PART})*")
"""As the OCI distribution specification 1.1 has them."""

FORMS = "a reference is file:PATH or oci://HOST/REPOSITORY, with :TAG or @sha256:DIGEST behind it"


@dataclass(frozen=True)
class Reference:
    """A place of artifacts, and which of them is meant: by `digest`, else by `tag`, else none in particular."""

    kind: str
    place: str
    """The layout's folder, or the registry's host with its port."""
    repository: str = ""
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        home = f"file:{self.place}" if self.kind == "file" else f"oci://{self.place}/{self.repository}"
        return home + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def home(self) -> Reference:
        """The repository itself."""
        return dataclasses.replace(self, tag=None, digest=None)

    @property
    def name(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag, else `latest`."""
        return self.digest or self.tag or LATEST

    def pinned(self, digest: str) -> Reference:
        """This repository's artifact of a digest."""
        return dataclasses.replace(self, tag=None, digest=digest)


def is_reference(text: str) -> bool:
    """Whether a word of the command line is meant as a reference and not as a path."""
    return text.startswith(("file:", "oci:"))


def parse(text: str) -> Reference:
    """The reference that `text` spells.

    A layout's path whose last part has a colon is read as a path and a tag.

    Raises:
        ConfigError: it is none. User names and passwords have no place in one, and are not repeated.
    """
    if text.startswith("file:"):
        return _file(text.removeprefix("file:"))
    if not text.startswith("oci://"):
        shown = text.rpartition("@")[2]  # what stands before may be a password
        raise ConfigError(f"{shown[:200]!r} is no reference", fix=FORMS)
    rest, digest = _digest(text.removeprefix("oci://"))
    host, _, path = rest.partition("/")
    if "@" in host:
        raise ConfigError(
            "the reference holds a user name or password",
            fix="leave it out, and sign in as for Docker: the standard credentials are read",
        )
    repository, colon, tag = path.partition(":")
    if not HOST.fullmatch(host) or not REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise ConfigError(f"{text[:200]!r} is no reference", fix=f"{FORMS}; repositories are in lower case")
    if len(host) > MAX_HOST or not _is_address(host):
        raise ConfigError(f"{host[:100]!r} is no host", fix=FORMS)
    port = host.rpartition(":")[2] if re.search(r":[0-9]+$", host) else ""
    if port and not 0 < int(port) < 65536:
        raise ConfigError(f"{text[:200]!r} has no port that there is", fix=FORMS)
    return Reference("oci", host.lower(), repository, _tag(text, tag) if colon else None, digest)


def _is_address(host: str) -> bool:
    """Whether what stands in brackets, if anything does, is an address."""
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:].partition("]")[0])
    except ValueError:
        return False
    return True


def _file(text: str) -> Reference:
    rest, digest = _digest(text)
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.rpartition(":")
    if not colon:
        name, tag = last, ""
    place = head + slash + name
    if not place or "\0" in place:
        raise ConfigError(f"{'file:' + text!r} names no folder", fix=FORMS)
    return Reference("file", place, tag=_tag(text, tag) if colon else None, digest=digest)


def _digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.rpartition("@")
    if not at or not digest.startswith("sha"):
        return text, None
    if not DIGEST.fullmatch(digest):
        raise ConfigError(f"{digest[:100]!r} is no digest", fix="a digest is sha256: and 64 digits of lower-case hex")
    return rest, digest


def _tag(text: str, tag: str) -> str:
    if not TAG.fullmatch(tag):
        raise ConfigError(
            f"{tag[:100]!r} in {text[:200]!r} is no tag",
            fix="a tag is letters, digits, '_', '.' and '-', 128 at most, and begins with no '.' or '-'",
        )
    return tag
