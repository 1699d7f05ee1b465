"""Signing in to a registry when it asks for it: HTTP Basic, or a token from where the registry says.

Credentials go to the origin that they are kept for and to no other. A registry whose tokens come from another host
(Docker Hub's do) gets them only where the user keeps credentials for that host.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Sequence
from urllib.parse import urlencode

from compiler.errors import ConfigError, StepError
from compiler.registries import credentials
from compiler.registries.credentials import Credentials
from compiler.registries.http import PASSING, Answer, Http, Origin, origin_of

PARAMETER = re.compile(r'[\s,]*([!#$%&\'*+.^_`|~\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
SCHEME = re.compile(r"[\s,]*([^\s,]+)")
MAX_CHALLENGE = 8192


class SignIn:
    """What to show to one registry's origin."""

    def __init__(self, http: Http, home: Origin, repository: str, actions: str) -> None:
        """`actions`: what is to be done with the repository, `pull` or `pull,push`."""
        self._http, self._home, self._repository = http, home, repository
        self._scope = f"repository:{repository}:{actions}"
        self._shown = ""
        self._anonymous: Origin | None = None
        """Where a token was given without credentials."""
        self._lock = threading.Lock()

    def header(self, origin: Origin) -> dict[str, str]:
        """For a request to `origin`: empty for any other than the registry's own."""
        return {"Authorization": self._shown} if self._shown and origin == self._home else {}

    def answer(self, refused: Answer, shown: dict[str, str]) -> bool:
        """After a 401 to a request that showed `shown`: whether there is something else to show now.

        Raises:
            ConfigError: there are no credentials, or they are not accepted where tokens come from; or the registry
                asks in ways that are not spoken here.
            Broken: where tokens come from does not answer for the moment.
        """
        asked = challenges(refused.headers.get_all("WWW-Authenticate") or [])
        with self._lock:
            if shown.get("Authorization", "") != self._shown:  # another thread has signed in meanwhile
                return True
            if "bearer" in asked:
                token = self._token(asked["bearer"])
                if not token or self._shown == f"Bearer {token}":
                    return False
                self._shown = f"Bearer {token}"
                return True
            if "basic" in asked:
                found = self._find(self._home)
                if self._shown or found is None:
                    return False
                self._shown = _basic(found)
                return True
        if asked:
            raise ConfigError(
                f"{self._home.netloc} asks to sign in by {', '.join(asked)[:100]}, which is not spoken here",
                fix="let it offer Basic or Bearer",
            )
        return False

    def _find(self, origin: Origin) -> Credentials | None:
        named = origin == self._home
        return credentials.find(origin.netloc, named, self._repository if named else "")

    def _token(self, told: dict[str, str]) -> str:
        origin, path = origin_of(told.get("realm", ""))
        found = self._find(origin)
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
            if answer.status in PASSING:
                raise answer.busy(f"{origin.netloc}, where its tokens come from, answers ")
            record = answer.record()
            if answer.status in (401, 403):
                raise self._no_token(origin, found is not None)
            token = record.get("token") or record.get("access_token") if isinstance(record, dict) else None
            if answer.status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise StepError(f"{origin.netloc} gives no token (HTTP {answer.status})", fix="try again later")
            self._anonymous = None if found else origin
            return token

    def refused(self, status: int, shown: bool, words: str) -> ConfigError:
        """The error for a request that the registry does not let this user make; `words` are the registry's own."""
        home, fix = self._home.netloc, _how(self._home.netloc)
        if shown and self._anonymous is not None:
            what = f"{home} does not let you do this without signing in"
            if self._anonymous != self._home:
                what += f": no credentials are kept for {self._anonymous.netloc}, where its tokens come from"
                fix = _keep(self._anonymous)
        elif shown:
            what = f"{home} does not let you do this with the credentials that are kept for it"
        elif status == 403:
            what = f"{home} does not let you do this without signing in"
        else:
            what = f"{home} asks to sign in, and there are no credentials for it"
        return ConfigError(f"{what} (HTTP {status}{': ' + words if words else ''})", fix=fix)

    def _no_token(self, origin: Origin, had: bool) -> ConfigError:
        what = f"{origin.netloc}, where {self._home.netloc} has its tokens from, "
        if had:
            return ConfigError(what + "does not accept the credentials that are kept for it", fix=_how(origin.netloc))
        what += "asks for credentials, and none are kept for it"
        if origin == self._home:
            return ConfigError(what, fix=_how(origin.netloc))
        return ConfigError(
            f"{what}: those of {self._home.netloc} go to no other host",
            fix=_keep(origin),
        )


def challenges(headers: Sequence[str]) -> dict[str, dict[str, str]]:
    """The ways to sign in that `WWW-Authenticate` offers (RFC 9110, 11.6.1): scheme -> its parameters, in lower case.

    Of a scheme that is offered twice, the first counts.
    """
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        text, place = header[:MAX_CHALLENGE], 0
        told: dict[str, str] = {}
        while place < len(text):
            if parameter := PARAMETER.match(text, place):
                name, quoted, plain = parameter.groups()
                told.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
                place = parameter.end()
            elif scheme := SCHEME.match(text, place):
                told = {}
                found.setdefault("".join(c for c in scheme[1].lower() if c.isprintable()), told)
                place = scheme.end()
            else:
                break
    return found


def _keep(origin: Origin) -> str:
    return f"if you trust {origin.netloc}, keep credentials under this name in auths of ~/.docker/config.json"


def _how(host: str) -> str:
    return (
        f"docker login {host} (or podman, skopeo), or set {credentials.USERNAME} and {credentials.PASSWORD} "
        "for the registry that the reference names"
    )


def _basic(found: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{found.username}:{found.password}".encode("utf-8", "surrogateescape")).decode()
