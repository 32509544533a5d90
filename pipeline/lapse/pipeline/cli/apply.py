"""`lapse apply`: end sessions where they live."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapse.pipeline.cli.command import command, fail, run_async, say, usage
from lapse.pipeline.cli.durations import BadDuration, parse_duration
from lapse.pipeline.cli.options import text_option
from lapse.pipeline.cli.refusals import explained

if TYPE_CHECKING:
    from lapse.consumers.appliers import Effect
    from lapse.pipeline.settings import Settings

__all__ = ["app"]

app = typer.Typer(
    help="End sessions where they live: in a Redis, a table, or at somebody else's.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[
    str, text_option("--name", "This applier's name: of its consumer group and in `lapse fleet`; one a store.")
]
Every = Annotated[
    str,
    typer.Option("--every", metavar="DURATION", help="How often the store is looked through for what was missed."),
]


@command(app, "redis")
def redis(
    settings: Settings,
    layout: Annotated[
        str | None, text_option("--layout", "Whose keys they are: flask, connect, django, django-cached-db or spring.")
    ] = None,
    template: Annotated[
        str | None, text_option("--template", "The sessions' keys, as 'sess:{id}', where they have another prefix.")
    ] = None,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Look through the store's keys, or go by hints alone.")
    ] = True,
    name: Name = "apply-redis",
    every: Every = "30s",
) -> int:
    """Delete ended sessions from a Redis, until Ctrl-C or SIGTERM.

    LAPSE_STORE names it: redis://:password@host:6379/0, rediss:// or unix://.
    """
    with _extra("redis"):
        from lapse.consumers.appliers.indexed import IndexedEffect
        from lapse.consumers.appliers.redis import LAYOUTS, Layout, RedisStore
    if layout is None and template is None:
        usage(f"whose keys are they? Give --layout ({', '.join(LAYOUTS)}) or --template")
    if layout is not None and layout not in LAYOUTS:
        usage(f"--layout: there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    interval_s = _seconds("--every", every)
    with explained():
        chosen = LAYOUTS[layout] if layout is not None else Layout(template or "")
        if layout is not None and template is not None:
            chosen = dataclasses.replace(chosen, template=template)
        store = RedisStore(_store(settings), chosen)
        effect = IndexedEffect(store, key=settings.reference_key, passes=scan, pass_interval_s=interval_s)
    return _run(settings, effect, name, remembers=True)


@command(app, "django")
def django(
    settings: Settings,
    table: Annotated[str, text_option("--table", "The session table.")] = "django_session",
    name: Name = "apply-django",
    every: Every = "30s",
) -> int:
    """Delete ended sessions from Django's session table, until Ctrl-C or SIGTERM.

    LAPSE_STORE names the database: postgresql://user:password@host/name or sqlite:///path.
    """
    from lapse.consumers.appliers.databases import connect
    from lapse.consumers.appliers.django import DjangoStore
    from lapse.consumers.appliers.indexed import IndexedEffect

    interval_s = _seconds("--every", every)
    with explained():
        store = DjangoStore(connect(_store(settings)), table)
        effect = IndexedEffect(store, key=settings.reference_key, pass_interval_s=interval_s)
    return _run(settings, effect, name, remembers=True)


@command(app, "sql")
def sql(
    settings: Settings,
    statement: Annotated[
        str,
        text_option(
            "--statement", "Run for each ending; it names :reference, and may name :subject, :tenant and :cause."
        ),
    ] = "DELETE FROM sessions WHERE reference = :reference",
    name: Name = "apply-sql",
    every: Every = "30s",
) -> int:
    """Run a statement for each ending, until Ctrl-C or SIGTERM; the session's row holds its reference.

    LAPSE_STORE names the database: postgresql://user:password@host/name or sqlite:///path.
    """
    from lapse.consumers.appliers.databases import connect
    from lapse.consumers.appliers.sql import SqlEffect

    interval_s = _seconds("--every", every)
    with explained():
        effect = SqlEffect(connect(_store(settings)), statement, look_interval_s=interval_s)
    return _run(settings, effect, name, remembers=True)


@command(app, "webhook")
def webhook(
    settings: Settings,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where each ending is posted to; https.")],
    allow: Annotated[
        list[str] | None,
        text_option("--allow", "A network that may be called though it is not public, as 10.0.0.0/8; may be repeated."),
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, max=20, metavar="N", help="Of one ending.")] = 5,
    patience: Annotated[
        str,
        typer.Option("--patience", metavar="DURATION", help="How long a receiver may be away before it is given up."),
    ] = "15m",
    since: Annotated[
        str, text_option("--from", "Where a new name begins: latest (endings from now on) or earliest (all there are).")
    ] = "latest",
    name: Name = "apply-webhook",
) -> int:
    """Post each ending to a URL, signed as Standard Webhooks has it, until Ctrl-C or SIGTERM.

    LAPSE_WEBHOOK_SECRET signs: whsec_ and base64 of at least 24 bytes. What cannot be delivered goes to the
    dead letters.
    """
    with _extra("webhook"):
        import stamina

        from lapse.consumers.appliers.addresses import parse_networks
        from lapse.consumers.appliers.webhook import WebhookEffect
    if since not in {"latest", "earliest"}:
        usage(f"--from: {since!r} is neither latest nor earliest")
    patience_s = _seconds("--patience", patience)
    if not settings.webhook_secrets:
        usage("LAPSE_WEBHOOK_SECRET is not set: whsec_ and the output of `openssl rand -base64 32`")
    stamina.instrumentation.set_on_retry_hooks([])  # each retry on standard output is no data of ours
    try:
        networks = parse_networks(allow or [])
    except ValueError as bad:
        usage(f"--allow: {bad}")
    with explained():
        effect = WebhookEffect(
            url, settings.webhook_secrets, allowed=networks, attempts=attempts, patience_s=patience_s
        )
    return _run(settings, effect, name, start=since)


def _run(settings: Settings, effect: Effect, name: str, *, start: str = "earliest", remembers: bool = False) -> int:
    import logging

    from lapse.consumers.appliers import Applier
    from lapse.consumers.appliers.indexed import MEMORY_S

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("aiokafka", "httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with explained():
        applier = Applier(
            settings.kafka,
            effect,
            name=name,
            prefix=settings.prefix,
            start="latest" if start == "latest" else "earliest",
            memory_ms=int(MEMORY_S * 1000) if remembers else 0,
        )
    say(f"{name} applies the endings of {settings.prefix}expiries at {settings.kafka}; Ctrl-C ends")
    run_async(_until_told(applier))
    return 0


async def _until_told(applier: Any) -> None:
    """Run until SIGTERM or Ctrl-C, or until what the applier was told turns out to be wrong."""
    import asyncio
    import signal

    from lapse.schemas.errors import LapseError

    running = asyncio.create_task(applier.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    except LapseError as error:
        fail(str(error))


def _store(settings: Settings) -> str:
    if settings.store is None:
        usage("LAPSE_STORE is not set: where do the sessions live? It is no flag, since it may hold a password")
    return settings.store


def _seconds(flag: str, text: str) -> float:
    try:
        return parse_duration(text) / 1000
    except BadDuration as bad:
        usage(f"{flag}: {bad}")


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing client into a line that says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "lapse").startswith("lapse"):
            raise
        fail(f"{missing.name} is not installed: pip install 'lapse[{name}]' brings it")
