"""The processor: Faust around a pure engine. `run` is a worker; core.py tells what it does, and in what order."""

from lapse.pipeline.processor.worker import run, serve

__all__ = ["run", "serve"]
