"""How does a worker start, and how does it end?

    run(settings)     checks the topics, starts the core and Faust around it, and returns after a clean stop

It ends in one of three ways: cleanly after SIGTERM or SIGINT, with a last checkpoint of every partition, handing over
to the others at once (after SIGHUP it keeps its place in the group for a restart: leaving.py); by an error
that it raises, having committed nothing since (whoever supervises it starts it again, and it goes on from its last
checkpoints); or by kill -9, which differs from an error in nothing that matters.
"""

import asyncio
import os
import signal
from typing import Any, Final

import faust
import structlog

from lapse.pipeline.operations.topics import WrongTopics, check_topics
from lapse.pipeline.processor.app import ProcessorApp, build_app
from lapse.pipeline.processor.core import Core
from lapse.pipeline.processor.leaving import leave
from lapse.pipeline.processor.logs import configure_logging
from lapse.pipeline.settings import Settings
from lapse.schemas import LapseError, RuntimeFault

__all__ = ["run", "serve"]

# Faust that is stopped while it starts leaves its consumer thread behind: it is let start first, about a second.
_START_DEADLINE_S: Final = 20.0
# The last checkpoints (core: 15 s) and what Faust and the clients need to disconnect. A supervisor that kills earlier
# costs no more than a kill does.
_END_DEADLINE_S: Final = 40.0

_log = structlog.get_logger("lapse.processor")


def run(settings: Settings) -> None:
    """Run a worker until it is told to stop.

    Raises:
        ConfigError: the settings or the topics are not as they must be; nothing has run.
        RuntimeFault, InvariantError: the worker failed and has committed nothing since.
    """
    configure_logging()
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Run a worker in this event loop until it is told to stop; see `run`. It takes SIGTERM and SIGINT."""
    enough = asyncio.Event()
    restarting = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, enough.set)

    def restart() -> None:
        restarting.set()
        enough.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, restart)
    problems = await check_topics(settings)
    if problems:
        raise WrongTopics(problems)
    core = Core(settings, crash=lambda _: enough.set())
    worker = _Worker(build_app(settings, core))
    await core.start()
    if settings.metrics_port is not None:
        core.metrics.serve(settings.metrics_address, settings.metrics_port)
    _log.info("started", worker=settings.worker, group=settings.group, kafka=settings.kafka, prefix=settings.prefix)
    running = asyncio.create_task(worker.start(), name="lapse-faust")
    await _first(running, enough)
    await _first(running, worker.up, _START_DEADLINE_S)
    await _end(worker, core)
    failed = (await asyncio.gather(running, return_exceptions=True))[0]
    error = core.fault or worker.crash_reason or failed
    if error is None:
        if not restarting.is_set():
            await leave(settings.kafka, settings.group, settings.worker)
        _log.info("stopped")
    elif isinstance(error, LapseError):
        raise error
    else:
        raise RuntimeFault(f"the worker failed: {error!r}") from error


class _Worker(faust.Worker):
    """Faust's worker, which leaves signals, logging and standard output to us, and can be waited for."""

    def __init__(self, app: ProcessorApp) -> None:
        super().__init__(app, loglevel="WARNING", quiet=True, redirect_stdouts=False, override_logging=False)
        self.spinner = None
        self.up = asyncio.Event()
        self.ended = asyncio.Event()

    def install_signal_handlers(self) -> None:
        """Install none: `serve` has, before anything could be interrupted."""

    async def on_startup_finished(self) -> None:
        """Note that Faust is up."""
        self.up.set()

    async def stop(self) -> None:
        """Stop. Whoever calls it while it is stopping returns at once: wait for `ended`."""
        await super().stop()
        self.ended.set()


async def _first(task: "asyncio.Task[Any]", event: asyncio.Event, within_s: float | None = None) -> None:
    """Wait for the end of the task or for the event, whichever comes first."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _end(worker: _Worker, core: Core) -> None:
    """Bring Faust and the core to an end, by force if need be."""
    try:
        async with asyncio.timeout(_END_DEADLINE_S):
            stopping = asyncio.ensure_future(worker.stop())
            await worker.ended.wait()
            await stopping
            await core.stop()
    except TimeoutError:
        # Clients are known to hang when brokers are gone (aiokafka 659), and Faust's consumer thread keeps a process
        # alive. What was to be committed is; a process that neither works nor ends would keep its name in the group.
        _log.error("not stopped in time; ending by force", waited_s=_END_DEADLINE_S)
        os._exit(1)
