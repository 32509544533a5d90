"""Goal: what programs import from lapse.schemas is there, and changes only on purpose.

Method: the names, written out; each is documented and comes from one place; importing needs pydantic and orjson alone.
"""

import subprocess
import sys
from pathlib import Path

import lapse.schemas
from lapse import schemas
from lapse.schemas import BadRecord, ConfigError, InvariantError, LapseError, RuntimeFault

PUBLIC = {
    "AGE_MAX_MS",
    "ActivityRecord",
    "BadRecord",
    "Cause",
    "CleanupPolicy",
    "ClockTick",
    "ConfigError",
    "DEAD_LETTER_VALUE_BYTES_MAX",
    "DEFAULT_POLICY",
    "DURATION_MAX_MS",
    "DeadLetter",
    "EnforcementRecord",
    "Evidence",
    "ExpiryRecord",
    "GuardApplied",
    "GuardStatus",
    "INT64_MAX",
    "INT64_MIN",
    "InvariantError",
    "LapseError",
    "NAME_LENGTH_MAX",
    "NESTING_DEPTH_MAX",
    "PACKED_ENTRIES_MAX",
    "PackedTouch",
    "PackedTouches",
    "Policy",
    "PolicyAdopted",
    "PolicyMatch",
    "PropagationMs",
    "REASON_LENGTH_MAX",
    "RECORD_BYTES_MAX",
    "Record",
    "Revocation",
    "RevocationOrdered",
    "RuntimeFault",
    "SCHEMA_VERSION",
    "SessionClosed",
    "SessionElevated",
    "SessionEnded",
    "SessionExpiring",
    "SessionRefreshed",
    "SessionStarted",
    "SessionTouched",
    "Target",
    "TopicNames",
    "TopicSpec",
    "Violation",
    "Watermark",
    "catalogue",
    "encode",
    "encode_signed",
    "ending_id",
    "is_session_reference",
    "murmur2",
    "parse_activity",
    "parse_dead_letter",
    "parse_enforcement",
    "parse_expiry",
    "parse_packed_entry",
    "parse_policy",
    "parse_revocation",
    "parse_violation",
    "parse_warning",
    "partition_of",
    "session_reference",
    "sign",
    "subject_key",
    "verify",
}


def test_public_names_are_pinned() -> None:
    assert set(schemas.__all__) == PUBLIC
    assert len(schemas.__all__) == len(PUBLIC)
    assert all(hasattr(schemas, name) for name in PUBLIC)


def test_every_public_class_and_function_is_documented() -> None:
    own = [getattr(schemas, name) for name in sorted(PUBLIC)]
    for thing in own:
        if getattr(thing, "__module__", "").startswith("lapse.") and hasattr(thing, "__qualname__"):
            assert thing.__doc__, thing


def test_limits_are_those_of_the_design() -> None:
    assert schemas.SCHEMA_VERSION == 1
    assert schemas.RECORD_BYTES_MAX == 64 * 1024
    assert schemas.NESTING_DEPTH_MAX == 16
    assert schemas.NAME_LENGTH_MAX == 256
    assert schemas.PACKED_ENTRIES_MAX == 500
    assert schemas.AGE_MAX_MS == 3_600_000


def test_errors_have_one_root() -> None:
    for error in (ConfigError, BadRecord, RuntimeFault, InvariantError):
        assert error.__bases__ == (LapseError,)
    assert LapseError.__bases__ == (Exception,)
    assert str(BadRecord("why")) == BadRecord("why").reason == "why"


def test_package_is_typed_and_its_namespace_is_open() -> None:
    package = Path(lapse.schemas.__file__).parent
    assert (package / "py.typed").exists()
    assert not (package.parent / "__init__.py").exists()


def test_importing_the_schemas_imports_no_kafka_client() -> None:
    program = (
        "import sys, lapse.schemas;"
        "heavy = {'aiokafka', 'faust', 'msgspec', 'typer', 'lapse.consumers', 'lapse.pipeline'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
