"""What is wrong with an argument that a record's model refuses?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lapse.pipeline.cli.command import usage

__all__ = ["explained"]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the refusal of a record's model into a usage error that names the field and not its value."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as refused:
        error = refused.errors(include_input=False)[0]
        field = ".".join(str(part) for part in error["loc"]) or "the target"
        usage(f"{field}: {error['msg'].removeprefix('Value error, ')}")
