"""Where is a setting given, and what is said when it is refused?

In one of three places; the first that names it wins:

1. a flag, which reaches the settings' class as a keyword (None means: not given),
2. a variable, the setting's name behind the class's prefix,
3. a line `name = value` in `lapse.toml` in the current directory.

What is refused is refused at start by a `ConfigError` that names the setting, the value and what is allowed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from lapse.schemas.errors import ConfigError

__all__ = ["FILE", "ThreePlaces"]

FILE: Final = "lapse.toml"


class ThreePlaces(BaseSettings):
    """Settings that are given by flag, variable or file. Frozen; raises `ConfigError` for what it refuses."""

    model_config = SettingsConfigDict(toml_file=FILE, extra="forbid", frozen=True, env_ignore_empty=True)

    def __init__(self, **flags: Any) -> None:
        try:
            super().__init__(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as refused:
            # A default that waits for a refused setting is not refused itself.
            errors = [error for error in refused.errors() if error["type"] != "default_factory_not_called"]
            raise ConfigError("; ".join(map(self._explain, errors))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _File(settings_cls, cls._of_file)

    @classmethod
    @abstractmethod
    def _of_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return what of the file is meant for these settings."""

    @classmethod
    @abstractmethod
    def _explain(cls, error: ErrorDetails) -> str:
        """Return one refusal as a sentence: the setting, the value, what is allowed."""


class _File(TomlConfigSettingsSource):
    """What `lapse.toml` says."""

    def __init__(self, settings_cls: type[BaseSettings], of_file: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._of_file = of_file
        try:
            super().__init__(settings_cls)
        except (OSError, ValueError) as broken:  # TOMLDecodeError is a ValueError
            raise ConfigError(f"{FILE} cannot be read: {broken}") from None

    def __call__(self) -> dict[str, Any]:
        return self._of_file(super().__call__())
