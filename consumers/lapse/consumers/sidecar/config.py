"""What is a sidecar told? Everything is refused here, at start, or nowhere."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from lapse.consumers.guard import ON_STALE, OnStale
from lapse.schemas import ConfigError

__all__ = ["ALGORITHMS", "COOKIE_FORMS", "CookieForm", "SidecarConfig"]

CookieForm = Literal["plain", "percent", "raw", "connect", "flask-signed", "spring"]
"""How an opaque cookie's value names the session id; see SidecarConfig.cookie_form."""

COOKIE_FORMS: Final[tuple[CookieForm, ...]] = get_args(CookieForm)

ALGORITHMS: Final = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA", "Ed25519"),
    "oct": ("HS256", "HS384", "HS512"),
}
"""What a key of each type may sign with."""

# RFC 9110, section 5.6.2. Names of cookies and headers are tokens.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """Everything a sidecar is told.

    Attributes:
        bootstrap_servers, prefix: of Kafka; of the topics.
        service: the name in touches and in the guard's reports.
        reference_key: the estate's key of session references, if it has one.
        address, port: where it listens.
        cookie: the name of a cookie that is an opaque session id.
        cookie_form: `plain` takes the value as it is and refuses quotes, backslashes and percent signs, which some
            services would decode: a second spelling of an ended session's id must not pass as another session.
            `percent` decodes first, as such services do; `raw` takes them as they are. `connect`, `flask-signed` and
            `spring` take the id out of what these frameworks put around it (cookies.py).
        subject_header, tenant_header, start_header: what a trusted proxy says of an opaque cookie's session; the start
            in epoch ms. Without a subject the session is checked, and no touch can be published.
        token_cookie: the name of a cookie that holds a JWT.
        bearer: whether a bearer token is taken, as a JWT.
        jwks: the keys of JWTs, a file or a URL.
        key_file: or the one key: a public key (PEM, JWK) or a shared secret.
        algorithms: accepted signatures; none: all that fit the keys.
        issuer, audience: what a token must say, if given.
        leeway_s: by which clocks may differ.
        jwks_refresh_s: how often the keys are read anew.
        session_claims, start_claims: the first of these that a token has is its session id, and its start. Without
            start_claims it is `auth_time`, else `iat` where the session is `jti`, so the token: a token of a `sid`
            may be a refreshed one, issued long after the session's start.
        subject_claim, tenant_claim: whose it is.
        on_stale: what a stale guard does, where no route says otherwise.
        stale_routes: the same by path prefix.
        require_session: whether a request without a session is refused.
        open_routes: path prefixes where it passes all the same.
        stale_after_ms, session_life_max_ms, touch_interval_ms: of guard and publisher.

    Raises:
        ConfigError: one of them is refused.
    """

    bootstrap_servers: str
    prefix: str = "lapse."
    service: str = "sidecar"
    reference_key: bytes | None = field(default=None, repr=False)
    address: str = "127.0.0.1"
    port: int = 8470
    cookie: str | None = None
    cookie_form: CookieForm = "plain"
    subject_header: str | None = None
    tenant_header: str | None = None
    start_header: str | None = None
    token_cookie: str | None = None
    bearer: bool = True
    jwks: str | None = None
    key_file: Path | None = None
    algorithms: tuple[str, ...] = ()
    issuer: str | None = None
    audience: str | None = None
    leeway_s: int = 30
    jwks_refresh_s: int = 300
    session_claims: tuple[str, ...] = ("sid", "jti")
    subject_claim: str = "sub"
    tenant_claim: str | None = None
    start_claims: tuple[str, ...] = ()
    on_stale: OnStale = "allow"
    stale_routes: Mapping[str, OnStale] = field(default_factory=dict)
    require_session: bool = False
    open_routes: tuple[str, ...] = ()
    stale_after_ms: int = 10_000
    session_life_max_ms: int = 2_592_000_000
    touch_interval_ms: int = 5_000

    def __post_init__(self) -> None:
        self._refuse_names()
        self._refuse_sources()
        if self.cookie_form not in COOKIE_FORMS:
            raise ConfigError(f"cookie_form is {self.cookie_form!r}: {', '.join(COOKIE_FORMS)} are allowed")
        if unknown := set(self.algorithms) - {name for names in ALGORITHMS.values() for name in names}:
            raise ConfigError(f"algorithms has {min(unknown)!r}, which is no signature that is taken here")
        for prefix in (*self.stale_routes, *self.open_routes):
            if not prefix.startswith("/") or any(c in prefix for c in "?#%;\\") or "//" in prefix or "/." in prefix:
                raise ConfigError(f"the route {prefix!r} is no path prefix: it begins with / and is written decoded")
        for prefix, word in self.stale_routes.items():
            if word not in ON_STALE:
                raise ConfigError(f"stale_routes has {prefix}={word}: allow or deny")
        if self.open_routes and not self.require_session:
            raise ConfigError("open_routes says which paths need no session, and none does without require_session")

    @property
    def takes_tokens(self) -> bool:
        """Return whether sessions may come from JWTs."""
        return self.jwks is not None or self.key_file is not None

    def _refuse_names(self) -> None:
        names = {
            "cookie": self.cookie,
            "token_cookie": self.token_cookie,
            "subject_header": self.subject_header,
            "tenant_header": self.tenant_header,
            "start_header": self.start_header,
        }
        for setting, name in names.items():
            if name is not None and _TOKEN.fullmatch(name) is None:
                raise ConfigError(f"{setting} is {name!r}: letters, digits and !#$%&'*+.^_`|~- are allowed")
        if self.cookie is not None and self.cookie == self.token_cookie:
            raise ConfigError(f"cookie and token_cookie are both {self.cookie!r}: a cookie is either an id or a token")

    def _refuse_sources(self) -> None:
        if self.cookie is None and not self.takes_tokens:
            raise ConfigError(
                "nothing says whose a request is: set cookie (an opaque session id), or jwks or key_file (tokens)"
            )
        if self.jwks is not None and self.key_file is not None:
            raise ConfigError("jwks and key_file are both set: name one")
        if self.takes_tokens and not self.bearer and self.token_cookie is None:
            raise ConfigError("tokens are taken from nowhere: set bearer or token_cookie")
        if self.takes_tokens and not (self.session_claims and self.subject_claim):
            raise ConfigError("session_claims and subject_claim say what a token's session and subject are: name them")
        if self.token_cookie is not None and not self.takes_tokens:
            raise ConfigError("token_cookie needs the keys of its tokens: set jwks or key_file")
        given = [name for name in ("subject_header", "tenant_header", "start_header") if getattr(self, name)]
        if given and self.cookie is None:
            raise ConfigError(f"{given[0]} describes an opaque cookie's session: set cookie")
        if self.jwks is not None and self.jwks.startswith("http://"):
            host = urlsplit(self.jwks).hostname or ""
            # Whoever can answer in place of the server could sign tokens.
            if not _is_loopback(host):
                raise ConfigError(f"jwks is {self.jwks!r}: keys are fetched by https, by http from this machine only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
