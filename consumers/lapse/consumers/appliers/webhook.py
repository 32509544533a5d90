"""How is somebody else told of an ending? By a webhook in the form of Standard Webhooks.

A POST of `{"type": "session.ended", "timestamp": ..., "data": {the ending}}` with `webhook-id` (the ending's id, by
which receivers know a repetition), `webhook-timestamp` and `webhook-signature`. Any 2xx within ATTEMPT_TIMEOUT_S is
success. Theory of operation:

- Endings of a batch are sent side by side, CONCURRENCY at a time, each up to `attempts` times with growing pauses.
- What was answered by a refusal (4xx, but for 408, 425 and 429) has failed by itself: it is rejected, so dead-lettered.
- What was not answered, or by 5xx, 408, 425 or 429, has failed by itself if any other ending of the batch was answered.
  If none was, the receiver is away: the batch is kept and tried again, up to `patience_s` since it was last there;
  after that endings are rejected, for no receiver may hold them back for ever. 410 says that nobody is there any more:
  it is not tried again.
- What was delivered is remembered (DELIVERED_MAX ids), so that a batch that is tried again sends only the rest.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import ssl
import time
from collections.abc import Sequence
from typing import Final, Literal

import httpx2
import orjson
import stamina
from standardwebhooks.webhooks import Webhook

from lapse.consumers.appliers.addresses import CheckedTransport, Networks, check_address
from lapse.consumers.appliers.effects import Ending, Ends, Rejected, Unavailable
from lapse.schemas import ConfigError, SessionEnded

__all__ = ["WebhookEffect", "payload"]

ATTEMPT_TIMEOUT_S: Final = 10.0
CONCURRENCY: Final = 16
DELIVERED_MAX: Final = 65_536
"""Ids of delivered endings, about 8 MB: ten seconds of repetition at 5,000 endings a second."""

ANSWER_BYTES_MAX: Final = 65_536
"""What is read of an answer, so that its connection can be used again; a longer one costs the connection."""

_NOT_NOW: Final = frozenset({408, 425, 429})
_GONE: Final = 410
_SECRET_BYTES_MIN: Final = 24
"""What Standard Webhooks asks of a secret at least."""

Outcome = Literal["delivered", "refused", "unanswered"]


class _TryAgain(Exception):
    """An attempt failed; the next one may not. `outcome`: what it is if it was the last."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome
        self.reason = reason


class WebhookEffect:
    """Posts endings to one URL; see the module.

    Args:
        url: https, or http into an allowed network.
        secrets: `whsec_...` or base64; several while they are changed: each signs.
        allowed: networks that may be called although they are not public.
        attempts: of one ending.
        wait_initial_s, wait_max_s: between attempts.
        patience_s: how long a receiver may be away before endings are rejected.
        verify: how TLS certificates are checked.

    Raises:
        ConfigError: the URL or a secret is refused.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        allowed: Networks = (),
        attempts: int = 5,
        wait_initial_s: float = 0.5,
        wait_max_s: float = 10.0,
        patience_s: float = 900.0,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._url = _checked_url(url, allowed)
        self._signers = [_signer(secret) for secret in secrets]
        if not self._signers:
            raise ConfigError("a webhook needs a secret to sign with")
        self._allowed = allowed
        self._attempts = attempts
        self._wait_initial_s = wait_initial_s
        self._wait_max_s = wait_max_s
        self._patience_s = patience_s
        self._verify = verify
        self._client: httpx2.AsyncClient | None = None
        self._room = asyncio.Semaphore(CONCURRENCY)
        self._delivered: dict[str, None] = {}
        self._away_since: float | None = None
        self.done = 0

    @property
    def entries(self) -> int:
        return len(self._delivered)

    async def start(self, ends: Ends) -> None:
        self._client = httpx2.AsyncClient(
            transport=CheckedTransport(self._allowed, verify=self._verify),
            timeout=ATTEMPT_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        )

    async def apply(self, endings: Sequence[Ending]) -> Sequence[Rejected]:
        new = {ending.ended.id: ending for ending in endings if ending.ended.id not in self._delivered}
        outcomes = await asyncio.gather(*(self._deliver(ending.ended) for ending in new.values()))
        kinds = {outcome for outcome, _ in outcomes}
        if kinds - {"unanswered"}:
            self._away_since = None
        elif kinds:
            now = time.monotonic()
            self._away_since = now if self._away_since is None else self._away_since
            if now - self._away_since < self._patience_s:
                raise Unavailable(f"the receiver is away: {outcomes[0][1]}")
        return [
            Rejected(ending, f"{self._attempts} attempts failed, the last one: {reason}")
            for ending, (outcome, reason) in zip(new.values(), outcomes, strict=True)
            if outcome != "delivered"
        ]

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _deliver(self, ended: SessionEnded) -> tuple[Outcome, str]:
        body = payload(ended)
        try:
            async for attempt in stamina.retry_context(
                on=_may_be_tried_again,
                attempts=self._attempts,
                timeout=None,  # bounded by the attempts, each by itself
                wait_initial=self._wait_initial_s,
                wait_max=self._wait_max_s,
                wait_jitter=self._wait_initial_s,
            ):
                with attempt:
                    async with self._room:
                        await self._post(ended.id, body)
        except _TryAgain as failed:
            return failed.outcome, failed.reason
        self._delivered[ended.id] = None
        if len(self._delivered) > DELIVERED_MAX:
            del self._delivered[next(iter(self._delivered))]
        self.done += 1
        return "delivered", ""

    async def _post(self, identifier: str, body: bytes) -> None:
        if self._client is None:
            raise _TryAgain("unanswered", "it is not started")
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                async with self._client.stream(
                    "POST", self._url, content=body, headers=self._headers(identifier, body)
                ) as answer:
                    status = answer.status_code
                    read = 0
                    async for chunk in answer.aiter_raw():
                        read += len(chunk)
                        if read > ANSWER_BYTES_MAX:
                            break
        except (httpx2.HTTPError, TimeoutError, OSError, ssl.SSLError) as broken:
            raise _TryAgain("unanswered", f"{type(broken).__name__} {broken}".strip()) from broken
        if 200 <= status < 300:
            return
        outcome: Outcome = "refused" if status < 500 and status not in _NOT_NOW else "unanswered"
        raise _TryAgain(outcome, f"HTTP status {status}")

    def _headers(self, identifier: str, body: bytes) -> dict[str, str]:
        now = datetime.datetime.now(tz=datetime.UTC)
        text = body.decode()
        return {
            "content-type": "application/json",
            "user-agent": "lapse",
            "webhook-id": identifier,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(identifier, now, text) for signer in self._signers),
        }


def payload(ended: SessionEnded) -> bytes:
    """Return the body: the ending as it stands in its topic, in the frame that Standard Webhooks recommends."""
    at = datetime.datetime.fromtimestamp(ended.decided_at / 1000, tz=datetime.UTC)
    data = ended.model_dump(mode="json", exclude={"type", "v"})
    return orjson.dumps({"type": ended.type, "timestamp": at.isoformat(timespec="milliseconds"), "data": data})


def _may_be_tried_again(error: Exception) -> bool:
    return isinstance(error, _TryAgain) and not error.reason.endswith(f" {_GONE}")


def _checked_url(text: str, allowed: Networks) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as refused:
        raise ConfigError(f"the webhook's URL is refused: {refused}") from None
    if url.scheme not in {"https", "http"} or not url.host or url.userinfo or url.fragment:
        raise ConfigError("the webhook's URL is refused: https://host/path is expected, without a user and a fragment")
    try:
        may_be_called = check_address(url.host, allowed, scheme=url.scheme)
    except ValueError:  # a name, whose addresses are checked at every attempt
        may_be_called = url.scheme == "https" or bool(allowed)
    if may_be_called:
        return url
    if url.scheme == "http":
        raise ConfigError("the webhook's URL is refused: http is for allowed networks only, take https")
    raise ConfigError(f"the webhook's URL is refused: {url.host} is not public; allow its network if it is meant")


def _signer(secret: str) -> Webhook:
    """Return what signs with a secret, which no message shows."""
    text = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:  # binascii.Error is one
        raise ConfigError("a webhook's secret is refused: whsec_ and base64 are expected") from None
    if len(key) < _SECRET_BYTES_MIN:
        raise ConfigError(f"a webhook's secret is refused: it has {len(key)} bytes, {_SECRET_BYTES_MIN} are needed")
    return Webhook(key)
