"""Goal: each ending is told, signed, at least once, and no receiver holds endings back for ever.

Method: a real HTTP server that answers as it is told, and the reference implementation of the signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from lapse.consumers.appliers import Unavailable
from lapse.consumers.appliers.addresses import parse_networks
from lapse.consumers.appliers.webhook import WebhookEffect
from lapse.schemas import ConfigError

from tests.consumers.appliers.support import ending, nothing_appended
from tests.consumers.support import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
LOOPBACK = parse_networks(["127.0.0.0/8"])

Answers = Callable[[dict[str, Any]], int]


class Receiver:
    """An HTTP server; `answers` makes a status of each body, 0 hangs up."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.calls: list[tuple[dict[str, str], str]] = []
        self.port = 0
        self.serving: set[asyncio.Task[None]] = set()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self.serve(reader, writer))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.calls]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = (await reader.readexactly(int(headers["content-length"]))).decode()
                self.calls.append((headers, body))
                status = self.answers(json.loads(body))
                if status == 0:
                    break
                location = "Location: http://10.0.0.1/\r\n" if status == 302 else ""
                writer.write(f"HTTP/1.1 {status} X\r\n{location}Content-Length: 2\r\n\r\nok".encode())
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def receiving(answers: Answers = lambda _: 204) -> AsyncIterator[Receiver]:
    receiver = Receiver(answers)
    server = await asyncio.start_server(receiver.take, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
        for task in receiver.serving:
            task.cancel()
        await asyncio.gather(*receiver.serving, return_exceptions=True)


@contextlib.asynccontextmanager
async def effect_on(url: str, secrets: tuple[str, ...] = (SECRET,), **options: Any) -> AsyncIterator[WebhookEffect]:
    quick = {"allowed": LOOPBACK, "attempts": 3, "wait_initial_s": 0.01, "wait_max_s": 0.02}
    effect = WebhookEffect(url, secrets, **{**quick, **options})
    await effect.start(nothing_appended)
    try:
        yield effect
    finally:
        await effect.stop()


async def test_an_ending_is_posted_as_standard_webhooks_has_it() -> None:
    one = ending("one", subject="u-42")
    async with receiving() as receiver, effect_on(receiver.url) as effect:
        assert await effect.apply([one]) == []
        ((headers, body),) = receiver.calls
    told = Webhook(SECRET).verify(body, headers)
    assert told["type"] == "session.ended"
    assert told["data"]["session"] == one.ended.session
    assert told["data"]["subject"] == "u-42"
    assert headers["webhook-id"] == one.ended.id
    assert headers["content-type"] == "application/json"
    assert effect.done == 1


async def test_while_secrets_are_changed_both_verify() -> None:
    async with receiving() as receiver, effect_on(receiver.url, (SECRET, OTHER)) as effect:
        await effect.apply([ending("one")])
        ((headers, body),) = receiver.calls
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(body, headers)


@pytest.mark.parametrize("first", [500, 503, 429, 404, 0])
async def test_what_fails_is_tried_again_under_the_same_id(first: int) -> None:
    failures = iter([first])
    async with receiving(lambda _: next(failures, 200)) as receiver, effect_on(receiver.url) as effect:
        assert await effect.apply([ending("one")]) == []
        assert len(receiver.calls) == 2
        assert len(set(receiver.ids)) == 1


async def test_a_refusal_is_rejected_after_the_last_attempt_and_holds_no_other_back() -> None:
    poison, fine = ending("poison"), ending("fine")
    refused = poison.ended.session

    def answers(body: dict[str, Any]) -> int:
        return 422 if body["data"]["session"] == refused else 200

    async with receiving(answers) as receiver, effect_on(receiver.url) as effect:
        (rejected,) = await effect.apply([poison, fine])
        assert rejected.ending is poison
        assert "422" in rejected.reason
        assert len(receiver.calls) == 4
        assert await effect.apply([ending("next")]) == []


async def test_one_that_makes_the_receiver_fail_is_rejected_where_others_are_taken() -> None:
    poison, fine = ending("poison"), ending("fine")
    refused = poison.ended.session
    answers: Answers = lambda body: 500 if body["data"]["session"] == refused else 200  # noqa: E731  # it reads best so
    async with receiving(answers) as receiver, effect_on(receiver.url) as effect:
        (rejected,) = await effect.apply([poison, fine])
        assert rejected.ending is poison
        del receiver


async def test_410_is_not_tried_again() -> None:
    async with receiving(lambda _: 410) as receiver, effect_on(receiver.url) as effect:
        assert len(await effect.apply([ending("one")])) == 1
        assert len(receiver.calls) == 1


async def test_a_redirect_is_a_refusal_and_not_followed() -> None:
    async with receiving(lambda _: 302) as receiver, effect_on(receiver.url, attempts=1) as effect:
        (rejected,) = await effect.apply([ending("one")])
        assert "302" in rejected.reason
        assert len(receiver.calls) == 1


async def test_a_receiver_that_is_away_is_waited_for_and_what_it_had_is_not_sent_again() -> None:
    one, two = ending("one"), ending("two")
    async with effect_on(f"http://127.0.0.1:{free_port()}/", attempts=1) as effect:
        with pytest.raises(Unavailable, match="away"):
            await effect.apply([one, two])
    async with receiving() as receiver, effect_on(receiver.url, attempts=1) as effect:
        await effect.apply([one])
        receiver.answers = lambda _: 503
        with pytest.raises(Unavailable):
            await effect.apply([one, two])
        receiver.answers = lambda _: 200
        assert await effect.apply([one, two]) == []
        assert receiver.ids == [one.ended.id, two.ended.id, two.ended.id]


async def test_no_receiver_is_waited_for_longer_than_the_patience() -> None:
    away = f"http://127.0.0.1:{free_port()}/"
    async with effect_on(away, attempts=1, patience_s=0.2) as effect:
        async with asyncio.timeout(10):
            while True:
                try:
                    rejected = await effect.apply([ending("one")])
                except Unavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert len(rejected) == 1


async def test_a_name_that_leads_to_a_private_address_is_never_called() -> None:
    async with receiving() as receiver:
        url = f"https://localhost:{receiver.port}/"
        async with effect_on(url, allowed=(), attempts=1) as effect:
            with pytest.raises(Unavailable, match="not public"):
                await effect.apply([ending("one")])
        assert receiver.calls == []


@pytest.mark.parametrize("host", ["93.184.216.34", "[2606:2800:220:1::1]", "[64:ff9b::808:808]", "192.168.1.1"])
def test_http_to_an_address_outside_the_allowed_networks_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="allowed networks only"):
        WebhookEffect(f"http://{host}/", [SECRET], allowed=LOOPBACK)
    WebhookEffect("http://127.0.0.1/", [SECRET], allowed=LOOPBACK)
    WebhookEffect("https://93.184.216.34/", [SECRET], allowed=LOOPBACK)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "https"),
        ("https://user:pass@example.com/", "user"),
        ("https://127.0.0.1/", "public"),
        ("https://[::1]/", "public"),
        ("https://169.254.169.254/latest", "public"),
        ("nonsense", "https"),
    ],
)
def test_a_url_that_can_never_be_right_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WebhookEffect(url, [SECRET])


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "not base64 at all!", "whsec_c2hvcnQ="])
def test_a_secret_that_is_short_or_none_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as refused:
        WebhookEffect("https://example.com/", [secret])
    assert "c2hvcnQ" not in str(refused.value)


def test_without_a_secret_nothing_is_sent() -> None:
    with pytest.raises(ConfigError, match="secret"):
        WebhookEffect("https://example.com/", [])
