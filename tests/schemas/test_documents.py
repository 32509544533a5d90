"""Goal: what is published for other languages says what the models do, and is what is checked in.

Method: the files against the generator; the schemas against the codec over valid and damaged records, by an
implementation of JSON Schema that knows nothing of ours; the AsyncAPI document against the specification's rules.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lapse import schemas
from lapse.schemas import BadRecord, TopicNames
from lapse.schemas.examples import EXAMPLES
from lapse.schemas.generate import documents, main
from lapse.schemas.registry import RECORDS

from tests.schemas.strategies import damaged, valid_values
from tests.schemas.test_codec import KINDS, PARSERS

ROOT = Path(__file__).parents[2] / "schemas"
DOCUMENTS = documents()
TOPIC_FILES = {topic: f"json/{getattr(TopicNames(), topic)}.json" for topic in RECORDS}


def load(path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return document


@cache
def validator(path: str) -> Draft202012Validator:
    return Draft202012Validator(load(path))


def reads(topic: str, value: bytes) -> bool:
    """Return whether the codec takes the value whole, entries of a packed record included."""
    try:
        record = PARSERS[topic](value)
        if isinstance(record, schemas.PackedTouches):
            for index, entry in enumerate(record.touches):
                schemas.parse_packed_entry(entry, index)
    except BadRecord:
        return False
    return True


def has_integral_float(value: Any) -> bool:
    """Return whether 1.0 is in it: an integer to JSON Schema, and none to the codec."""
    if isinstance(value, dict):
        return any(has_integral_float(child) for child in value.values())
    if isinstance(value, list):
        return any(has_integral_float(child) for child in value)
    return isinstance(value, float) and value.is_integer()


def test_checked_in_documents_are_those_of_the_models() -> None:
    on_disk = {f"json/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "json").glob("*.json")}
    on_disk["asyncapi.json"] = (ROOT / "asyncapi.json").read_text(encoding="utf-8")
    assert on_disk == DOCUMENTS, "run: python -m lapse.schemas.generate"


def test_generator_writes_the_documents_and_removes_what_has_no_model(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "session.vanished.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    written = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json")}
    assert written == DOCUMENTS


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.startswith("json/")])
def test_each_schema_is_one_of_draft_2020_12_and_complete_in_itself(path: str) -> None:
    schema = load(path)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("urn:lapse:schema:1:")
    Draft202012Validator.check_schema(schema)
    references = re.findall(r'"\$ref": "([^"]*)"', DOCUMENTS[path])
    assert all(reference.startswith("#/$defs/") for reference in references)


@pytest.mark.parametrize(("topic", "kind"), KINDS)
def test_each_record_has_a_schema_with_a_description_and_a_valid_example(topic: str, kind: str) -> None:
    schema = load(f"json/{kind}.json")
    assert schema["description"]
    assert schema["properties"]["type"]["const"] == kind
    assert "type" in schema["required"]
    for example in schema["examples"]:
        validator(f"json/{kind}.json").validate(example)
        validator(TOPIC_FILES[topic]).validate(example)


def test_examples_fill_every_field_that_a_writer_may_set() -> None:
    # `v` has one value yet; `forwarded` and its `mac` are the owners' alone.
    for topic, kind in KINDS:
        fields = set(RECORDS[topic][kind].model_fields) - {"v", "forwarded"}
        assert fields - {"mac"} <= EXAMPLES[kind].keys() <= fields


@pytest.mark.parametrize(("topic", "kind"), KINDS)
def test_topic_schema_takes_exactly_its_own_types(topic: str, kind: str) -> None:
    for other, path in TOPIC_FILES.items():
        assert validator(path).is_valid(EXAMPLES[kind]) == (other == topic)


@pytest.mark.parametrize(("topic", "kind"), KINDS)
@given(data=st.data())
@settings(max_examples=40)
def test_property_schema_and_codec_take_the_same_records(topic: str, kind: str, data: st.DataObject) -> None:
    valid = valid_values(load(f"json/{kind}.json"))
    record = data.draw(damaged(valid) | damaged(damaged(valid)) | valid)
    assume(not has_integral_float(record))
    try:
        value = orjson.dumps(record)
    except TypeError:
        value = json.dumps(record).encode()  # integers above 64 bits
    assume(len(value) <= schemas.RECORD_BYTES_MAX)
    assert validator(TOPIC_FILES[topic]).is_valid(record) == reads(topic, value)
    if isinstance(record, dict) and record.get("type") == kind:
        assert validator(f"json/{kind}.json").is_valid(record) == reads(topic, value)


# --- AsyncAPI ---------------------------------------------------------------------------------------------------------


def _resolve(document: dict[str, Any], reference: str) -> Any:
    """Return what a reference points to, in the document or in the files beside it."""
    path, _, pointer = reference.partition("#")
    found: Any = load(path.removeprefix("./")) if path else document
    for step in pointer.strip("/").split("/") if pointer.strip("/") else []:
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [reference for child in value.values() for reference in _references(child)]
    return [reference for child in value for reference in _references(child)] if isinstance(value, list) else []


# The parts of the AsyncAPI 3.0.0 schema (asyncapi.com/definitions/3.0.0) and of the Kafka bindings 0.5.0 that the
# document uses, closed: what is not listed here is refused there as well.
_EXTENSION: dict[str, Any] = {"^x-[\\w\\d\\.\\-\\_]+$": {}}
_REFERENCE = {"type": "object", "required": ["$ref"], "properties": {"$ref": {"type": "string"}}}
_KEYS = {"pattern": "^[A-Za-z0-9_\\-\\.]+$"}
_ASYNCAPI_SCHEMA = {
    "type": "object",
    "required": ["asyncapi", "info"],
    "additionalProperties": False,
    "properties": {
        "asyncapi": {"const": "3.0.0"},
        "id": {"type": "string", "pattern": "^urn:"},
        "info": {
            "type": "object",
            "required": ["title", "version"],
            "additionalProperties": False,
            "properties": {
                "title": {"type": "string"},
                "version": {"type": "string"},
                "description": {"type": "string"},
                "license": {"type": "object", "required": ["name"], "properties": {"url": {"type": "string"}}},
            },
        },
        "defaultContentType": {"const": "application/json"},
        "channels": {"type": "object", "propertyNames": _KEYS, "additionalProperties": {"$ref": "#/$defs/channel"}},
        "operations": {"type": "object", "propertyNames": _KEYS, "additionalProperties": {"$ref": "#/$defs/operation"}},
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "messages": {
                    "type": "object",
                    "propertyNames": _KEYS,
                    "additionalProperties": {"$ref": "#/$defs/message"},
                }
            },
        },
    },
    "$defs": {
        "channel": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": _EXTENSION,
            "required": ["address", "messages", "bindings"],
            "properties": {
                "address": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,249}$"},
                "title": {"type": "string"},
                "description": {"type": "string"},
                "messages": {"type": "object", "propertyNames": _KEYS, "additionalProperties": _REFERENCE},
                "bindings": {
                    "type": "object",
                    "required": ["kafka"],
                    "additionalProperties": False,
                    "properties": {"kafka": {"$ref": "#/$defs/topic"}},
                },
            },
        },
        "topic": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "topic": {"type": "string"},
                "partitions": {"type": "integer", "minimum": 1},
                "replicas": {"type": "integer", "minimum": 1},
                "topicConfiguration": {
                    "type": "object",
                    "properties": {
                        "cleanup.policy": {"type": "array", "items": {"enum": ["compact", "delete"]}},
                        "retention.ms": {"type": "integer", "minimum": -1},
                        "max.message.bytes": {"type": "integer", "minimum": 0},
                    },
                },
                "bindingVersion": {"const": "0.5.0"},
            },
        },
        "operation": {
            "type": "object",
            "required": ["action", "channel"],
            "additionalProperties": False,
            "properties": {
                "action": {"enum": ["send", "receive"]},
                "channel": _REFERENCE,
                "summary": {"type": "string"},
                "messages": {"type": "array", "items": _REFERENCE},
            },
        },
        "message": {
            "type": "object",
            "required": ["name", "payload", "bindings"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "title": {"type": "string"},
                "summary": {"type": "string"},
                "payload": {
                    "type": "object",
                    "required": ["schemaFormat", "schema"],
                    "additionalProperties": False,
                    "properties": {"schemaFormat": {"type": "string"}, "schema": _REFERENCE},
                },
                "bindings": {
                    "type": "object",
                    "properties": {
                        "kafka": {
                            "type": "object",
                            "required": ["key"],
                            "additionalProperties": False,
                            "properties": {"key": {"type": "object"}, "bindingVersion": {"const": "0.5.0"}},
                        }
                    },
                },
                "examples": {"type": "array", "items": {"type": "object", "required": ["payload"]}},
            },
        },
    },
}


def test_asyncapi_document_has_the_form_of_version_3() -> None:
    Draft202012Validator.check_schema(_ASYNCAPI_SCHEMA)
    Draft202012Validator(_ASYNCAPI_SCHEMA).validate(load("asyncapi.json"))


def test_form_of_version_3_refuses_a_document_of_version_2() -> None:
    old = load("asyncapi.json")
    old["channels"]["activity"]["publish"] = {"message": {}}
    assert not Draft202012Validator(_ASYNCAPI_SCHEMA).is_valid(old)


def test_asyncapi_references_all_lead_somewhere() -> None:
    document = load("asyncapi.json")
    references = _references(document)
    assert len(references) > len(KINDS) * 2
    for reference in references:
        assert _resolve(document, reference) is not None


def test_asyncapi_messages_of_an_operation_are_its_channels() -> None:
    document = load("asyncapi.json")
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_asyncapi_channels_are_the_topics_with_their_settings() -> None:
    document = load("asyncapi.json")
    specs = schemas.catalogue(TopicNames(), partitions=8, replication=3, session_life_max_ms=2_592_000_000)
    by_address = {channel["address"]: channel for channel in document["channels"].values()}
    assert by_address.keys() == {spec.name for spec in specs}
    for spec in specs:
        binding = by_address[spec.name]["bindings"]["kafka"]
        assert binding["partitions"] == spec.partitions
        assert binding["topicConfiguration"]["cleanup.policy"] == spec.cleanup_policy.split(",")
        assert binding["topicConfiguration"]["message.timestamp.type"] == spec.timestamp_type
        assert by_address[spec.name]["x-co-partitioned"] == spec.co_partitioned


def test_asyncapi_has_each_record_on_its_topic_with_its_schema() -> None:
    document = load("asyncapi.json")
    for topic, models in RECORDS.items():
        assert list(document["channels"][topic]["messages"]) == list(models)
    for kind, message in document["components"]["messages"].items():
        assert _resolve(document, message["payload"]["schema"]["$ref"])["properties"]["type"]["const"] == kind
    assert document["components"]["messages"].keys() == {kind for _, kind in KINDS}
