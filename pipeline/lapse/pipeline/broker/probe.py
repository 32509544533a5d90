"""Is there a Kafka broker at this address, and does it serve?

An open port is not yet a broker: in its first second a starting broker accepts connections and knows no brokers, not
even itself, and a topic created then is refused. So the question asked is Kafka's own, a Metadata request of version 1
without topics, written by hand because it must be answerable from plain code (in a fixture, in a command), with no
event loop, and before any client library has anything to retry on:

    request   int32 size · int16 api key 3 · int16 version 1 · int32 correlation id · int16 length + client id ·
              int32 0 topics
    response  int32 size · int32 correlation id · int32 count · brokers ...

Source: https://kafka.apache.org/protocol, "Metadata API (Key: 3)".
"""

from __future__ import annotations

import socket
import struct

__all__ = ["brokers_serving"]

_CLIENT = b"lapse-probe"
_REQUEST = struct.pack(f">hhih{len(_CLIENT)}si", 3, 1, 1, len(_CLIENT), _CLIENT, 0)

# An answer lists the brokers: even 1000 of them with 256 characters of name each are below 300 kB. What claims more is
# some other protocol's greeting read as a length.
_RESPONSE_BYTES_MAX = 1 << 20


def brokers_serving(bootstrap: str, timeout_s: float = 2.0) -> int:
    """Return how many brokers the first server that answers knows to be serving; 0 if none answers in time.

    Args:
        bootstrap: `host:port`, several separated by commas; asked in this order.
        timeout_s: for each of them, seconds of this machine's clock.
    """
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
                if (count := _ask(connection)) > 0:
                    return count
        except (OSError, ValueError, EOFError):
            continue
    return 0


def _ask(connection: socket.socket) -> int:
    connection.sendall(struct.pack(">i", len(_REQUEST)) + _REQUEST)
    (size,) = struct.unpack(">i", _receive(connection, 4))
    if not 8 <= size <= _RESPONSE_BYTES_MAX:
        raise EOFError("not an answer of Kafka")
    _, count = struct.unpack(">ii", _receive(connection, size)[:8])
    return int(count)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise EOFError("the connection was closed")
        received += part
    return received
