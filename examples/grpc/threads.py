"""A gRPC server of threads whose sessions end on time: `python threads.py ADDRESS KAFKA PREFIX`."""

import secrets
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from lapse.consumers import Identity, SyncActivityPublisher, SyncGuard, session_reference
from lapse.consumers.frameworks.grpc import SessionInterceptor, current_session

address, kafka, prefix = sys.argv[1:]
guard = SyncGuard(kafka, service="files", prefix=prefix)
publisher = SyncActivityPublisher(kafka, service="files", prefix=prefix)
logins: dict[object, Identity] = {}  # your session store


def login(user: bytes, context: Any) -> bytes:
    token = secrets.token_urlsafe(16)
    logins[token] = Identity(token, user.decode(), started_at=int(time.time() * 1000))
    publisher.started(session_reference(token), user.decode())
    return token.encode()


def watch(request: bytes, context: Any) -> Iterator[bytes]:
    while context.is_active():  # no more once the session has ended
        yield str(current_session()).encode()  # None: nobody has logged in
        time.sleep(5)


rpcs: Any = {"Login": grpc.unary_unary_rpc_method_handler(login), "Watch": grpc.unary_stream_rpc_method_handler(watch)}
guarded = SessionInterceptor(guard=guard, publisher=publisher, identify=lambda found: logins.get(found.get("session")))
server = grpc.server(ThreadPoolExecutor(16), interceptors=[guarded])
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shop.Files", rpcs)])
server.add_insecure_port(address)
server.start()
server.wait_for_termination()
