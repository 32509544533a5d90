"""Which addresses may be called, and how is it made sure that no other is?

Whoever may name an address for our calls could otherwise reach what only we can: services on loopback, the cloud's
metadata at 169.254.169.254, hosts of the private network. A name is checked by what it resolves to, and that may change
between check and connection (DNS rebinding). So the name is resolved here, every address is checked, and the connection
goes to a checked address; the name remains in the Host header, and in TLS for SNI and the certificate.

Only addresses that are global are called, unless the operator allows their network. By http, which anyone on the way
can read and answer, only allowed networks are. Addresses that carry an IPv4 address in them (mapped, 6to4, Teredo,
NAT64) are judged by that one. Redirects are not followed, and no proxy of the environment is asked: either would
resolve names by itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import httpx2

__all__ = ["CheckedTransport", "Networks", "RefusedAddress", "check_address", "parse_networks"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_RESOLVE_TIMEOUT_S: Final = 5.0


class RefusedAddress(httpx2.TransportError):
    """The name leads to no address that may be called."""


def parse_networks(texts: Sequence[str]) -> Networks:
    """Return networks from CIDR texts; a single address is a network of one.

    Raises:
        ValueError: one is none.
    """
    return [ipaddress.ip_network(text, strict=False) for text in texts]


def check_address(text: str, allowed: Networks = (), *, scheme: str = "https") -> bool:
    """Return whether an address may be called: it is in an allowed network, or global and called by https."""
    address = ipaddress.ip_address(text.split("%")[0])
    carried = _carried(address)
    if any(one in network for one in (address, *carried) for network in allowed):
        return True
    return scheme == "https" and all(_is_public(one) for one in carried or (address,))


def _is_public(address: Address) -> bool:
    inward = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or inward)


def _carried(address: Address) -> tuple[Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found = [one for one in (address.ipv4_mapped, address.sixtofour) if one is not None]
    if address.teredo is not None:
        found += address.teredo
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(found)


class CheckedTransport(httpx2.AsyncHTTPTransport):
    """Connects to checked addresses only; see the module."""

    def __init__(self, allowed: Networks = (), *, verify: ssl.SSLContext | bool = True) -> None:
        super().__init__(verify=verify, retries=0, trust_env=False)
        self._allowed = allowed

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        name = request.url.host
        scheme = request.url.scheme
        address = await self._resolve(name, request.url.port or (443 if scheme == "https" else 80), scheme)
        request.url = request.url.copy_with(host=address)
        request.extensions = {**request.extensions, "sni_hostname": name}
        return await super().handle_async_request(request)

    async def _resolve(self, name: str, port: int, scheme: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as unknown:
            raise httpx2.ConnectError(f"{name} cannot be resolved: {unknown}") from unknown
        addresses = [str(info[4][0]) for info in found]
        for address in addresses:
            if check_address(address, self._allowed, scheme=scheme):
                return address
        why = "not public" if scheme == "https" else "in no allowed network, as http needs"
        raise RefusedAddress(
            f"{name} leads to {', '.join(addresses) or 'no address'}, which is {why}; the operator may allow it"
        )
