"""How does a session end where it lives: in a Redis, a table, or at somebody else's?

    Applier          follows the endings in a group of its own, and commits only what has had its effect
    effects.py       what an effect is
    indexed.py       the effect on a store that is known by session ids, found by references
    moving.py        how a session is known whose key in the store changes: Django's
    redis.py, sql.py, django.py, webhook.py    the effects, each with an extra of its own

Only the first three are imported here: each effect needs its own client. `lapse apply` starts them.
"""

from lapse.consumers.appliers.applier import Applier
from lapse.consumers.appliers.effects import Effect, Ending, Rejected, Unavailable
from lapse.consumers.appliers.indexed import IndexedEffect, SessionStore

__all__ = ["Applier", "Effect", "Ending", "IndexedEffect", "Rejected", "SessionStore", "Unavailable"]
