"""Who uses the services? Simulated people, the only part of the demo that is: over real HTTP and real WebSockets.

A person logs in at the shop and uses both services, some with a WebSocket open, until one of these happens:

    leaves      logs out, and comes back later                                                ->  closed
    wanders     does nothing for longer than the idle timeout, then goes on as if nothing was ->  idle, then refused
    stays       goes on and on                                                                ->  absolute, then refused
    is revoked  (revoking.py)                                                                 ->  revoked, then refused

Whoever is refused logs in again. Some people are logged in twice, on two devices; a revocation of theirs ends both.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple

import httpx2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from lapse.pipeline.demo.login_cookie import COOKIE
from lapse.pipeline.demo.services import SERVICES, ServiceName

__all__ = ["PEOPLE", "Crowd", "CrowdCounts", "LoggedIn"]

PEOPLE: Final = 240
"""Devices in use at a time, each with a session most of the time. 240 that act every 2.2 s are 109 requests a second:
at about 4 ms of one core for a request and its answer, half of a core."""

PAUSE_S: Final = (0.8, 3.6)
"""Between two acts of one person; always below the idle timeout of 4 s, by the longest time a request may take."""

WANDERS_S: Final = (5.0, 9.0)
"""Longer than the idle timeout and its grace."""

AWAY_S: Final = (0.5, 3.0)
"""Between leaving, or being refused, and the next login."""

ARRIVE_WITHIN_S: Final = 6.0
"""A login costs a service twice what a click does: all people at one instant would be a load that no minute has."""

_DEVICES: Final = 2
_SHARE_WITH_SECOND_DEVICE: Final = 0.2
_SHARE_WITH_WEBSOCKET: Final = 0.1
_LEAVES: Final = 0.04  # the chance of it at each act: half of all people do within 17 acts, 37 s
_WANDERS: Final = 0.05
_SAYS_ON_WEBSOCKET: Final = 0.3
_REQUEST_TIMEOUT_S: Final = 10.0
_CONNECTIONS_MAX: Final = 100  # a service; at 55 requests a second of 10 ms it needs one on average
_TENANTS: Final = ("acme", "initech", "umbrella")
_CLOSED_BY_LAPSE: Final = 4001
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403  # how a server refuses a WebSocket's handshake where it can say no more

_ACTS: Final[dict[ServiceName, tuple[tuple[str, str], ...]]] = {
    "shop": (("GET", "/items"), ("POST", "/basket")),
    "billing": (("GET", "/invoices"), ("POST", "/payments")),
}


class LoggedIn(NamedTuple):
    """What an operator can know of a session."""

    session: str
    subject: str
    tenant: str


@dataclass(slots=True)
class CrowdCounts:
    """What the people met with, since the start.

    Attributes:
        requests: answered, whatever the answer; logins too.
        refused: answered by 401, by service.
        websockets_closed: by the services, because the session had ended.
        failures: requests that failed otherwise (a broken connection, another status).
    """

    requests: int = 0
    refused: Counter[ServiceName] = field(default_factory=Counter)
    websockets_closed: int = 0
    failures: int = 0


class _Refused(Exception):
    """The session is over, the service says."""


class Crowd:
    """All the people.

    Args:
        urls: where the services are: http://127.0.0.1:port.
        size: how many devices.
        chance: decides what people do; seeded by whoever wants to see the same again.

    Attributes:
        logged_in: the sessions that people believe to have, by device.
    """

    def __init__(self, urls: dict[ServiceName, str], size: int = PEOPLE, chance: random.Random | None = None) -> None:
        self.counts = CrowdCounts()
        self.logged_in: dict[int, LoggedIn] = {}
        self._urls = urls
        self._size = size
        self._chance = chance or random.Random()
        self._clients: dict[ServiceName, httpx2.AsyncClient] = {}

    async def run(self) -> None:
        """Let everybody act until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            for service in SERVICES:
                client = httpx2.AsyncClient(
                    base_url=self._urls[service],
                    timeout=_REQUEST_TIMEOUT_S,
                    limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_MAX),
                    trust_env=False,  # a proxy of this machine is not for loopback
                    # Everybody shares these clients, for their pools of connections; each sends the own cookie.
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                )
                self._clients[service] = await stack.enter_async_context(client)
            async with asyncio.TaskGroup() as group:
                for number in range(self._size):
                    group.create_task(self._live(number))

    async def _live(self, number: int) -> None:
        """Be one device of one person, for ever."""
        second = self._chance.random() < _SHARE_WITH_SECOND_DEVICE and number % _DEVICES == 1
        subject = f"person-{number - 1 if second else number}"
        await asyncio.sleep(self._chance.uniform(0, ARRIVE_WITHIN_S))
        while True:
            try:
                await self._be_logged_in(number, subject, _TENANTS[number // _DEVICES % len(_TENANTS)])
            except _Refused:
                pass  # counted by service
            except (httpx2.HTTPError, OSError):
                self.counts.failures += 1
            self.logged_in.pop(number, None)
            await self._pause(AWAY_S)

    async def _be_logged_in(self, number: int, subject: str, tenant: str) -> None:
        """Live through one session, from its login to its end."""
        answer = await self._clients["shop"].post("/login", json={"subject": subject, "tenant": tenant})
        answer.raise_for_status()
        self.counts.requests += 1
        cookie = f"{COOKIE}={answer.cookies[COOKIE]}"
        self.logged_in[number] = LoggedIn(answer.json()["session"], subject, tenant)
        if self._chance.random() >= _SHARE_WITH_WEBSOCKET:
            await self._use(cookie, None)
            return
        says: asyncio.Queue[None] = asyncio.Queue(maxsize=1)
        listening = asyncio.create_task(self._listen(self._chance.choice(SERVICES), cookie, says))
        try:
            await self._use(cookie, says)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _use(self, cookie: str, says: asyncio.Queue[None] | None) -> None:
        """Use the services until the user leaves; raise _Refused when one refuses."""
        while True:
            await self._pause(PAUSE_S)
            what = self._chance.random()
            if what < _LEAVES:
                await self._request("shop", "POST", "/logout", cookie)
                return
            if what < _LEAVES + _WANDERS:
                await self._pause(WANDERS_S)
            if says is not None and self._chance.random() < _SAYS_ON_WEBSOCKET and not says.full():
                says.put_nowait(None)
                continue
            service = self._chance.choice(SERVICES)
            await self._request(service, *self._chance.choice(_ACTS[service]), cookie)

    async def _request(self, service: ServiceName, method: str, path: str, cookie: str) -> None:
        answer = await self._clients[service].request(method, path, headers={"cookie": cookie})
        self.counts.requests += 1
        if answer.status_code == _UNAUTHORIZED:
            self.counts.refused[service] += 1
            raise _Refused
        answer.raise_for_status()

    async def _listen(self, service: ServiceName, cookie: str, says: asyncio.Queue[None]) -> None:
        """Keep a WebSocket open, and say something on it when asked to, until the service closes it."""
        url = self._urls[service].replace("http://", "ws://") + "/live"
        try:
            async with connect(url, additional_headers={"cookie": cookie}, proxy=None) as socket:
                talking = asyncio.create_task(_talk(socket, says))
                try:
                    async for _ in socket:
                        pass
                finally:
                    talking.cancel()
                    await asyncio.gather(talking, return_exceptions=True)
                if socket.close_code == _CLOSED_BY_LAPSE:
                    self.counts.websockets_closed += 1
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == _CLOSED_BY_LAPSE:
                self.counts.websockets_closed += 1
        except InvalidStatus as refused:
            if refused.response.status_code in (_UNAUTHORIZED, _FORBIDDEN):
                self.counts.refused[service] += 1
            else:
                self.counts.failures += 1
        except (WebSocketException, OSError):
            self.counts.failures += 1

    async def _pause(self, between_s: tuple[float, float]) -> None:
        await asyncio.sleep(self._chance.uniform(*between_s))


async def _talk(socket: Any, says: asyncio.Queue[None]) -> None:
    while True:
        await says.get()
        await socket.send("still here")
