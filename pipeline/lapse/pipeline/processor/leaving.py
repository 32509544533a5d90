"""How does a worker that stops for good hand its partitions over at once?

Workers are static members of their group, so that one that restarts finds its partitions again and the others never
stop. For the same reason the client sends no LeaveGroup, and after a clean stop the partitions would lie idle for the
session timeout (6 s). So a worker that is told to stop (SIGTERM, SIGINT) and is not alone leaves the group by itself,
after its last checkpoints and after its client has ended, whose heartbeat would otherwise join again.

A worker that is told to restart (SIGHUP) keeps its place, as one does that crashed or was killed: whoever comes back
under its name within the session timeout goes on with its partitions, and no other worker notices (docs/adr/0009).
"""

import asyncio
import contextlib
import re
from typing import Final

import structlog
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from lapse.pipeline.clients import servers

__all__ = ["leave", "member_of"]

_log = structlog.get_logger("lapse.processor")

# Three requests of some milliseconds each. Who does not get through by then is missed after the session timeout.
_DEADLINE_S: Final = 3.0
# The broker names a static member <group.instance.id>-<uuid>.
_UUID: Final = re.compile(r"-[0-9A-Za-z_-]{22}|-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def member_of(worker: str, members: list[str]) -> str | None:
    """Return the id of the static member that this worker is; None if it is not among them."""
    for member in members:
        if member.startswith(worker) and _UUID.fullmatch(member[len(worker) :]):
            return member
    return None


async def leave(bootstrap: str, group: str, worker: str) -> bool:
    """Leave the group in this worker's name if there is anybody to hand over to; return whether it has left.

    It raises nothing: what is not handed over now is taken over after the session timeout.
    """
    client = AIOKafkaClient(bootstrap_servers=servers(bootstrap), client_id=f"{worker}-leaving")
    try:
        async with asyncio.timeout(_DEADLINE_S):
            await client.bootstrap()
            coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
            described = await client.send(coordinator, DescribeGroupsRequest([group]))
            members = [one[0] for one in described.groups[0][5]]
            ours = member_of(worker, members)
            if ours is None or len(members) == 1:
                return False
            answer = await client.send(coordinator, LeaveGroupRequest(group, ours))
            if answer.error_code:
                raise for_code(answer.error_code)
    except (KafkaError, TimeoutError) as broken:
        _log.warning("not handed over at once; the group will notice", reason=repr(broken))
        return False
    finally:
        with contextlib.suppress(KafkaError, TimeoutError):
            await client.close()
    _log.info("left the group: the others take over", member=ours)
    return True
