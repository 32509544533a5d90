"""How is a session known whose id is in its data, while the key it is stored under changes?

By its place: `key id`, or `key` alone where the data has no id, and the key is the id. Neither has a blank in it:
Django's keys are letters and digits, and the ids that Lapse's middleware gives are base64url.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from lapse.consumers.frameworks.django_data import Unreadable

__all__ = ["Moving"]

_log = logging.getLogger("lapse.consumers")

_BLANK: Final = " "


class Moving:
    """The sessions of one store.

    Args:
        login_in: returns the login's id in a session's data; raises Unreadable.
    """

    def __init__(self, login_in: Callable[[Any], str | None]) -> None:
        self._login_in = login_in
        self._told = False

    def session(self, key: str, data: Any) -> tuple[str, str]:
        """Return a session's id and its place."""
        login = self._login(data)
        return (key, key) if login is None else (login, f"{key}{_BLANK}{login}")

    def key(self, place: str) -> str:
        return place.partition(_BLANK)[0]

    def is_at(self, place: str, data: Any) -> bool:
        """Return whether what stands there now is still this session."""
        return (self._login(data) or "") == place.partition(_BLANK)[2]

    def _login(self, data: Any) -> str | None:
        try:
            return self._login_in(data)
        except Unreadable as other:
            if not self._told:
                self._told = True
                _log.warning(
                    "the data of a session cannot be read (%s), so it is known by its key alone: "
                    "is SESSION_SERIALIZER, or the cache's serializer or compressor, another than Django's?",
                    other,
                )
            return None
