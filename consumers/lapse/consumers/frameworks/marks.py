"""What does a route say of itself? Marks on its view function, which the middlewares read.

@background                 requests of this route are no activity (as with the header X-Lapse-Background: 1)
@on_stale("deny")           what a guard does here that does not know enough
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from lapse.consumers.guard import ON_STALE, OnStale
from lapse.schemas import ConfigError

__all__ = ["any_marks", "background", "is_background", "is_unguarded", "on_stale", "on_stale_of", "unguarded"]

View = TypeVar("View", bound=Callable[..., Any])

_BACKGROUND: Final = "lapse_background"
_UNGUARDED: Final = "lapse_unguarded"
_names: Final[set[str]] = set()  # of marks that are in use in this process
_ON_STALE: Final = "lapse_on_stale"


def background(view: View) -> View:
    """Mark a view whose requests are checked, and are no touches."""
    return _mark(view, _BACKGROUND, True)


def unguarded(view: View) -> View:
    """Mark a view that serves everybody, as who logs in anew still sends the cookie of the session that ended."""
    return _mark(view, _UNGUARDED, True)


def on_stale(what: OnStale) -> Callable[[View], View]:
    """Return a decorator that overrides the guard's on_stale for a view.

    Raises:
        ConfigError: it is neither allow nor deny.
    """
    if what not in ON_STALE:
        raise ConfigError(f"on_stale is {what!r}: allow or deny")

    def mark(view: View) -> View:
        return _mark(view, _ON_STALE, what)

    return mark


def is_background(view: object) -> bool:
    """Return whether a view's requests are no activity."""
    return getattr(view, _BACKGROUND, False) is True


def is_unguarded(view: object) -> bool:
    """Return whether a view serves everybody."""
    return getattr(view, _UNGUARDED, False) is True


def on_stale_of(view: object) -> OnStale | None:
    """Return what the view was marked with, or None."""
    found: OnStale | None = getattr(view, _ON_STALE, None)
    return found


def any_marks() -> bool:
    """Return whether any view is marked: whether it is worth to look for a request's."""
    return bool(_names)


def _mark(view: View, name: str, value: object) -> View:
    setattr(view, name, value)
    _names.add(name)
    return view
