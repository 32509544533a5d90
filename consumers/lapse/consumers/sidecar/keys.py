"""By which keys are tokens verified, and how are they kept up to date?

A key set (`jwks`, a file or a URL) is read anew every `jwks_refresh_s`, and at once when a token names a key that is
not in it, at most every ten seconds: identity providers begin to sign with a new key soon after they publish it. What
cannot be read leaves the keys as they were, and is said in the log. A sidecar that has none yet verifies nothing.

Only what verifies is taken: keys for encryption are left out, and of a key set shared secrets too, since whoever can
read one can sign.
"""

import asyncio
import contextlib
import logging
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, KeySet, OctKey, OKPKey, RSAKey

from lapse.schemas import ConfigError

__all__ = ["KeyRing", "read_key", "read_key_set"]

_log = logging.getLogger("lapse.consumers")

# RFC 7518, section 3.2: a key of HS256 has at least 256 bits.
_SECRET_BYTES_MIN: Final = 32
# A key set of some dozens of certificates is 100 KiB; more is no key set.
_BYTES_MAX: Final = 1 << 20
_FETCH_TIMEOUT_S: Final = 5.0
_HURRY_INTERVAL_S: Final = 10.0

# What reading a key raises, whatever is in it.
_UNREADABLE: Final = (OSError, ValueError, TypeError, KeyError, AttributeError, JoseError)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where they were said to be: a redirect could lead to a host that anybody speaks for."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class KeyRing:
    """The keys in force.

    Args:
        load: reads them; called in a thread.
        where: what it reads, for the log.
        refresh_s: how often it is called; None: once.

    Attributes:
        keys: a key or a set of them; None while there are none.
        generation: grows when they change.
    """

    def __init__(self, load: Callable[[], Key | KeySet], where: str, refresh_s: float | None) -> None:
        self.keys: Key | KeySet | None = None
        self.generation = 0
        self._load = load
        self._where = where
        self._refresh_s = refresh_s
        self._hurried = -_HURRY_INTERVAL_S
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read them, and go on doing so; a failure is logged and tried again."""
        await self._read()
        if self._refresh_s is not None:
            self._refreshing = asyncio.create_task(self._run(self._refresh_s), name="lapse-sidecar-keys")

    async def stop(self) -> None:
        """Read no more."""
        refreshing, self._refreshing = self._refreshing, None
        if refreshing is not None:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing

    async def hurry(self) -> bool:
        """Read them now, unless that was asked for a moment ago; return whether they changed since the call."""
        before = self.generation
        if self._refresh_s is None:
            return False
        async with self._lock:
            now = time.monotonic()
            if now - self._hurried >= _HURRY_INTERVAL_S:
                self._hurried = now
                await self._read()
        return self.generation != before

    async def _run(self, refresh_s: float) -> None:
        while True:
            # Without keys nothing passes: then a moment is long enough to wait.
            await asyncio.sleep(refresh_s if self.keys is not None else min(refresh_s, 1.0))
            async with self._lock:
                await self._read()

    async def _read(self) -> None:
        try:
            keys = await asyncio.to_thread(self._load)
        except _UNREADABLE as error:
            kept = "those of before are kept" if self.keys is not None else "there are none: no token passes"
            _log.warning("the keys of tokens cannot be read from %s (%s): %s", self._where, type(error).__name__, kept)
            return
        if _prints(keys) != _prints(self.keys):
            self.keys = keys
            self.generation += 1


def read_key(path: Path) -> Key:
    """Return the key in a file: a public key in PEM, a JWK, or any other text as a shared secret.

    Raises:
        ConfigError: there is none that may verify tokens.
    """
    try:
        text = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"key_file {path} cannot be read: {error.strerror}") from None
    if b"PRIVATE KEY" in text:
        raise ConfigError(f"key_file {path} holds a private key: a sidecar verifies, give it the public one")
    try:
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # what it warns of is refused below
            key = _import(text)
    except _UNREADABLE:
        raise ConfigError(f"key_file {path} holds neither a public key (PEM, JWK) nor a secret") from None
    if isinstance(key, OctKey) and len(key.raw_value) < _SECRET_BYTES_MIN:
        raise ConfigError(f"key_file {path} holds a secret below {_SECRET_BYTES_MIN} bytes: openssl rand -base64 48")
    return key


def read_key_set(where: str) -> KeySet:
    """Return the key set in a file or at a URL.

    Raises:
        OSError, ValueError, JoseError: it cannot be read, or holds no key that may verify tokens.
    """
    document = orjson.loads(_fetch(where) if where.startswith(("https://", "http://")) else Path(where).read_bytes())
    usable = [
        data
        for data in document["keys"]
        if data.get("kty") in ("RSA", "EC", "OKP") and data.get("use", "sig") == "sig" and "d" not in data
    ]
    keys: list[Key] = []
    for data in usable:
        # A curve that is not known here must not cost the keys beside it.
        with contextlib.suppress(*_UNREADABLE):
            keys.append(JWKRegistry.import_key(data))
    if not keys:
        raise ValueError("no public key for signatures")
    return KeySet(keys)


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=_FETCH_TIMEOUT_S) as answer:
        read: bytes = answer.read(_BYTES_MAX + 1)
    if len(read) > _BYTES_MAX:
        raise ValueError("too long")
    return read


def _import(text: bytes) -> Key:
    if text.startswith(b"{"):
        return JWKRegistry.import_key(orjson.loads(text))
    if not text.startswith(b"-----BEGIN"):
        return OctKey.import_key(text)
    for kind in (RSAKey, ECKey, OKPKey):
        # Each refuses the others' keys, in its own way.
        with contextlib.suppress(*_UNREADABLE):
            return kind.import_key(text)
    raise ValueError("no public key")


def _prints(keys: Key | KeySet | None) -> list[tuple[str | None, str]]:
    if keys is None:
        return []
    return [(key.kid, key.thumbprint()) for key in (keys if isinstance(keys, KeySet) else [keys])]
