"""`lapse sidecar`: the guard of services in any language, behind their proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import command, say, usage

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "sidecar", (*flags.LOG, "session_life_max_ms"), own=flags.SIDECAR)(sidecar)


def sidecar(settings: Settings, **told: Any) -> None:
    """Answer a proxy's questions, "may this request pass?", until told to stop (Ctrl-C, SIGTERM).

    nginx, Traefik, Caddy and Envoy ask at /check before they pass a request on: docs/sidecar.md has the configuration
    of each. Say at least what a session is: --cookie, or --jwks or --key-file. Its own settings are variables
    LAPSE_SIDECAR_<NAME>, and lines of the table [sidecar] in lapse.toml.
    """
    try:
        from lapse.consumers.sidecar.config import SidecarConfig
        from lapse.consumers.sidecar.server import serve
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("lapse"):
            raise
        usage(f"{missing.name} is not installed: pip install 'lapse[pipeline,sidecar]' brings the sidecar")
    from lapse.pipeline.sidecar_settings import SidecarSettings
    from lapse.schemas.errors import ConfigError

    try:
        config = SidecarConfig(
            bootstrap_servers=settings.kafka,
            prefix=settings.prefix,
            reference_key=settings.reference_key,
            session_life_max_ms=settings.session_life_max_ms,
            **SidecarSettings(**told).model_dump(),
        )
        serve(config, lambda address: say(f"the sidecar of {config.service} answers at {address}/check; Ctrl-C ends"))
    except ConfigError as refused:
        usage(str(refused))
