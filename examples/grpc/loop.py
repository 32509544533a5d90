"""A gRPC server of asyncio whose sessions end on time: `python loop.py ADDRESS KAFKA PREFIX`."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from lapse.consumers import ActivityPublisher, Guard, Identity, session_reference
from lapse.consumers.frameworks.grpc import AioSessionInterceptor, current_session

logins: dict[object, Identity] = {}  # your session store


async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield str(current_session()).encode()  # None: nobody has logged in
    await asyncio.Event().wait()


async def main(address: str, **kafka: Any) -> None:
    async def login(user: bytes, context: Any) -> bytes:
        token = secrets.token_urlsafe(16)
        logins[token] = Identity(token, user.decode(), started_at=int(time.time() * 1000))
        publisher.started(session_reference(token), user.decode())
        return token.encode()

    async with Guard(**kafka) as guard, ActivityPublisher(**kafka) as publisher:
        whose = AioSessionInterceptor(guard=guard, publisher=publisher, identify=lambda m: logins.get(m.get("session")))
        server = grpc.aio.server(interceptors=[whose])
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        server.add_registered_method_handlers("shop.Files", {"Login": one(login), "Watch": many(watch)})
        server.add_insecure_port(address)
        await server.start()
        await server.wait_for_termination()


asyncio.run(main(sys.argv[1], bootstrap_servers=sys.argv[2], prefix=sys.argv[3], service="files"))
