"""Which errors can Lapse raise, and what does each mean for the caller?

LapseError
├── ConfigError     a setting is refused at start: names setting, value and range; nothing has run
├── BadRecord       input is wrong: dead letter with topic, partition, offset and reason; counted; go on
├── RuntimeFault    broker or store failed: commit nothing, stop, restart from the last commit
└── InvariantError  an impossible state: stop the worker; never caught to go on
"""

__all__ = ["BadRecord", "ConfigError", "InvariantError", "LapseError", "RuntimeFault"]


class LapseError(Exception):
    """The root: `except LapseError` catches whatever Lapse itself raises."""


class ConfigError(LapseError):
    """A setting was refused; the message names the setting, its value and what is allowed."""


class BadRecord(LapseError):
    """A record cannot be read.

    Attributes:
        reason: one sentence for a person. It names the field and what it must be, and never repeats the value, for
            it is copied into dead letters and logs. At most REASON_LENGTH_MAX characters.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RuntimeFault(LapseError):
    """The broker or a store failed, and going on would lose or repeat work: restart from the last commit."""


class InvariantError(LapseError):
    """A state that the rules exclude: a fault of Lapse itself."""
