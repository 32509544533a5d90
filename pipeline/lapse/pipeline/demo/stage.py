"""What must stand before the people come, and what is left of it afterwards?

    1. a directory of its own for everything the demo writes, and a broker in it (or the one that LAPSE_KAFKA names)
    2. topics under a prefix of its own, and the policy
    3. a worker, which is `lapse run`, and the two services, each a process of its own

Everything is ended in the reverse order, however the demo ends. Of a named broker the topics are removed; the groups'
offsets go with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson
from pydantic import SecretStr

from lapse.pipeline.broker import find_or_start, stop_broker
from lapse.pipeline.demo.account import AccountReader
from lapse.pipeline.demo.processes import Child
from lapse.pipeline.demo.services import SERVICES, ServiceName, ServiceTask
from lapse.pipeline.demo.timeouts import POLICY
from lapse.pipeline.operations.connection import administering, describe_topics, raise_for
from lapse.pipeline.operations.policies import set_policy
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings

__all__ = ["Stage", "prepared"]

Say = Callable[[str], None]

_COOKIE_KEY_BYTES: Final = 32
_REMOVAL_TIMEOUT_S: Final = 15.0
_REMOVAL_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Stage:
    """What the demo plays on.

    Attributes:
        settings: of this demo alone.
        urls: where the services are.
    """

    settings: Settings
    worker: Child
    services: dict[ServiceName, Child]
    urls: dict[ServiceName, str]
    directory: Path

    @property
    def children(self) -> list[Child]:
        """Return all processes, in the order in which they are to be ended."""
        return [*self.services.values(), self.worker]

    def accounts(self) -> dict[ServiceName, AccountReader]:
        """Return readers of the services' accounts, from their start."""
        return {service: AccountReader(_account(self.directory, service)) for service in self.services}

    async def stop(self) -> None:
        """End the services, then the worker, which has then read all that they had to tell."""
        await asyncio.gather(*(child.stop() for child in self.services.values()))
        await self.worker.stop()


@contextlib.asynccontextmanager
async def prepared(settings: Settings, say: Say) -> AsyncIterator[Stage]:
    """Give a stage, and leave nothing of it.

    Raises:
        RuntimeFault: there is no broker and nothing to start one with, or a process does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lapse-demo-")))
        kafka = await stack.enter_async_context(_broker(settings, directory / ".lapse", say))
        own = _own(settings, kafka, directory / ".lapse")
        await stack.enter_async_context(_topics(own))
        say("starting a worker and two services")
        worker = await _start_worker(stack, own, directory)
        services, urls = await _start_services(stack, own, directory)
        yield Stage(own, worker, services, urls, directory)


@contextlib.asynccontextmanager
async def _broker(settings: Settings, directory: Path, say: Say) -> AsyncIterator[str]:
    """Give bootstrap servers: the named ones, or those of a broker that is started here and erased afterwards."""
    named = settings.kafka if "kafka" in settings.model_fields_set else None
    say("starting a broker" if named is None else f"using the broker at {named}")
    try:
        handle = await asyncio.to_thread(find_or_start, named, directory, say)
        yield handle.bootstrap
    finally:
        # Interrupted while it starts, this waits for the start (they share a lock) and then ends what it started.
        if named is None:
            await asyncio.shield(asyncio.to_thread(stop_broker, directory, erase=True))


def _own(settings: Settings, kafka: str, directory: Path) -> Settings:
    """Return the settings with all that keeps this demo apart from whatever else uses the broker."""
    prefix = f"demo-{secrets.token_hex(4)}."
    return settings.model_copy(
        update={
            "kafka": kafka,
            "directory": directory,
            "prefix": prefix,
            "group": f"{prefix}processor",
            "worker": "demo-worker",
            "worker_key_given": SecretStr(secrets.token_urlsafe(32)),
        }
    )


@contextlib.asynccontextmanager
async def _topics(settings: Settings) -> AsyncIterator[None]:
    try:
        await apply_topics(settings)
        await set_policy(settings, POLICY)
        yield
    finally:
        # Of a broker of ours this is soon erased with it; of a named one nothing may stay.
        await _remove_topics(settings)


async def _remove_topics(settings: Settings) -> None:
    async with administering(settings) as admin:

        async def ours() -> list[str]:
            return [name for name in await describe_topics(admin) if name.startswith(settings.prefix)]

        if found := await ours():
            response = await admin.delete_topics(found)
            for name, code, *_ in response.topic_error_codes:
                raise_for(code, None, f"{name} cannot be deleted at {settings.kafka}")
        # The controller has agreed; a broker shows it a moment later.
        async with asyncio.timeout(_REMOVAL_TIMEOUT_S):
            while await ours():  # noqa: ASYNC110  # a broker tells of it only when it is asked
                await asyncio.sleep(_REMOVAL_POLL_S)


async def _start_worker(stack: contextlib.AsyncExitStack, settings: Settings, directory: Path) -> Child:
    worker = await Child.start(
        "worker", ["-m", "lapse.pipeline.cli", "run"], directory=directory, environment=_as_environment(settings)
    )
    stack.push_async_callback(worker.stop)
    return worker


async def _start_services(
    stack: contextlib.AsyncExitStack, settings: Settings, directory: Path
) -> tuple[dict[ServiceName, Child], dict[ServiceName, str]]:
    cookie_key = secrets.token_hex(_COOKIE_KEY_BYTES)
    services: dict[ServiceName, Child] = {}
    for service in SERVICES:
        task = ServiceTask(
            service=service,
            kafka=settings.kafka,
            prefix=settings.prefix,
            account=str(_account(directory, service)),
            cookie_key=cookie_key,
            session_life_max_ms=settings.session_life_max_ms,
        )
        services[service] = await Child.start(
            service,
            ["-m", "lapse.pipeline.demo.service_process"],
            directory=directory,
            environment={},
            first_line=orjson.dumps(asdict(task)),
        )
        stack.push_async_callback(services[service].stop)
    told = await asyncio.gather(*(child.told() for child in services.values()))
    ports = {service: answer["port"] for service, answer in zip(services, told, strict=True)}
    return services, {service: f"http://127.0.0.1:{port}" for service, port in ports.items()}


def _account(directory: Path, service: ServiceName) -> Path:
    return directory / f"{service}.jsonl"


def _as_environment(settings: Settings) -> dict[str, str]:
    """Return the settings as the variables that give a process the same ones."""
    shown = [name for name, field in Settings.model_fields.items() if field.validation_alias is None]
    values = {f"LAPSE_{name.upper()}": getattr(settings, name) for name in shown}
    values["LAPSE_WORKER_KEY"] = settings.worker_key.decode()
    return {name: str(value) for name, value in values.items() if value is not None}
