"""Which sessions does a revocation order to end? The records of `lapse.revocations`.

The narrowest field given is the target; the wider ones place it:

    session [subject [tenant]]   that session, whenever it started
    subject [tenant]             the subject's sessions that started at or before the order (no tenant: the subject
                                 without one, which is another subject than the same name in a tenant)
    tenant                       all sessions of the tenant, likewise
    everyone                     all sessions, likewise; with any other target it is refused: one is a mistake

A target without a subject is written once to every partition with one id.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from lapse.schemas.fields import Name, Record, SessionRef, Subject, Tenant

__all__ = ["Revocation", "Target"]

Target = Literal["session", "subject", "tenant", "everyone"]


_NULL: Final = {"type": "null"}
_TEXT: Final = {"type": "string"}
# The model's rule about targets in the words of JSON Schema, so that the published schema refuses what the model does.
_ONE_TARGET: Final[dict[str, Any]] = {
    "oneOf": [
        {
            "title": "everyone, and no other target",
            "required": ["everyone"],
            "properties": {"everyone": {"const": True}, "session": _NULL, "subject": _NULL, "tenant": _NULL},
        },
        {
            "title": "a session, a subject or a tenant",
            "properties": {"everyone": {"const": False}},
            "anyOf": [
                {"required": ["session"], "properties": {"session": _TEXT}},
                {"required": ["subject"], "properties": {"subject": _TEXT}},
                {"required": ["tenant"], "properties": {"tenant": _TEXT}},
            ],
        },
    ]
}


class Revocation(Record):
    """An order to end sessions now."""

    model_config = ConfigDict(json_schema_extra=_ONE_TARGET)

    type: Literal["revocation"] = "revocation"
    id: Annotated[Name, Field(description="The order's id, unique; repeated orders of one id are one order.")]
    session: SessionRef | None = None
    subject: Subject | None = None
    tenant: Tenant | None = None
    everyone: Annotated[bool, Field(description="All sessions of all tenants; refused with any other target.")] = False
    reason: Annotated[Name | None, Field(description="Why, as a word: admin, credential_change, incident.")] = None
    note: Annotated[str | None, Field(description="Why, in words, for people.")] = None
    by: Annotated[Name | None, Field(description="Who ordered it.")] = None

    @model_validator(mode="after")
    def _has_one_target(self) -> "Revocation":
        narrower = self.session is not None or self.subject is not None or self.tenant is not None
        if self.everyone and narrower:
            raise ValueError("everyone excludes session, subject and tenant")
        if not self.everyone and not narrower:
            raise ValueError("needs a target: session, subject, tenant or everyone")
        return self

    @property
    def target(self) -> Target:
        """Return which field is the target: the narrowest that is given."""
        if self.session is not None:
            return "session"
        if self.subject is not None:
            return "subject"
        if self.tenant is not None:
            return "tenant"
        return "everyone"
