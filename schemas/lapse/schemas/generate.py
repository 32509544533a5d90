"""How do programs in other languages learn the records? From documents generated from the models.

    python -m lapse.schemas.generate [DIRECTORY]     writes them (default: `schemas/` of this checkout)

    json/<type>.json         one record, JSON Schema Draft 2020-12, complete in itself
    json/lapse.<topic>.json  what a topic's values are: one of its records, told apart by `type`
    asyncapi.json            AsyncAPI 3.0: topics with their Kafka settings, keys and messages; refers to json/

They are checked in, and a test compares them with the models. A schema says what a reader accepts, but for what JSON
Schema cannot say: the size of a value, its nesting, and that 1.0 is not an integer. An entry of a packed record that
its schema refuses is dead-lettered alone.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from lapse.schemas.examples import EXAMPLES
from lapse.schemas.fields import Record
from lapse.schemas.registry import RECORDS
from lapse.schemas.topics import TopicNames, TopicSpec, catalogue

__all__ = ["documents", "main"]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"
_KAFKA_BINDING_VERSION: Final = "0.5.0"
_INFO_VERSION: Final = "1.0.0"
_NAMES: Final = TopicNames()

# The settings of an installation that the documents show: the defaults on three brokers.
_PARTITIONS: Final = 8
_REPLICATION: Final = 3
_SESSION_LIFE_MAX_MS: Final = 2_592_000_000

# From the processor's side, as AsyncAPI 3 wants it: what others write it receives.
_RECEIVED: Final = ("activity", "revocations", "policies")
_SENT: Final = ("expiries", "warnings", "violations", "dead_letters")


class _Generator(GenerateJsonSchema):
    """pydantic's generator without titles that only repeat the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def documents() -> dict[str, str]:
    """Return the documents: path below `schemas/`, and text."""
    found: dict[str, JsonSchemaValue] = {}
    for topic, models in RECORDS.items():
        for kind, model in models.items():
            found[f"json/{kind}.json"] = _record_schema(kind, model)
        found[f"json/{_topic_name(topic)}.json"] = _topic_schema(topic, models)
    found["asyncapi.json"] = _asyncapi()
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in found.items()}


def _topic_name(topic: str) -> str:
    name: str = getattr(_NAMES, topic)
    return name


def _record_schema(kind: str, model: type[Record]) -> JsonSchemaValue:
    schema = model.model_json_schema(schema_generator=_Generator, mode="validation")
    return {
        "$schema": _DIALECT,
        "$id": f"urn:lapse:schema:1:{kind}",
        **_with_type_required(schema),
        "examples": [EXAMPLES[kind]],
    }


def _topic_schema(topic: str, models: Mapping[str, type[Record]]) -> JsonSchemaValue:
    refs, schema = models_json_schema([(model, "validation") for model in models.values()], schema_generator=_Generator)
    definitions = schema["$defs"]
    choices = [refs[(model, "validation")] for model in models.values()]
    for choice in choices:
        name = choice["$ref"].removeprefix("#/$defs/")
        definitions[name] = _with_type_required(definitions[name])
    return {
        "$schema": _DIALECT,
        "$id": f"urn:lapse:schema:1:topic:{topic}",
        "title": _topic_name(topic),
        "description": f"A value of {_topic_name(topic)}: {_spec_of(topic).what}.",
        "oneOf": choices,
        "$defs": definitions,
    }


def _with_type_required(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a whole value, which a reader knows by `type` alone: there it has no default."""
    properties = dict(schema["properties"])
    properties["type"] = {name: value for name, value in properties["type"].items() if name != "default"}
    return {**schema, "properties": properties, "required": ["type", *schema.get("required", [])]}


def _catalogue() -> dict[str, TopicSpec]:
    specs = catalogue(
        _NAMES, partitions=_PARTITIONS, replication=_REPLICATION, session_life_max_ms=_SESSION_LIFE_MAX_MS
    )
    return {spec.name: spec for spec in specs}


def _spec_of(topic: str) -> TopicSpec:
    return _catalogue()[_topic_name(topic)]


def _asyncapi() -> JsonSchemaValue:
    topics = [*RECORDS, "state"]
    return {
        "asyncapi": "3.0.0",
        "id": "urn:lapse:asyncapi:1",
        "info": {
            "title": "Lapse",
            "version": _INFO_VERSION,
            "description": "Ends sessions on time, everywhere. All values are JSON objects in UTF-8 of at most 64 KiB; "
            "unknown fields are ignored; `*_at` are epoch milliseconds of the log's scale, `*_ms` durations. Topics "
            "that are co-partitioned (x-co-partitioned) have one partition count, and what belongs to a subject has "
            "the same partition number in all: (murmur2(key) & 0x7fffffff) % partitions of the key `tenant/subject`, "
            "or `subject` without a tenant. The prefix `lapse.`, partitions and replicas are settings.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic: _channel(topic) for topic in topics},
        "operations": {
            **{f"receive_{topic}": _operation("receive", topic) for topic in _RECEIVED},
            **{f"send_{topic}": _operation("send", topic) for topic in _SENT},
        },
        "components": {
            "messages": {
                kind: _message(topic, kind, model)
                for topic, models in RECORDS.items()
                for kind, model in models.items()
            }
        },
    }


def _channel(topic: str) -> JsonSchemaValue:
    spec = _spec_of(topic)
    settings: dict[str, Any] = dict(spec.config)
    # The binding types these; the others stay as Kafka's admin protocol writes them.
    settings["cleanup.policy"] = settings["cleanup.policy"].split(",")
    for name in ("retention.ms", "max.message.bytes"):
        if name in settings:
            settings[name] = int(settings[name])
    return {
        "address": spec.name,
        "title": spec.name,
        "description": f"{spec.what[:1].upper()}{spec.what[1:]}. Written by: {spec.written_by}. Key: {spec.key}.",
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in RECORDS.get(topic, ())},
        "x-co-partitioned": spec.co_partitioned,
        **({} if spec.trimmed_after_ms is None else {"x-trimmed-after-ms": spec.trimmed_after_ms}),
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "partitions": spec.partitions,
                "replicas": spec.replication,
                "topicConfiguration": settings,
                "bindingVersion": _KAFKA_BINDING_VERSION,
            }
        },
    }


def _operation(action: str, topic: str) -> JsonSchemaValue:
    spec = _spec_of(topic)
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "summary": f"The processor {action}s {spec.name}: {spec.what}.",
        "messages": [{"$ref": f"#/channels/{topic}/messages/{kind}"} for kind in RECORDS[topic]],
    }


def _message(topic: str, kind: str, model: type[Record]) -> JsonSchemaValue:
    return {
        "name": kind,
        "title": model.__name__,
        "summary": (model.__doc__ or "").strip().partition("\n")[0],
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": {"$ref": f"./json/{kind}.json"}},
        "bindings": {
            "kafka": {
                "key": {"type": ["string", "null"], "description": _spec_of(topic).key},
                "bindingVersion": _KAFKA_BINDING_VERSION,
            }
        },
        "examples": [{"name": kind, "payload": EXAMPLES[kind]}],
    }


def main(arguments: list[str]) -> int:
    """Write the documents; what no model stands for any more is removed from json/."""
    directory = Path(arguments[0]) if arguments else Path(__file__).parents[2]
    wanted = documents()
    (directory / "json").mkdir(parents=True, exist_ok=True)
    for path in (directory / "json").glob("*.json"):
        if f"json/{path.name}" not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(wanted)} documents below {directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
