"""What is a gRPC call to either server? Its session, its metadata, its method, and what a refusal carries."""

import functools
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

import grpc

from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.guard import ON_STALE, Decision, Ended, OnStale
from lapse.schemas import ConfigError

__all__ = [
    "Metadata",
    "Rules",
    "behaviour_of",
    "current",
    "current_session",
    "handler_like",
    "kind_of",
    "metadata_of",
    "trailing",
    "trailing_of_ended",
]

Metadata: TypeAlias = Mapping[str, str | bytes]
Trailing: TypeAlias = tuple[tuple[str, str], ...]

_KINDS: Final[dict[tuple[bool, bool], Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]]] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}

current: ContextVar[ActiveSession | None] = ContextVar("lapse_session", default=None)


def current_session() -> ActiveSession | None:
    """Return the session of the call that the caller serves, None if it has none."""
    return current.get()


class Rules:
    """What both interceptors are told of calls that have a session.

    Raises:
        ConfigError: on_stale is neither.
    """

    def __init__(
        self, gate: Gate, on_stale: OnStale | Mapping[str, OnStale] | None, background: Collection[str]
    ) -> None:
        given = on_stale.values() if isinstance(on_stale, Mapping) else () if on_stale is None else (on_stale,)
        for what in given:
            if what not in ON_STALE:
                raise ConfigError(f"on_stale is {what!r}: allow or deny")
        if isinstance(background, str):
            raise ConfigError(f"background is one string: give a collection of methods, such as {{{background!r}}}")
        self._gate = gate
        self._on_stale = on_stale
        self._background = frozenset(background)

    def admit(
        self, identity: Identity, method: str, metadata: Metadata
    ) -> tuple[ActiveSession, Callable[[], None] | None]:
        """Check a call, and tell the touch that it is.

        Returns:
            its session; and what tells further touches, None where the call is refused, or no activity.
        """
        on_stale = self._on_stale.get(method) if isinstance(self._on_stale, Mapping) else self._on_stale
        session = self._gate.check(identity, on_stale)
        if not session.decision.allowed or method in self._background or metadata.get(BACKGROUND) in ("1", b"1"):
            return session, None
        touch = functools.partial(self._gate.touch, session)
        touch()
        return session, touch


def metadata_of(details: Any) -> dict[str, str | bytes]:
    """Return a call's metadata by name; of a name that is given several times the last counts."""
    return {entry[0]: entry[1] for entry in details.invocation_metadata or ()}


def kind_of(handler: Any) -> tuple[bool, bool]:
    """Return whether a method's requests come as a stream, and whether its responses do."""
    return bool(handler.request_streaming), bool(handler.response_streaming)


def behaviour_of(handler: Any) -> Callable[..., Any]:
    """Return the method itself."""
    behaviour: Callable[..., Any] = getattr(handler, _KINDS[kind_of(handler)])
    return behaviour


def handler_like(handler: Any, behaviour: Callable[..., Any]) -> Any:
    """Return a handler of the same kind with another method."""
    make = getattr(grpc, f"{_KINDS[kind_of(handler)]}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def trailing(decision: Decision) -> Trailing:
    """Return the trailing metadata that says why a call was refused."""
    return _entries(None if decision.cause is None else decision.cause.value, decision.due_at, decision.ending)


def trailing_of_ended(ended: Ended) -> Trailing:
    """Return the trailing metadata that says why a call was broken off."""
    return _entries(ended.cause.value, ended.due_at, ended.ending)


def _entries(cause: str | None, due_at: int | None, ending: str | None) -> Trailing:
    found = {"lapse-cause": cause or "unverified", "lapse-due-at": due_at, "lapse-ending": ending}
    return tuple((name, str(value)) for name, value in found.items() if value is not None)
