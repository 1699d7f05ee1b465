"""Signing in to a registry when it asks for it: HTTP Basic, or a token from where the registry says.

Credentials go to the origin that they are kept for and to no other. A registry whose tokens come from another host
(Docker Hub's do) gets them only where the user keeps credentials for that host.
"""

from __future__ import annotations

import base64
import re
import threading
from urllib.parse import urlencode

from compiler.errors import ConfigError, StepError
from compiler.registries import credentials
from compiler.registries.credentials import Credentials
from compiler.registries.http import Answer, Http, Origin, origin_of

PARAMETER = re.compile(r'([a-zA-Z]+)="((?:[^"\\]|\\.)*)"')
MAX_CHALLENGE = 8192


class SignIn:
    """What to show to one registry's origin."""

    def __init__(self, http: Http, home: Origin, scope: str) -> None:
        self._http, self._home, self._scope = http, home, scope
        self._shown = ""
        self._lock = threading.Lock()

    def header(self, origin: Origin) -> dict[str, str]:
        """For a request to `origin`: empty for any other than the registry's own."""
        return {"Authorization": self._shown} if self._shown and origin == self._home else {}

    def answer(self, refused: Answer, shown: dict[str, str]) -> bool:
        """After a 401 to a request that showed `shown`: whether there is something else to show now.

        Raises:
            ConfigError: there are no credentials, or they are not accepted where tokens come from.
        """
        challenge = (refused.headers.get("WWW-Authenticate") or "")[:MAX_CHALLENGE]
        with self._lock:
            if shown.get("Authorization", "") != self._shown:  # another thread has signed in meanwhile
                return True
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "basic":
                found = credentials.find(self._home.netloc, named=True)
                if self._shown or found is None:
                    return False
                self._shown = _basic(found)
                return True
            if scheme.lower() == "bearer":
                token = self._token({key.lower(): value for key, value in PARAMETER.findall(rest)})
                if not token or self._shown == f"Bearer {token}":
                    return False
                self._shown = f"Bearer {token}"
                return True
        return False

    def _token(self, told: dict[str, str]) -> str:
        origin, path = origin_of(told.get("realm", ""))
        found = credentials.find(origin.netloc, named=origin == self._home)
        asked = {"service": told.get("service", ""), "scope": self._scope}
        headers: dict[str, str] = {}
        body = None
        if found is not None and found.identity_token:
            asked |= {
                "grant_type": "refresh_token",
                "client_id": "target-model-compiler",
                "refresh_token": found.identity_token,
            }
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(asked).encode()
        else:
            path += ("&" if "?" in path else "?") + urlencode({key: value for key, value in asked.items() if value})
            if found is not None:
                headers["Authorization"] = _basic(found)
        with self._http.ask("POST" if body else "GET", origin, path, headers, body) as answer:
            record = answer.record()
            if answer.status in (401, 403):
                raise ConfigError(
                    f"{origin.netloc}, where {self._home.netloc} has its tokens from, "
                    + ("does not accept the credentials that are kept for it" if found else "asks for credentials"),
                    fix=_how(origin.netloc),
                )
            token = record.get("token") or record.get("access_token") if isinstance(record, dict) else None
            if answer.status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise StepError(f"{origin.netloc} gives no token (HTTP {answer.status})", fix="try again later")
            return token


def refused(home: Origin, status: int, signed_in: bool) -> ConfigError:
    """The error for a request that the registry does not let this user make."""
    if signed_in:
        what = f"{home.netloc} does not let you do this with the credentials that are kept for it (HTTP {status})"
    else:
        what = f"{home.netloc} asks to sign in, and there are no credentials for it (HTTP {status})"
    return ConfigError(what, fix=_how(home.netloc))


def _how(host: str) -> str:
    return (
        f"docker login {host} (or podman, skopeo), or set {credentials.USERNAME} and {credentials.PASSWORD} "
        "for the registry that the reference names"
    )


def _basic(found: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{found.username}:{found.password}".encode()).decode()
