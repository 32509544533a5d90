"""Where does the data of a Django session keep the login's id, and how is it read there without Django?

The middleware keeps it in the data and not in the session's key, which Django changes within one login. In three forms
the data may be found outside of Django:

    a row     `[.]base64url:timestamp:signature` (django.core.signing); JSON, compressed where there is a dot before it
    a cache   a pickle (the default of Django's Redis cache and of django-redis), or JSON

Nothing here verifies a signature: that would take the project's SECRET_KEY out of the project. Whoever reads a row of a
session table to decide whether that row goes needs no proof of who wrote it: who can write rows can delete them.

A pickle is never loaded: its opcodes are walked over as data (pickletools), with dictionaries, texts and references
among them, and everything else left as an opaque thing. Nothing that it names is imported or called.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from typing import Any, Final

__all__ = ["DATA", "ID", "Unreadable", "login_in_cache", "login_in_row"]

DATA: Final = "_lapse"
ID: Final = "id"

_LENGTH_MAX: Final = 4 * 1024 * 1024
"""Bytes of one session once inflated: a thousand times what a session has, and no burden for the memory."""


class Unreadable(ValueError):
    """The data has another form: another serializer, or a compression of the cache's."""


def login_in_row(text: str) -> str | None:
    """Return the login's id in `session_data` of Django's table, None where nobody has logged in by Lapse's middleware.

    Raises:
        Unreadable: it is not in the form that Django's own engines write.
    """
    payload = text.rsplit(":", 2)[0]
    encoded = payload.removeprefix(".")
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        if payload.startswith("."):
            inflating = zlib.decompressobj()
            data = inflating.decompress(data, _LENGTH_MAX)
            if inflating.unconsumed_tail:
                raise Unreadable("it is too long")
    except (ValueError, zlib.error) as broken:
        raise Unreadable("it is not signed as Django does") from broken
    return _login_in_json(data)


def login_in_cache(value: bytes) -> str | None:
    """Return the login's id in what a cache of Django's holds of a session; as `login_in_row`."""
    if len(value) > _LENGTH_MAX:
        raise Unreadable("it is too long")
    if DATA.encode() not in value and value[:1] in (b"{", b"\x80"):
        return None
    return _login_in_json(value) if value.startswith(b"{") else _login_in(_plain(value))


def _login_in_json(data: bytes) -> str | None:
    if not data.startswith(b"{"):
        raise Unreadable("it is no JSON object")
    if DATA.encode() not in data:
        return None  # most anonymous sessions: not worth the parsing
    try:
        return _login_in(json.loads(data))
    except (ValueError, RecursionError) as broken:
        raise Unreadable("it is no JSON") from broken


def _login_in(session: object) -> str | None:
    login = session.get(DATA) if isinstance(session, dict) else None
    found = login.get(ID) if isinstance(login, dict) else None
    return found if isinstance(found, str) else None


_OPAQUE: Final = object()
_MARK: Final = object()


def _plain(pickled: bytes) -> object:
    """Return the dictionaries and texts of a pickle; whatever else is in it is opaque."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for code, argument, _ in pickletools.genops(pickled):
            match code.name:
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set(stack[-1], [key, value])
                case "SETITEMS":
                    items = _down_to_mark(stack)
                    _set(stack[-1], items)
                case _:
                    _pass_over(code, stack)
    except (ValueError, LookupError, TypeError) as broken:
        raise Unreadable("it is neither a pickle nor JSON") from broken
    raise Unreadable("the pickle has no end")


def _set(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str))


def _pass_over(code: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Leave on the stack what the opcode would, as an opaque thing; pickletools tells how much it takes and puts."""
    taken, put = code.stack_before, code.stack_after
    if code.name in {"APPEND", "APPENDS", "ADDITEMS", "BUILD"}:
        put = []  # these change what lies below, which stays where it is
        taken = taken[1:]
    if pickletools.stackslice in taken:
        _down_to_mark(stack)
        taken = taken[: taken.index(pickletools.markobject)]
    del stack[len(stack) - len(taken) :]
    stack.extend([_OPAQUE] * len(put))


def _down_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]
