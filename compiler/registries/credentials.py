"""Credentials for a registry, from where Docker and Podman keep them, or from the environment."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError

USERNAME, PASSWORD = "MODEL_COMPILER_REGISTRY_USERNAME", "MODEL_COMPILER_REGISTRY_PASSWORD"
DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "auth.docker.io")
HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HELPER_LIMIT_S = 30
TOKEN_USER = "<token>"  # noqa: S105 - what helpers say in place of a user's name for an identity token


@dataclass(frozen=True)
class Credentials:
    """What is shown to one origin, and to no other. Its text form holds no secret."""

    username: str
    password: str = field(repr=False, default="")
    identity_token: str = field(repr=False, default="")


def find(host: str, named: bool) -> Credentials | None:
    """The credentials kept for `host` (with its port, if that is not TLS's own), or None.

    `named`: the user named this host, so that the environment's credentials are meant for it.

    Raises:
        ConfigError: a file of credentials, or its helper, cannot be read.
    """
    if named and os.environ.get(USERNAME):
        return Credentials(os.environ[USERNAME], os.environ.get(PASSWORD, ""))
    for file in _files():
        record = _read(file)
        found = _from_helper(record, host) or _from_file(record, host, file)
        if found is not None:
            return found
    return None


def _files() -> list[Path]:
    home = Path("~").expanduser()
    places = [os.environ.get("REGISTRY_AUTH_FILE")]
    docker = os.environ.get("DOCKER_CONFIG")
    places.append(str((Path(docker) if docker else home / ".docker") / "config.json"))
    if os.environ.get("XDG_RUNTIME_DIR"):
        places.append(f"{os.environ['XDG_RUNTIME_DIR']}/containers/auth.json")
    places.append(str(home / ".config/containers/auth.json"))
    return [Path(place) for place in places if place and Path(place).is_file()]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read the credentials in {file}: {type(error).__name__}", fix="sign in again"
        ) from None
    if not isinstance(record, dict):
        raise ConfigError(f"{file} holds no credentials", fix="sign in again")
    return record


def _from_file(record: dict[str, Any], host: str, file: Path) -> Credentials | None:
    entries = record.get("auths")
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(entry, dict) or not _same(str(key), host):
            continue
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


def _same(key: str, host: str) -> bool:
    """Keys are hosts, or addresses that older Dockers wrote."""
    kept = re.sub(r"^https?://", "", key).split("/")[0].lower()
    return kept == host or (kept in DOCKER_HUB and host in DOCKER_HUB)


def _from_helper(record: dict[str, Any], host: str) -> Credentials | None:
    """Asks the helper program that the user's own file names for this host, or for all."""
    helpers = record.get("credHelpers")
    own = (
        next((name for key, name in helpers.items() if _same(str(key), host)), None)
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
