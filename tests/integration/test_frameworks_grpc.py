"""Are the examples for gRPC guarded, one of threads and one of asyncio, each a real server, over a real broker?"""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from lapse.consumers import session_reference
from lapse.pipeline.settings import Settings

from tests.integration._servers import WITHIN_S, serving

# A server of threads has no way to interrupt a method that waits: its call is cancelled.
ENDS_WITH = {"threads": grpc.StatusCode.CANCELLED, "loop": grpc.StatusCode.UNAUTHENTICATED}


def _command(kind: str, settings: Settings) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, f"{kind}.py", f"127.0.0.1:{port}", settings.kafka, settings.prefix]


_Call = Callable[..., Any]


def _cause(error: grpc.aio.AioRpcError) -> object:
    return dict(error.trailing_metadata()).get("lapse-cause")


@pytest.mark.parametrize("kind", ["threads", "loop"])
async def test_a_call_passes_is_touched_and_refused_and_a_stream_is_ended(settings: Settings, kind: str) -> None:
    async with (
        serving(settings, "grpc", _command(kind, settings)) as service,
        grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        login: _Call = channel.unary_unary("/shop.Files/Login")
        watch: _Call = channel.unary_stream("/shop.Files/Watch")
        ann, bob = [(("session", (await login(name)).decode()),) for name in (b"ann", b"bob")]
        assert await watch(b"").read() == b"None"
        first = watch(b"", metadata=ann)
        assert b"ann" in await first.read()
        first.cancel()
        polling = watch(b"", metadata=(*bob, ("x-lapse-background", "1")))
        assert b"bob" in await polling.read()
        assert session_reference(bob[0][1]) not in await service.touched(session_reference(ann[0][1]))
        stream = watch(b"", metadata=ann)  # its method waits for five seconds, from now on
        assert b"ann" in await stream.read()
        since = time.monotonic()
        await service.revoke("ann")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(stream.read(), 10)
        assert time.monotonic() - since < WITHIN_S
        assert ended.value.code() == ENDS_WITH[kind]
        for call in (login(b"ann", metadata=ann), watch(b"", metadata=ann).read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert (refused.value.code(), _cause(refused.value)) == (grpc.StatusCode.UNAUTHENTICATED, "revoked")
            assert refused.value.details() == "session ended: revoked"
        assert await login(b"carl", metadata=bob)
        polling.cancel()
