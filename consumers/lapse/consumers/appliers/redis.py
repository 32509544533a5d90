"""How does a session end that lives in a Redis?

What stands in Redis, by layout (`{id}` is what the reference is made of: the id without the cookie's signature):

| layout | keys | beside them |
| --- | --- | --- |
| flask | `session:{id}` (Flask-Session) | |
| connect | `sess:{id}` (connect-redis) | |
| django | `:1:django.contrib.sessions.cache{id}` (the cache back end) | the login's id, in the value |
| django-cached-db | `:1:django.contrib.sessions.cached_db{id}` | likewise; the table: an applier of its own |
| spring | `spring:session:sessions:{id}` (Spring Session, both repositories) | `...:sessions:expires:{id}`, the set |
| | | `...:expirations:{minute}`, the index set of the principal's name |

What Django's cache holds is read: a login by Lapse's middleware has its id in there, and keeps it where Django changes
the session's key. It is deleted as long as that id is in it, since a new login may have taken its place; a value
without such an id is known by its key.

Another prefix or version is told as a template with `{id}` in it. A hint of the application's stands under
`lapse:ref:{reference}` and holds the id: `redis.set(*hint(session_id), ex=lifetime_s)`.

Redis promises of SCAN that it returns every key that was there from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError

from lapse.consumers.appliers.effects import Unavailable
from lapse.consumers.appliers.moving import Moving
from lapse.consumers.frameworks.django_data import login_in_cache
from lapse.schemas import ConfigError, session_reference

__all__ = ["HINT_PREFIX", "LAYOUTS", "Layout", "RedisStore", "hint"]

HINT_PREFIX: Final = "lapse:ref:"

_COUNT: Final = 1_000
"""Slots of one SCAN: about 0.3 ms in which Redis serves nobody else."""

_VALUES: Final = 250
"""Values of Django's sessions read at once: at 64 KB each, which is a large session, 16 MB."""

_UNLINK_IF_SAME: Final = "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('unlink', KEYS[1]) or 0"

_TIMEOUT_S: Final = 5.0
_PLACEHOLDER: Final = "{id}"

_PRINCIPAL: Final = "org.springframework.session.FindByIndexNameSessionRepository.PRINCIPAL_NAME_INDEX_NAME"
_MINUTE_MS: Final = 60_000


def hint(session_id: str, key: bytes | None = None) -> tuple[str, str]:
    """Return the name and the value of what an application may set at login, with the session's lifetime.

    It is set before the session is published, so that no ending can be ahead of it.
    """
    return HINT_PREFIX + session_reference(session_id, key), session_id


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a session stands.

    Args:
        template: of the session's key, with `{id}` once.
        spring: whether Spring Session's other keys go with it.
        django: whether the value holds the login's id, as Lapse's middleware keeps it.

    Raises:
        ConfigError: `{id}` is not in it once.
    """

    template: str
    spring: bool = False
    django: bool = False

    def __post_init__(self) -> None:
        if self.template.count(_PLACEHOLDER) != 1 or self.template == _PLACEHOLDER:
            raise ConfigError(f"the template {self.template!r} needs {_PLACEHOLDER} once, and something around it")

    @property
    def pattern(self) -> str:
        """Return what SCAN matches: the template with a star, everything else taken as it is."""
        before, after = self.template.split(_PLACEHOLDER)
        return f"{_literally(before)}*{_literally(after)}"

    def key(self, session_id: str) -> str:
        return self.template.replace(_PLACEHOLDER, session_id)

    def session_id(self, key: str) -> str | None:
        """Return the id in a key that matches the pattern, or None if it is no session's key."""
        before, after = self.template.split(_PLACEHOLDER)
        found = key[len(before) : len(key) - len(after)]
        # Spring's ids have no colon, but its other keys begin as the sessions' do.
        return None if not found or (self.spring and ":" in found) else found


LAYOUTS: Final[Mapping[str, Layout]] = {
    "flask": Layout("session:{id}"),
    "connect": Layout("sess:{id}"),
    "django": Layout(":1:django.contrib.sessions.cache{id}", django=True),
    "django-cached-db": Layout(":1:django.contrib.sessions.cached_db{id}", django=True),
    "spring": Layout("spring:session:sessions:{id}", spring=True),
}


class RedisStore:
    """The sessions in one Redis database.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with the password in it.
    """

    def __init__(self, url: str, layout: Layout) -> None:
        try:
            self._redis: Any = Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, client_name="lapse-apply"
            )
        except ValueError as refused:
            raise ConfigError(f"the store is no Redis URL: {refused}") from None
        self._layout = layout
        self._moving = Moving(login_in_cache)
        self.moves = layout.django

    async def start(self) -> None:
        try:
            await self._redis.ping()
        except AuthenticationError as refused:
            raise ConfigError(f"Redis refuses the password of the store: {refused}") from None
        except (RedisError, OSError) as broken:
            raise _unavailable(broken) from broken

    async def walk(self) -> AsyncIterator[Sequence[tuple[str, str]]]:
        cursor: int = 0
        while True:
            try:
                cursor, keys = await self._redis.scan(cursor, match=self._layout.pattern, count=_COUNT)
            except (RedisError, OSError) as broken:
                raise _unavailable(broken) from broken
            found = (self._layout.session_id(key.decode("utf-8", "surrogateescape")) for key in keys)
            ids = [session_id for session_id in found if session_id is not None]
            for first in range(0, len(ids), _VALUES):
                yield await self._sessions(ids[first : first + _VALUES])
            if cursor == 0:
                return

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        if not references:
            return {}
        try:
            values = await self._redis.mget([HINT_PREFIX + reference for reference in references])
        except (RedisError, OSError) as broken:
            raise _unavailable(broken) from broken
        pairs = zip(references, values, strict=True)
        return {reference: value.decode("utf-8", "surrogateescape") for reference, value in pairs if value}

    async def delete(self, places: Sequence[str], subjects: Mapping[str, str]) -> int:
        if self._layout.django:
            return await self._delete_djangos(places)
        ids = places
        try:
            if self._layout.spring:
                await self._leave_springs_sets(ids, subjects)
            async with self._redis.pipeline(transaction=False) as pipe:
                for session_id in ids:
                    key = self._layout.key(session_id)
                    pipe.unlink(_bytes(key))
                    if self._layout.spring:
                        pipe.unlink(_bytes(_expires_key(self._layout, session_id)))
                answers: list[int] = await pipe.execute()
        except (RedisError, OSError) as broken:
            raise _unavailable(broken) from broken
        step = 2 if self._layout.spring else 1
        return sum(answers[::step])

    async def stop(self) -> None:
        await self._redis.aclose()

    async def _sessions(self, keys: Sequence[str]) -> list[tuple[str, str]]:
        if not self._layout.django:
            return [(key, key) for key in keys]
        try:
            values = await self._redis.mget([_bytes(self._layout.key(key)) for key in keys])
        except (RedisError, OSError) as broken:
            raise _unavailable(broken) from broken
        # One that has gone since SCAN named it is no session any more.
        return [self._moving.session(key, value) for key, value in zip(keys, values, strict=True) if value is not None]

    async def _delete_djangos(self, places: Sequence[str]) -> int:
        """Delete what is at these places, where it still is the session that it was."""
        names = [_bytes(self._layout.key(self._moving.key(place))) for place in places]
        try:
            values: list[bytes | None] = await self._redis.mget(names) if names else []
            async with self._redis.pipeline(transaction=False) as pipe:
                for place, name, value in zip(places, names, values, strict=True):
                    if value is not None and self._moving.is_at(place, value):
                        pipe.eval(_UNLINK_IF_SAME, 1, name, value)
                return sum(await pipe.execute())
        except (RedisError, OSError) as broken:
            raise _unavailable(broken) from broken

    async def _leave_springs_sets(self, ids: Sequence[str], subjects: Mapping[str, str]) -> None:
        """Take sessions out of the sets that name them, while what says which sets is still there.

        The minute is that in which `expires:{id}` would expire, rounded up; its neighbours are cleared as well, since
        its time to live is read a moment later than it was written.
        """
        layout = self._layout
        root = layout.template[: layout.template.index("sessions:")]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for session_id in ids:
                pipe.pttl(_bytes(_expires_key(layout, session_id)))
                pipe.hget(_bytes(layout.key(session_id)), f"sessionAttr:{_PRINCIPAL}")
            (seconds, micros), *read = await pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        async with self._redis.pipeline(transaction=False) as pipe:
            for session_id, left_ms, principal in zip(ids, read[::2], read[1::2], strict=True):
                if left_ms > 0:
                    minute = -(-(now_ms + left_ms) // _MINUTE_MS) * _MINUTE_MS
                    for at in (minute - _MINUTE_MS, minute, minute + _MINUTE_MS):
                        pipe.srem(_bytes(f"{root}expirations:{at}"), *_java_forms(f"expires:{session_id}"))
                for name in {_java_text(principal), subjects.get(session_id)} - {None}:
                    pipe.srem(_bytes(f"{root}index:{_PRINCIPAL}:{name}"), *_java_forms(session_id))
            await pipe.execute()


def _expires_key(layout: Layout, session_id: str) -> str:
    return layout.key(f"expires:{session_id}")


_JAVA_STRING: Final = b"\xac\xed\x00\x05t"
"""What Java's serialization puts before a string's length (2 bytes) and its modified UTF-8."""


def _java_forms(text: str) -> Iterator[bytes]:
    """Yield a set's member as Spring may have written it: as Java's serialization of a string, as JSON, and plain."""
    plain = _bytes(text)
    yield _JAVA_STRING + len(plain).to_bytes(2, "big") + plain
    yield b'"' + plain + b'"'
    yield plain


def _java_text(value: bytes | None) -> str | None:
    """Return the text in one of these forms, or None if it is none."""
    if value is None:
        return None
    if value.startswith(_JAVA_STRING):
        value = value[len(_JAVA_STRING) + 2 :]
    return value.strip(b'"').decode("utf-8", "replace") or None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _literally(text: str) -> str:
    """Return a text so that SCAN's pattern takes no character of it for a wildcard."""
    return "".join(f"\\{c}" if c in "*?[]^\\" else c for c in text)


def _unavailable(broken: Exception) -> Unavailable:
    return Unavailable(f"Redis does not answer: {type(broken).__name__} {broken}")
