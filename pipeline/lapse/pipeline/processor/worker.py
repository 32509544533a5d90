"""How does a worker start, and how does it end?

    run(settings)     checks the topics, starts the core and Faust around it, and returns after a clean stop

It ends in one of three ways: cleanly after SIGTERM or SIGINT, with a last checkpoint of every partition; by an error
that it raises, having committed nothing since (whoever supervises it starts it again, and it goes on from its last
checkpoints); or by kill -9, which differs from an error in nothing that matters.
"""

import asyncio
from typing import Any

import faust
import structlog

from lapse.pipeline.operations.topics import WrongTopics, check_topics
from lapse.pipeline.processor.app import build_app
from lapse.pipeline.processor.core import Core
from lapse.pipeline.processor.logs import configure_logging
from lapse.pipeline.settings import Settings
from lapse.schemas import LapseError, RuntimeFault

__all__ = ["run", "serve"]

_log = structlog.get_logger("lapse.processor")


def run(settings: Settings, *, metrics_port: int | None = None) -> None:
    """Run a worker until it is told to stop.

    Args:
        settings: what it is told.
        metrics_port: where to serve Prometheus metrics; None: nowhere.

    Raises:
        ConfigError: the settings or the topics are not as they must be; nothing has run.
        RuntimeFault, InvariantError: the worker failed and has committed nothing since.
    """
    configure_logging()
    asyncio.run(serve(settings, metrics_port=metrics_port))


async def serve(settings: Settings, *, metrics_port: int | None = None) -> None:
    """Run a worker in this event loop until it is told to stop; see `run`. It takes SIGTERM and SIGINT."""
    problems = await check_topics(settings)
    if problems:
        raise WrongTopics(problems)
    crashed: list[asyncio.Task[Any]] = []
    core = Core(settings, crash=lambda error: crashed.append(asyncio.ensure_future(app.crash(error))))
    app = build_app(settings, core)
    worker = faust.Worker(app, loglevel="WARNING", quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    await core.start()
    if metrics_port is not None:
        core.metrics.serve(metrics_port)
    _log.info("started", worker=settings.worker, group=settings.group, kafka=settings.kafka, prefix=settings.prefix)
    try:
        await worker.start()
        await worker.stop()
    finally:
        await core.stop()
        await asyncio.gather(*crashed, return_exceptions=True)
    error = core.fault or worker.crash_reason
    if error is None:
        _log.info("stopped")
    elif isinstance(error, LapseError):
        raise error
    else:
        raise RuntimeFault(f"the worker failed: {error!r}") from error
