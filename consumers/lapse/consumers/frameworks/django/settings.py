"""What is a Django project told to do? The LAPSE dictionary of its settings, and what is made of it.

A value that is a callable or an object may be given as itself or as a dotted path.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from lapse.consumers.activity import SyncActivityPublisher
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.identity import Identity
from lapse.consumers.guard import OnStale, SyncGuard
from lapse.schemas import ConfigError

__all__ = ["Enforcement", "Options", "enforcement", "forget"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The LAPSE dictionary, its keys in lower case.

    Attributes:
        kafka: bootstrap servers.
        service: this service's name, in reports of who enforces.
        prefix: of the topics.
        reference_key: of session references, the estate's, if it has one.
        on_stale: what a guard does that does not know enough: allow or deny.
        policy: the name of the policy of new sessions, or a function of request and user; None: by the policies' rules.
        tenant: a function of request and user that returns the tenant's name or None.
        identify: takes the request, returns whose it is or None; by default Django's session says so.
        api_paths: beginnings of paths whose requests get 401 problem+json, whatever they accept.
        is_api: a function of the request, in place of Accept and api_paths.
        client: further settings of aiokafka's clients, such as security_protocol and ssl_context.
        guard, publisher: your own.
    """

    kafka: str | Sequence[str] = ""
    service: str = "django"
    prefix: str = "lapse."
    reference_key: str | bytes | None = None
    on_stale: OnStale = "allow"
    policy: str | Callable[[Any, Any], str | None] | None = None
    tenant: str | Callable[[Any, Any], str | None] | None = None
    identify: str | Callable[[Any], Identity | None] | None = None
    api_paths: Sequence[str] = ()
    is_api: str | Callable[[Any], bool] | None = None
    client: Mapping[str, Any] = field(default_factory=dict)
    guard: str | SyncGuard | None = None
    publisher: str | SyncActivityPublisher | None = None


class Enforcement:
    """The guard and the publisher of a project.

    Attributes:
        guard, publisher: started by a process's first request, or by `enforcement().guard.start()`.
        identify: None where Django's session says whose request it is.

    Raises:
        ConfigError: the LAPSE dictionary is missing, or a setting in it unknown or out of range.
    """

    def __init__(self, options: Options) -> None:
        if isinstance(options.api_paths, str):
            raise ConfigError('LAPSE["API_PATHS"] is a string: give a list of paths')
        if not options.kafka and (options.guard is None or options.publisher is None):
            raise ConfigError('LAPSE["KAFKA"] is missing: where is Kafka?')
        key = options.reference_key
        common: dict[str, Any] = {"service": options.service, "prefix": options.prefix, "client": options.client}
        self.guard: SyncGuard = _imported(options.guard) or SyncGuard(
            options.kafka, on_stale=options.on_stale, **common
        )
        self.publisher: SyncActivityPublisher = _imported(options.publisher) or SyncActivityPublisher(
            options.kafka, **common
        )
        self.gate = Gate(self.guard, self.publisher, key.encode() if isinstance(key, str) else key)
        self.identify: Callable[[Any], Identity | None] | None = _imported(options.identify)
        self._tenant = _imported(options.tenant)
        # A policy's name has no dot that would be a path's: such a one is given by a function.
        policy = options.policy
        self._policy = _imported(policy) if isinstance(policy, str) and "." in policy else policy
        self._is_api = _imported(options.is_api)
        self._api_paths = tuple(options.api_paths)

    def tenant(self, request: Any, user: Any) -> str | None:
        return None if self._tenant is None else self._tenant(request, user)

    def policy(self, request: Any, user: Any) -> str | None:
        return self._policy(request, user) if callable(self._policy) else self._policy

    def is_api(self, request: Any) -> bool:
        """Return whether a refused request gets 401 problem+json; others are somebody's browser, going to a page."""
        if self._is_api is not None:
            return bool(self._is_api(request))
        if request.path.startswith(self._api_paths):
            return True
        return "text/html" not in request.headers.get("accept", "").lower()


@functools.cache
def enforcement() -> Enforcement:
    """Return the project's guard and publisher.

    Raises:
        ConfigError: see Enforcement.
    """
    given = getattr(settings, "LAPSE", None)
    if not isinstance(given, Mapping):
        raise ConfigError('LAPSE is missing in the settings: LAPSE = {"KAFKA": "localhost:9092", "SERVICE": "..."}')
    known = {name.upper(): name for name in Options.__dataclass_fields__}
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise ConfigError(f'LAPSE["{unknown[0]}"] is unknown: {", ".join(known)}')
    return Enforcement(Options(**{known[name]: value for name, value in given.items()}))


def forget(*, setting: str, **_: Any) -> None:
    """A test has overridden a setting."""
    if setting == "LAPSE":
        enforcement.cache_clear()


def _imported(value: Any) -> Any:
    return import_string(value) if isinstance(value, str) else value
