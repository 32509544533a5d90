"""What the sidecar's tests share: one with the feed in memory, and issuers of tokens."""

import time
from pathlib import Path
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, OctKey

from lapse.consumers.sidecar.answers import CAUSE_HEADER
from lapse.consumers.sidecar.app import Sidecar
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.consumers.testing import MemoryFeed, MemoryPublisher
from lapse.schemas import SessionTouched

__all__ = ["Asking", "bearer", "claims", "config", "key_set_file", "signed"]

JSON = dict[str, Any]


def config(**told: Any) -> SidecarConfig:
    """Return a configuration with a cookie named sid, where nothing else says whose a request is."""
    if not {"cookie", "jwks", "key_file"} & told.keys():
        told["cookie"] = "sid"
    return SidecarConfig(bootstrap_servers="127.0.0.1:1", **told)


def claims(**changed: Any) -> JSON:
    """Return a token's claims: sid s-1 of u-1, issued a minute ago, expiring in an hour; None takes one away."""
    now = int(time.time())
    said = {"sid": "s-1", "sub": "u-1", "iat": now - 60, "exp": now + 3_600, **changed}
    return {name: value for name, value in said.items() if value is not None}


def signed(key: Key, said: JSON, **header: Any) -> str:
    """Return the token that says it."""
    kinds = {"EC": "ES256", "oct": "HS256", "RSA": "RS256", "OKP": "Ed25519"}
    alg = kinds[key.key_type]
    return jwt.encode({"alg": alg, "kid": key.kid, **header}, said, key, algorithms=[alg])


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + token.encode())


def key_set_file(path: Path, *keys: ECKey | OctKey) -> Path:
    """Write the public keys as a key set, and return the path."""
    path.write_bytes(orjson.dumps(KeySet(list(keys)).as_dict(private=False)))
    return path


class Asking:
    """A sidecar over the in-memory feed, asked as a proxy asks."""

    def __init__(self, told: SidecarConfig | None = None) -> None:
        told = told or config()
        self.feed = MemoryFeed()
        self.publisher = MemoryPublisher(clock=self.feed.clock)
        self.sidecar = Sidecar(told, guard=self.feed.guard(on_stale=told.on_stale), publisher=self.publisher)

    async def keys(self) -> "Asking":
        """Read the keys once."""
        assert self.sidecar.ring is not None
        await self.sidecar.ring.start()
        await self.sidecar.ring.stop()
        return self

    async def ask(self, *headers: tuple[bytes, bytes], path: bytes = b"/check", method: str = "GET") -> str:
        """Return the answer in a word: passed, nobody's, stale, or the cause of the refusal."""
        answer = await self.sidecar.answer(method, path, headers)
        assert answer.headers["cache-control"] == "no-store"
        if answer.status_code == 200:
            if "x-lapse-stale" in answer.headers:
                return "stale"
            return "passed" if "x-lapse-session" in answer.headers else "nobody's"
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.headers[CAUSE_HEADER]

    def touches(self) -> list[SessionTouched]:
        return [activity for activity in self.publisher.take() if isinstance(activity, SessionTouched)]
