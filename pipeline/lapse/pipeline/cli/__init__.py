"""The command line, `lapse`.

Each command's module holds what it is told and what it prints; what it does lives in `lapse.pipeline.operations` and
the other packages, which are imported when the command runs. So `lapse --help` answers without loading Kafka, Faust or
pydantic.
"""

__all__ = ["main"]


def main() -> None:
    """Run the program: arguments from `sys.argv`, exit code 0 (done), 1 (failed or found something) or 2 (usage)."""
    from lapse.pipeline.cli.program import app

    app()
