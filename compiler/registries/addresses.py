"""Which addresses may be connected to: what a registry answers must not lead into networks it is not part of."""

from __future__ import annotations

import ipaddress
import socket

from compiler.errors import IntegrityError

NAT64 = ipaddress.ip_network("64:ff9b::/96")
SHARED = ipaddress.ip_network("100.64.0.0/10")
"""Carrier-grade NAT, RFC 6598: neither private nor global in Python's terms."""


def range_of(address: str) -> str:
    """`loopback`, `link-local`, `private`, `public`, or `reserved` (nothing is ever there to be connected to)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return range_of(str(inner))
    if found.is_loopback:
        return "loopback"
    if found.is_link_local:
        return "link-local"
    if found.is_multicast or found.is_unspecified:
        return "reserved"
    if found.is_private or (found.version == 4 and found in SHARED):
        return "private"
    return "reserved" if found.is_reserved else "public"


def resolve(host: str, port: int) -> list[str]:
    """The addresses behind a name, in the resolver's order.

    Raises:
        OSError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError:  # what no name can be: a part that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "no name") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(host: str) -> bool:
    """Whether a host as it is written can only be this machine."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return range_of(name) == "loopback"
    except ValueError:
        return False


def check_reachable(host: str, addresses: list[str], home: str) -> None:
    """Lets the public Internet pass, and the range that the registry itself lies in.

    Raises:
        IntegrityError: the registry leads elsewhere: into a private network, to this machine, to a metadata service.
    """
    for address in addresses:
        found = range_of(address)
        if found not in ("public", home):
            raise IntegrityError(
                f"the registry leads to {host[:100]}, which is a {found} address and none of its own",
                fix="do not use this registry, or name the host that it leads to yourself",
            )
