"""What stands for your JWT library here: HS256, with the standard library."""

import base64
import hashlib
import hmac
import json
import os
import time
from typing import Any

SECRET = os.environ["TOKEN_SECRET"].encode()


def _bytes_of(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verified_claims(token: str) -> dict[str, Any] | None:
    try:
        head, body, signature = token.split(".")
        right = hmac.digest(SECRET, f"{head}.{body}".encode(), hashlib.sha256)
        if json.loads(_bytes_of(head))["alg"] != "HS256" or not hmac.compare_digest(right, _bytes_of(signature)):
            return None
        claims: dict[str, Any] = json.loads(_bytes_of(body))
        return claims if claims["exp"] > time.time() else None
    except (ValueError, KeyError):
        return None
