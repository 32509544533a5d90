"""What may users rely on? The public names, pinned: who takes one away or renames it does so knowingly."""

import subprocess
import sys
from pathlib import Path

import lapse.consumers
import lapse.consumers.activity
import lapse.consumers.appliers
import lapse.consumers.frameworks.asgi
import lapse.consumers.frameworks.django
import lapse.consumers.frameworks.fastapi
import lapse.consumers.frameworks.flask
import lapse.consumers.frameworks.grpc
import lapse.consumers.frameworks.identity
import lapse.consumers.frameworks.litestar
import lapse.consumers.frameworks.starlette
import lapse.consumers.frameworks.wsgi
import lapse.consumers.guard
import lapse.consumers.testing


def test_the_public_names_are_these() -> None:
    assert {module.__name__: sorted(module.__all__) for module in _MODULES} == {
        "lapse.consumers": [
            "ActiveSession",
            "ActivityPublisher",
            "Cause",
            "ConfigError",
            "Decision",
            "Ended",
            "Guard",
            "Hook",
            "Identity",
            "LapseError",
            "LapseMiddleware",
            "OnStale",
            "PublisherStats",
            "SyncActivityPublisher",
            "SyncGuard",
            "SyncHook",
            "is_session_reference",
            "session_reference",
        ],
        "lapse.consumers.activity": ["ActivityPublisher", "PublisherStats", "SyncActivityPublisher"],
        "lapse.consumers.appliers": [
            "Applier",
            "Effect",
            "Ending",
            "IndexedEffect",
            "Rejected",
            "SessionStore",
            "Unavailable",
        ],
        "lapse.consumers.guard": [
            "ALLOWED",
            "ALLOWED_STALE",
            "DENIED_STALE",
            "Decision",
            "Ended",
            "Guard",
            "Hook",
            "ON_STALE",
            "OnEnded",
            "OnStale",
            "SyncGuard",
            "SyncHook",
        ],
        "lapse.consumers.frameworks.asgi": ["ActiveSession", "Identity", "LapseMiddleware", "SCOPE_KEY"],
        "lapse.consumers.frameworks.identity": [
            "ActiveSession",
            "Identity",
            "bearer",
            "cookie",
            "header",
            "of_claims",
        ],
        "lapse.consumers.frameworks.django": ["Enforcement", "background", "enforcement", "on_stale", "unguarded"],
        "lapse.consumers.frameworks.flask": [
            "Lapse",
            "background",
            "current_session",
            "on_stale",
            "session_over",
            "unguarded",
        ],
        "lapse.consumers.frameworks.grpc": [
            "AioSessionInterceptor",
            "CANCEL_AFTER_S",
            "SessionInterceptor",
            "current_session",
        ],
        "lapse.consumers.frameworks.wsgi": ["LapseMiddleware", "OVER_KEY", "SESSION_KEY"],
        "lapse.consumers.frameworks.fastapi": [
            "CurrentSession",
            "Lapse",
            "background",
            "current_session",
            "on_stale",
            "unguarded",
        ],
        "lapse.consumers.frameworks.litestar": ["LapsePlugin", "current_session"],
        "lapse.consumers.frameworks.starlette": ["Lapse", "background", "current_session", "on_stale", "unguarded"],
        "lapse.consumers.testing": ["ManualClock", "MemoryFeed", "MemoryPublisher", "SyncMemoryPublisher"],
    }


_MODULES = (
    lapse.consumers,
    lapse.consumers.activity,
    lapse.consumers.appliers,
    lapse.consumers.guard,
    lapse.consumers.frameworks.asgi,
    lapse.consumers.frameworks.django,
    lapse.consumers.frameworks.fastapi,
    lapse.consumers.frameworks.flask,
    lapse.consumers.frameworks.grpc,
    lapse.consumers.frameworks.identity,
    lapse.consumers.frameworks.litestar,
    lapse.consumers.frameworks.starlette,
    lapse.consumers.frameworks.wsgi,
    lapse.consumers.testing,
)


def test_every_public_name_is_there_and_the_package_is_typed() -> None:
    for module in _MODULES:
        for name in module.__all__:
            assert hasattr(module, name)
    assert (Path(lapse.consumers.__file__).parent / "py.typed").exists()


def test_importing_the_sdk_brings_no_framework_and_nothing_of_the_pipeline() -> None:
    program = (
        "import sys, lapse.consumers, lapse.consumers.testing; "
        "frameworks = {'django', 'fastapi', 'flask', 'grpc', 'litestar', 'starlette', 'uvicorn'}; "
        "heavy = (frameworks | {'faust', 'msgspec'}) & set(sys.modules); "
        "sys.exit(f'brought in: {sorted(heavy)}' if heavy or 'lapse.pipeline' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
