"""What may a service tell? The five methods that all publishers have; each only notes, and says when it was."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from lapse.consumers.activity.packing import Activity
from lapse.schemas import SessionClosed, SessionElevated, SessionRefreshed, SessionStarted, SessionTouched

__all__ = ["Note", "Notes"]

Note = tuple[type[Activity], str, str, str | None, float, Mapping[str, object] | None]
"""Kind, session, subject, tenant, monotonic ms, further fields; None for the fields of a touch without any."""


class Notes(ABC):
    """Notes what users do. None of these methods waits, raises, or touches the network."""

    _clock: Callable[[], float]

    @abstractmethod
    def _enter(self, note: Note) -> None:
        """Take a note, from whatever thread."""

    def started(
        self,
        session: str,
        subject: str,
        *,
        tenant: str | None = None,
        policy: str | None = None,
        device: str | None = None,
        network: str | None = None,
        attributes: Mapping[str, str] | None = None,
        token_life_ms: int | None = None,
    ) -> None:
        """Note that the subject logged in; `session` is the session's reference, here and below."""
        given: object = attributes  # whatever a caller without a type checker gives: it must not raise here
        self._note(
            SessionStarted,
            session,
            subject,
            tenant,
            {
                "policy": policy,
                "device": device,
                "network": network,
                "attributes": {} if given is None else dict(given) if isinstance(given, Mapping) else given,
                "token_life_ms": token_life_ms,
            },
        )

    def touched(
        self,
        session: str,
        subject: str,
        *,
        tenant: str | None = None,
        hold_ms: int | None = None,
        session_age_ms: int | None = None,
        device: str | None = None,
        network: str | None = None,
    ) -> None:
        """Note that the subject did something.

        Args:
            hold_ms: an upload or job that counts as activity for so long; told at once, in a record of its own.
            session_age_ms, device, network: told with a session's first touch after touch_interval_ms of silence;
                the age also with a later one, where the first did not say it.
        """
        extras = None
        if hold_ms is not None or session_age_ms is not None or device is not None or network is not None:
            extras = {"hold_ms": hold_ms, "session_age_ms": session_age_ms, "device": device, "network": network}
        self._note(SessionTouched, session, subject, tenant, extras)

    def refreshed(
        self, session: str, subject: str, *, tenant: str | None = None, generation: int | None = None
    ) -> None:
        """Note that a token of the session was refreshed. It does not count as a touch."""
        self._note(SessionRefreshed, session, subject, tenant, {"generation": generation})

    def elevated(
        self, session: str, subject: str, *, tenant: str | None = None, session_age_ms: int | None = None
    ) -> None:
        """Note that the subject proved itself again."""
        self._note(SessionElevated, session, subject, tenant, {"session_age_ms": session_age_ms})

    def closed(self, session: str, subject: str, *, tenant: str | None = None) -> None:
        """Note that the subject logged out."""
        self._note(SessionClosed, session, subject, tenant, {})

    def _note(
        self,
        kind: type[Activity],
        session: str,
        subject: str,
        tenant: str | None,
        fields: Mapping[str, object] | None,
    ) -> None:
        self._enter((kind, session, subject, tenant, self._clock(), fields))
