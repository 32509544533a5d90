"""Where do a worker's own messages go? To standard error, one line each; standard output is for data."""

import logging
import sys

import structlog

__all__ = ["configure_logging"]


def configure_logging() -> None:
    """Send our messages, and the libraries' complaints, to standard error: JSON, or plain lines on a terminal."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.ExceptionRenderer(),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    # While a broker is down aiokafka warns some 15 times a second; what comes of it is told by us:
    # outlet.py says that appends are overdue, and where.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
