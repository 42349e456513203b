"""Flags and YAML files -> settings, and the way a job begins and ends.

A job's result is one line of JSON, the last on standard output. A mistake of the user's, or a
cluster or store that cannot serve, is one line on standard error: exit code 2 for settings, 1 for
the rest. Ctrl-C and `ray job stop` end with 130.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mask_ray.config import MaskRayError, Settings, explain

S = TypeVar("S", bound=Settings)


def main(settings_class: type[S], job: Callable[[S], dict[str, Any]]) -> None:
    """Parse the command line, connect to Ray (or start it here), run `job`, print its result."""
    # Ray's clients otherwise look for no token, and a cluster that has one refuses them.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # TensorFlow reports every GPU library that it does not find as an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    settings = parse(settings_class, sys.argv[1:])
    try:
        _connect()
        result = job(settings)
    except MaskRayError as error:
        _fail(str(error), exit_code=1)
    except KeyboardInterrupt:
        _fail("stopped", exit_code=130)
    print(json.dumps(result), flush=True)


def parse(settings_class: type[S], arguments: list[str]) -> S:
    """Settings from flags, and below them from the YAML file that `--config` names.

    Exits with one line on standard error, and code 2, when they are not valid.
    """
    try:
        flags = _flags_class(settings_class, _read_config(arguments))(_cli_parse_args=arguments)
        return settings_class(**flags.model_dump(exclude={"config"}))
    except ValidationError as error:
        _fail(explain(error), exit_code=2)
    except (SettingsError, MaskRayError) as error:
        _fail(str(error).splitlines()[0], exit_code=2)


def _flags_class(settings_class: type[S], defaults: dict[str, Any]) -> type[BaseSettings]:
    class Flags(settings_class, BaseSettings):  # type: ignore[misc, valid-type]
        config: Path | None = Field(None, description="YAML file with any of these flags.")

        model_config = SettingsConfigDict(
            cli_prog_name=f"python -m {_module()}",
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_exit_on_error=False,
            cli_avoid_json=True,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Flags come first of themselves; no environment variables."""
            return (_Defaults(settings_cls, defaults),)

    Flags.__doc__ = settings_class.__doc__
    return Flags


class _Defaults(PydanticBaseSettingsSource):
    """The values of the YAML file."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


def _read_config(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path = parser.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise MaskRayError(str(error)) from error
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise MaskRayError(f"config must be a readable YAML file; got {path}: {reason}") from error
    if not isinstance(content, dict):
        raise MaskRayError(f"config must hold a mapping of settings; {path} holds {content!r}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _connect() -> None:
    import ray

    try:
        ray.init(logging_level=logging.WARNING, ignore_reinit_error=True)
    except ConnectionError as error:
        raise MaskRayError(f"no Ray cluster answers: {' '.join(str(error).split())}") from error


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
