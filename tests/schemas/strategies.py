"""Records and their damage, drawn for property tests from the published JSON Schemas.

Values are drawn at their bounds as often as between them, for that is where two readers differ.
"""

import re
from typing import Any

from hypothesis import strategies as st

__all__ = ["damaged", "json_values", "valid_values"]

# Surrogates are no UTF-8; everything else may stand in a name.
_CHARACTERS = st.characters(exclude_categories=["Cs"])
_CHARACTERS_BUT_SLASH = st.characters(exclude_categories=["Cs"], exclude_characters="/")
# What a careless or hostile writer puts where something else belongs: each is valid somewhere.
_MISPLACED: list[Any] = [None, True, False, 0, -1, 2**63, 0.5, "", "1", "a/b", "x" * 257, [], {}]
_KEYS = st.text(_CHARACTERS, max_size=8)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, of types and sizes near those of records."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.sampled_from([0, 1, -1, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 1.0, 0.5, 1e300])
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(["", "1", "true", "null", "a/b", "idle", "\x00", "é", "𝄞", "x" * 256, "x" * 257])
        | st.text(_CHARACTERS, max_size=20)
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_KEYS, inner, max_size=4),
        max_leaves=8,
    )


def valid_values(schema: dict[str, Any], root: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Values that the schema accepts, of the keywords that ours use. Optional fields come and go."""
    root = schema if root is None else root
    if "$ref" in schema:
        return valid_values(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema and "properties" not in schema:
        return st.one_of([valid_values(choice, root) for choice in schema["anyOf"]])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema["minimum"], schema["maximum"]
            return st.sampled_from([low, high]) | st.integers(low, high)
        case "number":
            return st.integers(0, 10**6) | st.floats(0, 1e12, allow_nan=False)
        case "string":
            return _strings(schema)
        case "array":
            return _arrays(schema, root)
        case "object":
            return _objects(schema, root)
        case unknown:
            raise AssertionError(f"the schemas use {unknown!r}, which the strategies do not know")


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), schema.get("maxLength", 300)
    characters = _CHARACTERS_BUT_SLASH if "pattern" in schema else _CHARACTERS
    found = st.text(characters, min_size=low, max_size=min(high, 12)) | st.sampled_from(["𝄞" * high, "x" * high])
    return found if "pattern" not in schema else found.filter(re.compile(schema["pattern"]).search)


def _arrays(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" not in schema:
        return st.lists(valid_values(schema["items"], root), max_size=4)
    items = [valid_values(item, root) for item in schema["prefixItems"]]
    lengths = range(schema["minItems"], len(items) + 1)
    return st.one_of([st.tuples(*items[:length]).map(list) for length in lengths])


def _objects(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        keys = _strings(schema.get("propertyNames", {"minLength": 1, "maxLength": 256}))
        return st.dictionaries(keys, valid_values(schema["additionalProperties"], root), max_size=3)
    fields = {name: valid_values(field, root) for name, field in schema["properties"].items()}
    required = set(schema.get("required", ()))
    found = st.fixed_dictionaries(
        {name: field for name, field in fields.items() if name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )
    # The rule about a revocation's target is the one that stands beside the properties.
    return found.filter(_has_one_target) if "oneOf" in schema else found


def _has_one_target(revocation: dict[str, Any]) -> bool:
    narrower = [revocation.get(name) for name in ("session", "subject", "tenant")]
    return bool(revocation.get("everyone", False)) == all(value is None for value in narrower)


@st.composite
def damaged(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    """A valid value with one thing in it dropped, replaced, added or renamed: often invalid, not always."""
    value = draw(values)
    places: list[tuple[Any, Any]] = []

    def collect(container: Any) -> None:
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            if isinstance(container[key], (dict, list)):
                collect(container[key])

    collect(value)
    container, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["drop", "replace", "add"])):
        case "drop":
            del container[key]
        case "replace":
            container[key] = draw(st.sampled_from(_MISPLACED) | json_values())
        case _ if isinstance(container, dict):
            container[draw(st.text(_CHARACTERS, max_size=5))] = draw(json_values())
        case _:
            container.append(draw(json_values()))
    return value
