"""In which order does the demo begin and end?

    1. the stage is set (stage.py), and the observer reads along
    2. once the worker owns every partition the people come, and the operator
    3. after --seconds, on Ctrl-C, or when a process or task fails, they stop; then the services, then the worker
    4. the summary is made, from the topics and the accounts
    5. the stage is cleared

A Ctrl-C before the people came ends the demo without a summary; a second one does not cut the clearing short.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import typer
from rich.console import Console
from rich.live import Live

from lapse.pipeline.cli.output import print_json
from lapse.pipeline.demo.observing import Observer
from lapse.pipeline.demo.people import Crowd
from lapse.pipeline.demo.processes import Child
from lapse.pipeline.demo.revoking import revoke_some
from lapse.pipeline.demo.stage import Stage, prepared
from lapse.pipeline.demo.summary import Result, summarize
from lapse.pipeline.demo.view import progress, summary, view
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault

__all__ = ["run"]

T = TypeVar("T")

_VIEW_INTERVAL_S: Final = 0.25
_PROGRESS_INTERVAL_S: Final = 10.0
# A worker imports for two seconds and joins its group in one; a busy machine may take many times as long.
_OWNED_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it


class _Interrupted(Exception):
    """Ctrl-C came before there was anything to sum up."""


def run(settings: Settings, seconds: float | None, as_json: bool) -> int:
    """Run the demo; see `lapse.pipeline.demo.run_demo`."""
    try:
        result = asyncio.run(_demo(settings, seconds))
    except _Interrupted:
        _say("stopped before anybody came")
        return _INTERRUPTED
    Console(stderr=as_json, highlight=False).print(summary(result))
    if as_json:
        print_json(result.as_json())
    return 0 if result.is_right else 1


async def _demo(settings: Settings, seconds: float | None) -> Result:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        stage = await _unless(stop, stack.enter_async_context(prepared(settings, _say)))
        observer = Observer(stage.settings, stage.accounts())
        observing = asyncio.create_task(_observe(observer))
        stack.push_async_callback(_cancel, observing)
        watching = [asyncio.create_task(_fail_when_ended(child)) for child in stage.children]
        stack.push_async_callback(_cancel, *watching)
        await _unless(stop, _owned(observer, stage, observing, *watching))
        crowd = Crowd(stage.urls)
        await _play(stage, observer, crowd, seconds, stop, [observing, *watching])
        await _cancel(*watching)
        stopped_at = time.time_ns() / 1_000_000
        _say("stopping the services and the worker")
        await stage.stop()
        await _cancel(observing)
        _say("reading everything again")
        return await summarize(stage.settings, stage.accounts(), crowd.counts, stopped_at)


async def _play(
    stage: Stage,
    observer: Observer,
    crowd: Crowd,
    seconds: float | None,
    stop: asyncio.Event,
    others: list[asyncio.Task[None]],
) -> None:
    """Let the people come, and return when it is over.

    Raises:
        RuntimeFault: a process ended, or the broker does not answer.
    """
    began_at = time.monotonic()
    tasks = [
        asyncio.create_task(crowd.run()),
        asyncio.create_task(revoke_some(stage.settings, crowd)),
        asyncio.create_task(_show(observer, crowd, began_at, seconds)),
    ]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopping, *tasks, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task is not stopping:
                task.result()  # all of them go on until they are cancelled: what is done has failed
    finally:
        await _cancel(stopping, *tasks)


async def _show(observer: Observer, crowd: Crowd, began_at: float, seconds: float | None) -> None:
    """Draw the view on a terminal, or write a line now and then where there is none."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
            _say(progress(observer, crowd, began_at))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(view(observer, crowd, began_at, seconds), refresh=True)
            await asyncio.sleep(_VIEW_INTERVAL_S)


async def _observe(observer: Observer) -> None:
    try:
        await observer.run()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


async def _owned(observer: Observer, stage: Stage, *others: asyncio.Task[None]) -> None:
    """Return once the worker owns every partition, which its watermarks show.

    Raises:
        RuntimeFault: it does not in time, or a process ended.
    """
    give_up_at = time.monotonic() + _OWNED_TIMEOUT_S
    while len(observer.watermarks) < stage.settings.partitions:
        for task in others:
            if task.done():
                task.result()
        if time.monotonic() > give_up_at:
            raise RuntimeFault(
                f"the worker owns {len(observer.watermarks)} of {stage.settings.partitions} partitions after "
                f"{_OWNED_TIMEOUT_S:.0f} s\n{stage.worker.last_words()}"
            )
        await asyncio.sleep(_POLL_S)


async def _fail_when_ended(child: Child) -> None:
    raise await child.ended()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, or cancel it and raise _Interrupted when it is to stop."""
    working, stopping = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _Interrupted
    finally:
        await _cancel(working, stopping)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _say(text: str) -> None:
    typer.echo(f"lapse demo: {text}", err=True)
