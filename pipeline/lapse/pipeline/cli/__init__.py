"""The command line, `lapse`.

Each command's module holds what it is told and what it prints; what it does lives in `lapse.pipeline.operations` and
the other packages, which are imported when the command runs. So `lapse --help` answers without loading Kafka, Faust or
pydantic.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program: arguments from `sys.argv`, exit code 0 (done), 1 (failed or found something) or 2 (usage)."""
    try:
        from lapse.pipeline.cli.program import app
    except ModuleNotFoundError as missing:
        # The script comes with every installation, what it needs with the extra alone.
        if missing.name is None or missing.name.startswith("lapse"):
            raise
        sys.exit(f"lapse: {missing.name} is not installed: pip install 'lapse[pipeline]' brings the operators' tools")
    app()
