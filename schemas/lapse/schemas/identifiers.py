"""Which id does the ending of a session have?

A session ends once, so its ending's id is a function of its reference: replays, redelivery and a second worker come to
the same id, and readers may drop what they have seen.
"""

import binascii
import hashlib
from typing import Final

__all__ = ["ending_id"]

# The domain keeps the id from being the reference's own hash, should a reference ever be hashed elsewhere.
_DOMAIN: Final = b"lapse.ending\x00"
_LENGTH: Final = 22


def ending_id(session: str) -> str:
    """Return the id of the session's ending: base64url(SHA-256("lapse.ending" | 0x00 | reference))[:22]."""
    digest = hashlib.sha256(_DOMAIN + session.encode()).digest()
    # As base64.urlsafe_b64encode has it, in a third of the time: it counts in a burst of endings.
    return binascii.b2a_base64(digest, newline=False)[:_LENGTH].replace(b"+", b"-").replace(b"/", b"_").decode("ascii")
