"""Proxy variables: registries are reached directly, so whoever has set one is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

NAMES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""What other programs take for a connection with TLS; the first that is set counts."""
EXCEPTIONS = ("no_proxy", "NO_PROXY")


def unused(host: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the variable whose proxy other programs would use to reach `host`, or an empty string.

    `host` may have a port.
    """
    name = next((name for name in NAMES if environment.get(name)), "")
    exceptions = next((environment[name] for name in EXCEPTIONS if environment.get(name)), "")
    return "" if not name or _excepted(host, exceptions) else name


def _excepted(host: str, exceptions: str) -> bool:
    """Whether a list such as `localhost,.example.com,10.0.0.1:5000` names the host or a domain that it lies in."""
    whole, name = host.lower(), (urlsplit(f"//{host}").hostname or "").lower()
    for entry in (part.strip().lower() for part in exceptions.split(",")):
        domain = entry.removeprefix("*").lstrip(".")
        if entry == "*" or (domain and (domain in (whole, name) or name.endswith(f".{domain}"))):
            return True
    return False
