"""When must sessions end? The records of `lapse.policies`, keyed by name.

A policy applies to sessions that name it, and to those that its `match` matches: every key given must match, each by
one of its values. Of all that apply to a session the smallest value of each limit wins; null is no limit. `match` null
or empty: by name only. A field that is absent has the built-in value, so that a forgotten field never lifts a limit.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from lapse.schemas.fields import Limit, Name, Names, Record, Value

__all__ = ["DEFAULT_POLICY", "Policy", "PolicyMatch"]

# NIST SP 800-63B-4 (AAL2) allows at most 1 h idle and 24 h in all; OWASP names 15 to 30 min idle and 4 to 8 h in all
# for office use. The built-in policy takes the wide end of the latter.
_IDLE_MS: Final = 1_800_000
_ABSOLUTE_MS: Final = 28_800_000
_HOLD_MAX_MS: Final = 3_600_000


class PolicyMatch(Value):
    """Which sessions a policy applies to without being named."""

    tenant: Annotated[Names | None, Field(description="Any of these tenants.")] = None
    service: Annotated[Names | None, Field(description="Started by any of these services.")] = None
    attributes: Annotated[dict[Name, Names] | None, Field(description="Each attribute has any of its values.")] = None

    @property
    def is_empty(self) -> bool:
        """Return whether it asks for nothing, and so matches nothing: the policy is by name only."""
        return self.tenant is None and self.service is None and not self.attributes


class Policy(Record):
    """The limits of a class of sessions."""

    type: Literal["policy"] = "policy"
    name: Annotated[Name, Field(description="The policy's name, and the record's key; `default` always exists.")]
    idle_ms: Annotated[Limit | None, Field(description="The longest pause; null: no limit.")] = _IDLE_MS
    absolute_ms: Annotated[Limit | None, Field(description="The longest session; null: no limit.")] = _ABSOLUTE_MS
    warn_before_ms: Annotated[
        Limit | None, Field(description="How long before it is due a session's end is announced; null: never.")
    ] = None
    hold_max_ms: Annotated[
        Limit | None, Field(description="The longest hold_ms of a touch; null: whatever the touch says.")
    ] = _HOLD_MAX_MS
    token_life_ms: Annotated[
        Limit | None,
        Field(description="The longest life of tokens, which denials outlive where there is no absolute limit."),
    ] = None
    match: Annotated[PolicyMatch | None, Field(description="Whom it applies to; null: by name only.")] = None
    by: Annotated[Name | None, Field(description="Who set it.")] = None
    note: Annotated[str | None, Field(description="Why, in words, for people.")] = None


DEFAULT_POLICY: Final = Policy(name="default")
"""In force until one named `default` is set: 30 min idle, 8 h absolute."""
