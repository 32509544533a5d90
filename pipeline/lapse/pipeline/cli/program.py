"""Which commands are there?"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any

import typer
import typer.core

from lapse.pipeline.cli import apply, broker, demo, fleet, policy, revoke, sidecar, topics, watch, worker

__all__ = ["app"]


class _InOrder(typer.core.TyperGroup):
    """Commands in the order in which a newcomer needs them; typer would list the groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ["broker", "topics", "run", "policy", "revoke", "watch", "fleet", "sidecar", "apply", "demo"]


# Help is plain text: it is what docs/cli.md holds, and rich's would take longer to load than the program itself.
app = typer.Typer(
    name="lapse",
    cls=_InOrder,
    help="Ends sessions on time, everywhere, and can prove it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lapse {importlib.metadata.version('lapse')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Ends sessions on time, everywhere, and can prove it.

    Settings are given as flags, as variables LAPSE_<NAME> or in lapse.toml, and win in this order.
    """


app.add_typer(broker.app, name="broker")
app.add_typer(topics.app, name="topics")
worker.register(app)
app.add_typer(policy.app, name="policy")
app.add_typer(revoke.app, name="revoke")
watch.register(app)
fleet.register(app)
sidecar.register(app)
app.add_typer(apply.app, name="apply")
demo.register(app)
