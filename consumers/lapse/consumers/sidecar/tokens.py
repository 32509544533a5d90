"""Is a token genuine, and what does it say?

A JWT is verified once: what it says is kept by its hash, until it expires or the keys change, for at most
`_KEPT_MAX` tokens. Which algorithms are accepted follows from the keys' types (or is set), never from the token.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet
from joserfc.jws import JWSRegistry
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry

from lapse.consumers.sidecar.config import ALGORITHMS, SidecarConfig
from lapse.consumers.sidecar.keys import KeyRing

__all__ = ["Claims", "RefusedToken", "Tokens"]

# A kept token is its hash and what was read of it: about 400 bytes, 8 MB in all.
_KEPT_MAX: Final = 20_000
_LENGTH_MAX: Final = 16_384
# Certificates may come in the header.
_HEADER_LENGTH_MAX: Final = 8_192
_INSTANT_MAX_S: Final = 100_000_000_000


class RefusedToken(Exception):
    """A token is not taken.

    Attributes:
        unverified: whether only the keys are missing, so that nothing can be said of it.
    """

    def __init__(self, detail: str, *, unverified: bool = False) -> None:
        super().__init__(detail)
        self.unverified = unverified


@dataclass(frozen=True, slots=True)
class Claims:
    """What a genuine token says; instants in epoch ms."""

    session_id: str
    subject: str
    tenant: str | None
    started_at: int | None


@dataclass(frozen=True, slots=True)
class _Kept:
    claims: Claims
    generation: int
    expires_s: float


class Tokens:
    """Reads tokens.

    Args:
        config: the sidecar's.
        ring: the keys.
        now: this machine's wall clock, epoch seconds: a token's `exp` and `nbf` are instants of its issuer's.
    """

    def __init__(self, config: SidecarConfig, ring: KeyRing, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._ring = ring
        self._now = now
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._expected: dict[str, ClaimsOption] = {}
        if config.issuer is not None:
            self._expected["iss"] = ClaimsOption(essential=True, value=config.issuer)
        if config.audience is not None:
            self._expected["aud"] = ClaimsOption(essential=True, value=config.audience)

    async def read(self, token: str) -> Claims:
        """Return what the token says.

        Raises:
            RefusedToken: it is not genuine, has expired, or cannot be verified at present.
        """
        if len(token) > _LENGTH_MAX or token.count(".") != 2 or not token.isascii():
            raise RefusedToken("the token is no signed JWT")
        digest = hashlib.sha256(token.encode("ascii")).digest()
        kept = self._kept.get(digest)
        if kept is not None and kept.generation == self._ring.generation:
            if self._now() >= kept.expires_s:
                raise RefusedToken("the token has expired")
            self._kept.move_to_end(digest)
            return kept.claims
        try:
            said = self._verify(token)
        except InvalidKeyIdError:
            if not await self._ring.hurry():
                raise RefusedToken("the token is signed by an unknown key") from None
            try:
                said = self._verify(token)
            except InvalidKeyIdError:
                raise RefusedToken("the token is signed by an unknown key") from None
        claims = self._claims(said)
        expires = said.get("exp")
        expires_s = math.inf if expires is None else expires + self._config.leeway_s
        self._kept[digest] = _Kept(claims, self._ring.generation, expires_s)
        if len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return claims

    def _verify(self, token: str) -> dict[str, Any]:
        keys = self._ring.keys
        if keys is None:
            raise RefusedToken("tokens cannot be verified at present", unverified=True)
        registry = JWSRegistry(algorithms=list(self._config.algorithms) or _algorithms(keys), strict_check_header=False)
        registry.max_header_length = _HEADER_LENGTH_MAX
        try:
            said = jwt.decode(token, keys, registry=registry).claims
            JWTClaimsRegistry(now=int(self._now()), leeway=self._config.leeway_s, **self._expected).validate(said)
        except InvalidKeyIdError:
            raise
        except ExpiredTokenError:
            raise RefusedToken("the token has expired") from None
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # Whoever sends it chooses what is in it: whatever it provokes, it is no token. Its text goes nowhere.
            raise RefusedToken("the token is not genuine, or not for this service") from None
        return said

    def _claims(self, said: dict[str, Any]) -> Claims:
        config = self._config
        of_session = next((name for name in config.session_claims if said.get(name) is not None), "")
        session_id = said.get(of_session)
        subject = said.get(config.subject_claim)
        tenant = None if config.tenant_claim is None else said.get(config.tenant_claim)
        # As `of_claims` of the frameworks has it, so that a session has the same start behind either.
        of_start = config.start_claims or (("auth_time", "iat") if of_session == "jti" else ("auth_time",))
        started = next((said[name] for name in of_start if said.get(name) is not None), None)
        if not isinstance(session_id, str) or not session_id:
            raise RefusedToken(f"the token names no session ({', '.join(config.session_claims)})")
        if not isinstance(subject, str) or not subject:
            raise RefusedToken(f"the token names no subject ({config.subject_claim})")
        if tenant is not None and (not isinstance(tenant, str) or not tenant):
            raise RefusedToken(f"the token's tenant ({config.tenant_claim}) is no text")
        return Claims(session_id, subject, tenant, self._started_at(started))

    def _started_at(self, started: object) -> int | None:
        if started is None:
            return None
        if isinstance(started, bool) or not isinstance(started, int | float) or not 0 <= started <= _INSTANT_MAX_S:
            raise RefusedToken("the token's start is no instant")
        # A start that is yet to come would be after every revocation.
        if started > self._now() + self._config.leeway_s:
            raise RefusedToken("the token's start is yet to come")
        return int(started * 1000)


def _algorithms(keys: Key | KeySet) -> list[str]:
    kinds = {key.key_type for key in (keys if isinstance(keys, KeySet) else [keys])}
    return [name for kind in sorted(kinds) for name in ALGORITHMS[kind]]
