"""What is wrong with an argument that a record's model refuses?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lapse.pipeline.cli.command import usage

__all__ = ["explained"]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the refusal of a record into a usage error that names the field and not its value."""
    from pydantic import ValidationError

    from lapse.schemas.errors import BadRecord, ConfigError

    try:
        yield
    except (BadRecord, ConfigError) as refused:
        usage(str(refused))
    except ValidationError as refused:
        error = refused.errors(include_input=False)[0]
        field = ".".join(str(part) for part in error["loc"]) or "the target"
        # The one pattern of a field that can be given here: a tenant's, which the model writes as an expression.
        slash = error["type"] == "string_pattern_mismatch" and "tenant" in error["loc"]
        usage(f"{field}: {'must not contain /' if slash else error['msg'].removeprefix('Value error, ')}")
