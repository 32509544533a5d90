"""What is a sidecar told, beside the settings that all commands share?

In the same three places (three_places.py): a flag, a variable `LAPSE_SIDECAR_<NAME>`, a line of the table `[sidecar]`
in `lapse.toml`. Lists are comma separated everywhere; the file takes lists and tables too. What the values may be
together is `lapse.consumers.sidecar.config`'s business, which this module does not import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode, SettingsConfigDict

from lapse.pipeline.settings import SIDECAR_TABLE, Name
from lapse.pipeline.three_places import FILE, ThreePlaces
from lapse.schemas.errors import ConfigError

__all__ = ["SidecarSettings"]


def _words(value: object) -> object:
    return [word for part in value.split(",") if (word := part.strip())] if isinstance(value, str) else value


def _routes(value: object) -> object:
    if not isinstance(value, str):
        return value
    routes: dict[str, str] = {}
    for route in value.split(","):
        prefix, _, word = route.strip().rpartition("=")
        routes[prefix] = word
    return routes


Words = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_words)]
OnStale = Literal["allow", "deny"]
Routes = Annotated[dict[str, OnStale], NoDecode, BeforeValidator(_routes)]


class SidecarSettings(ThreePlaces):
    """Everything a sidecar alone is told. Frozen; raises `ConfigError` for what it refuses."""

    model_config = SettingsConfigDict(env_prefix="LAPSE_SIDECAR_")

    address: Name = Field("127.0.0.1", description="the address it listens on")
    port: int = Field(8470, ge=0, le=65_535, description="the port it listens on")
    service: Name = Field("sidecar", description="the name in touches and in the guard's reports")
    cookie: Name | None = Field(None, description="the cookie that is an opaque session id")
    cookie_form: Literal["plain", "percent", "raw", "connect", "flask-signed", "spring"] = Field(
        "plain", description="how that cookie's value names the session id"
    )
    subject_header: Name | None = Field(None, description="the trusted header that says an opaque cookie's subject")
    tenant_header: Name | None = Field(None, description="the trusted header that says its tenant")
    start_header: Name | None = Field(None, description="the trusted header that says its start, epoch ms")
    token_cookie: Name | None = Field(None, description="the cookie that holds a JWT")
    bearer: bool = Field(True, description="whether a bearer token is taken, as a JWT")
    jwks: Name | None = Field(None, description="the keys of JWTs, a file or a URL")
    key_file: Path | None = Field(None, description="or their one key: a public key (PEM, JWK) or a shared secret")
    algorithms: Words = Field((), description="accepted signatures, comma separated; none: all that fit the keys")
    issuer: Name | None = Field(None, description="the issuer that a token must name")
    audience: Name | None = Field(None, description="the audience that a token must name")
    leeway_s: int = Field(30, ge=0, le=3_600, description="by how much an issuer's clock may differ")
    jwks_refresh_s: int = Field(300, ge=1, le=86_400, description="how often the keys are read anew")
    session_claims: Words = Field(("sid", "jti"), description="the session id: the first of these claims that there is")
    subject_claim: Name = Field("sub", description="the claim that is the subject")
    tenant_claim: Name | None = Field(None, description="the claim that is the tenant; none: tokens name none")
    start_claims: Words = Field(
        (), description="the session's start: the first of these claims; none: auth_time, or iat beside a jti alone"
    )
    on_stale: OnStale = Field("allow", description="what a stale guard does")
    stale_routes: Routes = Field({}, description="the same by path: PREFIX=allow|deny, comma separated")
    require_session: bool = Field(False, description="whether a request without a session is refused")
    open_routes: Words = Field((), description="path prefixes where it passes all the same, comma separated")
    # Watermarks come once a second: a guard would flap below three of them.
    stale_after_ms: int = Field(
        10_000, ge=3_000, le=3_600_000, description="the guard is stale when its knowledge has this age"
    )
    touch_interval_ms: int = Field(5_000, ge=1, le=600_000, description="a session's touches are told at most so late")

    def __init__(self, **flags: Any) -> None:  # of any type: a flag is text, as a variable is
        super().__init__(**flags)

    @classmethod
    def _of_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the table `[sidecar]`."""
        table = values.get(SIDECAR_TABLE, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{SIDECAR_TABLE} in {FILE} is refused: it is a table, [{SIDECAR_TABLE}]")
        return table

    @classmethod
    def _explain(cls, error: ErrorDetails) -> str:
        name = str(error["loc"][0]) if error["loc"] else SIDECAR_TABLE
        if error["type"] == "extra_forbidden":
            return f"there is no setting {name} of the sidecar"
        allowed = error["msg"].removeprefix("Value error, ")
        return f"LAPSE_SIDECAR_{name.upper()}={error['input']!r} is refused: {allowed}"
