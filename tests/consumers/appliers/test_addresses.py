"""Goal: only public addresses are called, unless others are allowed. Method: addresses, names, real connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from lapse.consumers.appliers.addresses import CheckedTransport, RefusedAddress, check_address, parse_networks


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_may_be_called(address: str) -> None:
    assert check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fec0::1", "2001:db8::1", "ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
        "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "2001:0:808:808::80ff:fffe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_may_not(address: str) -> None:
    assert not check_address(address)


def test_a_network_may_be_allowed_and_no_other_is() -> None:
    allowed = parse_networks(["10.0.0.0/8", "::1"])
    assert check_address("10.9.9.9", allowed)
    assert check_address("::ffff:10.9.9.9", allowed)
    assert check_address("::1", allowed)
    assert not check_address("192.168.1.1", allowed)
    assert not check_address("127.0.0.1", allowed)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "2130706433", "127.1", "0x7f.1"])
async def test_a_name_or_another_spelling_of_loopback_is_not_connected_to(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://{host}:{listener.getsockname()[1]}/"
        async with httpx2.AsyncClient(transport=CheckedTransport(), trust_env=False, timeout=5) as client:
            with pytest.raises((RefusedAddress, httpx2.ConnectError)):
                await client.get(url)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_name_that_leads_to_a_public_address_is_called_by_https_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a name with both kinds of address, http takes the allowed one, wherever it stands."""
    connected: list[str] = []

    async def resolving(name: str, port: int, **_: Any) -> list[Any]:
        addresses = {"public.example": ["8.8.8.8"], "both.example": ["8.8.8.8", "127.0.0.1"]}[name]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async def connecting(self: Any, request: httpx2.Request) -> httpx2.Response:
        connected.append(request.url.host)
        return httpx2.Response(204)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving)
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", connecting)
    transport = CheckedTransport(parse_networks(["127.0.0.0/8"]))
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        with pytest.raises(RefusedAddress, match="http needs"):
            await client.get("http://public.example/")
        await client.get("https://public.example/")
        await client.get("http://both.example/")
    assert connected == ["8.8.8.8", "127.0.0.1"]


async def test_the_connection_goes_to_the_checked_address_and_the_name_stays_in_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that answers with another address each time: only the first answer, which was checked, is used."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answers = iter(["127.0.0.1", "10.255.255.1", "10.255.255.1"])
    names: list[str] = []

    async def rebinding(name: str, port: int, **_: Any) -> list[Any]:
        names.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
    transport = CheckedTransport(parse_networks(["127.0.0.0/8"]))
    async with server, httpx2.AsyncClient(transport=transport, trust_env=False, timeout=5) as client:
        answer = await client.get(f"http://rebind.example:{port}/hook")
        assert answer.status_code == 200
        assert names[:1] == ["rebind.example"]
        assert f"host: rebind.example:{port}".encode() in asked[0].lower()
        with pytest.raises(RefusedAddress):
            await client.get(f"http://rebind.example:{port}/hook")
