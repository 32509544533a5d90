"""Which paths have rules of their own? The longest prefix decides, whole segments at a time: /pay is not /payments.

A request may have several paths (asked.py): of their answers the strictest counts, and a path that is unknown, or none
at all, gets the strictest answer that any route gives.
"""

from collections.abc import Iterable, Mapping, Sequence

from lapse.consumers.guard import OnStale

__all__ = ["Routes"]


class Routes:
    """The rules by path.

    Args:
        on_stale: by itself.
        stale: path prefix to what a stale guard does there.
        open_: path prefixes that need no session.
    """

    def __init__(self, on_stale: OnStale, stale: Mapping[str, OnStale], open_: Iterable[str]) -> None:
        self._stale: list[tuple[str, OnStale]] = sorted(
            ((_whole(prefix), word) for prefix, word in stale.items()), key=lambda route: -len(route[0])
        )
        self._default: OnStale = on_stale
        self._strictest: OnStale = "deny" if "deny" in (on_stale, *stale.values()) else "allow"
        self._open = tuple(_whole(prefix) for prefix in open_)

    def on_stale(self, paths: Sequence[str | None]) -> OnStale:
        """Return what a stale guard does."""
        if not self._stale:
            return self._default
        if not paths:
            return self._strictest
        return "deny" if any(self._of(path) == "deny" for path in paths) else "allow"

    def is_open(self, paths: Sequence[str | None]) -> bool:
        """Return whether a request without a session passes."""
        return bool(paths) and all(
            path is not None and any(_under(path, prefix) for prefix in self._open) for path in paths
        )

    def _of(self, path: str | None) -> OnStale:
        if path is None:
            return self._strictest
        return next((word for prefix, word in self._stale if _under(path, prefix)), self._default)


def _whole(prefix: str) -> str:
    return prefix.rstrip("/")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
