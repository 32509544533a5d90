"""Who ends sessions by order in the demo? An operator, who revokes now a session and now a whole subject."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from lapse.pipeline.demo.people import Crowd
from lapse.pipeline.operations.revocations import new_revocation_id, revoke
from lapse.pipeline.settings import Settings
from lapse.schemas import Revocation

__all__ = ["REVOCATION_INTERVAL_S", "revoke_some"]

REVOCATION_INTERVAL_S: Final = 0.8
"""75 orders a minute: enough for percentiles over two services, and few beside some 1,000 other endings."""

_SUBJECTS_SHARE: Final = 0.4


async def revoke_some(settings: Settings, crowd: Crowd, chance: random.Random | None = None) -> None:
    """Revoke somebody's session, or all of somebody's, again and again until cancelled.

    Raises:
        RuntimeFault: the broker does not take an order.
    """
    chance = chance or random.Random()
    while True:
        await asyncio.sleep(REVOCATION_INTERVAL_S)
        if not crowd.logged_in:
            continue
        target = chance.choice(list(crowd.logged_in.values()))
        whole_subject = chance.random() < _SUBJECTS_SHARE
        order = Revocation(
            id=new_revocation_id(),
            session=None if whole_subject else target.session,
            subject=target.subject,
            tenant=target.tenant,
            reason="credential_change" if whole_subject else "admin",
            by="operator@demo",
        )
        await revoke(settings, order)
