"""Credentials for a registry, from where Docker and Podman keep them, or from the environment."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError
from compiler.foreign_files import read_limited

USERNAME, PASSWORD = "MODEL_COMPILER_REGISTRY_USERNAME", "MODEL_COMPILER_REGISTRY_PASSWORD"
DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "auth.docker.io")
HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HELPER_LIMIT_S = 30
LARGEST_FILE = 4 << 20
logger = logging.getLogger(__name__)
TOKEN_USER = "<token>"  # noqa: S105 - what helpers say in place of a user's name for an identity token


@dataclass(frozen=True)
class Credentials:
    """What is shown to one origin, and to no other. Its text form holds no secret."""

    username: str
    password: str = field(repr=False, default="")
    identity_token: str = field(repr=False, default="")


def find(host: str, named: bool, repository: str = "") -> Credentials | None:
    """The credentials kept for `host` (with its port, if that is not TLS's own), or None.

    `named`: the user named this host, so that the environment's credentials are meant for it. Where a file keeps some
    for namespaces of the host (`quay.io/team`), those of the longest one that `repository` lies in are meant.

    Raises:
        ConfigError: a file of credentials holds none, or its helper cannot be run. One that may not be read is passed.
    """
    if named and os.environ.get(USERNAME):
        return Credentials(os.environ[USERNAME], os.environ.get(PASSWORD, ""))
    for file in _files():
        record = _read(file)
        found = _from_helper(record, host) or _from_file(record, host, repository, file)
        if found is not None:
            return found
    return None


def _files() -> list[Path]:
    places = [os.environ.get("REGISTRY_AUTH_FILE")]
    docker, runtime = os.environ.get("DOCKER_CONFIG"), os.environ.get("XDG_RUNTIME_DIR")
    try:
        home: Path | None = Path("~").expanduser()
    except RuntimeError:  # a user without a home
        home = None
    if docker:
        places.append(f"{docker}/config.json")
    elif home:
        places.append(str(home / ".docker/config.json"))
    if runtime:
        places.append(f"{runtime}/containers/auth.json")
    if home:
        places.append(str(home / ".config/containers/auth.json"))
    return [Path(place) for place in places if place]


def _read(file: Path) -> dict[str, Any]:
    """What a file keeps: nothing where there is none."""
    fix = "sign in again"
    try:
        record = json.loads(read_limited(file, LARGEST_FILE)) if file.is_file() else {}
    except PermissionError:
        logger.warning("%s may not be read; what it keeps is not used", file)
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the credentials in {file}: {type(error).__name__}", fix=fix) from None
    if not isinstance(record, dict):
        raise ConfigError(f"{file} holds no credentials", fix=fix)
    return record


def _from_file(record: dict[str, Any], host: str, repository: str, file: Path) -> Credentials | None:
    entries = record.get("auths")
    fitting = {
        str(key): entry
        for key, entry in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(entry, dict) and _covers(str(key), host, repository)
    }
    for _, entry in sorted(fitting.items(), key=lambda item: len(_split(item[0])[1]), reverse=True):
        token = str(entry.get("identitytoken") or "")
        if token:
            return Credentials("", identity_token=token)
        if entry.get("username"):
            return Credentials(str(entry["username"]), str(entry.get("password") or ""))
        if entry.get("auth"):
            try:
                name, colon, secret = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
            except ValueError:
                colon = ""
            if not colon:
                raise ConfigError(f"the credentials for {host} in {file} are none", fix="sign in again")
            return Credentials(name, secret)
    return None


def _split(key: str) -> tuple[str, list[str]]:
    """A key's host, and the parts of its namespace. An address, as older Dockers wrote them, has no namespace."""
    kept = re.sub(r"^https?://", "", key)
    host, *parts = kept.strip("/").split("/")
    return host.lower(), [] if kept != key or parts in (["v1"], ["v2"]) else parts


def _covers(key: str, host: str, repository: str = "") -> bool:
    """Whether what is kept under a key is meant for a repository."""
    kept, parts = _split(key)
    same = kept == host or (kept in DOCKER_HUB and host in DOCKER_HUB)
    return same and parts == repository.split("/")[: len(parts)]


def _from_helper(record: dict[str, Any], host: str) -> Credentials | None:
    """Asks the helper program that the user's own file names for this host, or for all."""
    helpers = record.get("credHelpers")
    own = (
        next((name for key, name in helpers.items() if _covers(str(key), host)), None)
        if isinstance(helpers, dict)
        else None
    )
    name = own or record.get("credsStore")
    if not name:
        return None
    if not isinstance(name, str) or not HELPER.fullmatch(name):
        raise ConfigError(f"{str(name)[:100]!r} is no credential helper", fix="mend the credentials file")
    asked = "https://index.docker.io/v1/" if host in DOCKER_HUB else host
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"], input=asked, capture_output=True, text=True, check=False,
            timeout=HELPER_LIMIT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"the credential helper docker-credential-{name} cannot be run: {type(error).__name__}",
            fix="install it, or sign in again without it",
        ) from None
    if done.returncode != 0:  # it has none for this host
        return None
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"docker-credential-{name} answered what is none", fix="sign in again") from None
    return Credentials("", identity_token=secret) if user == TOKEN_USER else Credentials(user, secret)
