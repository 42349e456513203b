"""Parse flags and YAML files into settings, run a job, and print its result.

The last line on standard output is the result, as JSON. A mistake of the user, or an unreachable
cluster or store, is one line on standard error. Exit code 2: invalid settings; 1: other errors;
130: interrupted by Ctrl-C or `ray job stop`. Once a job is connected to Ray, output of libraries
goes to a log file in `logs/` of `MASK_RAY_HOME`; an error's line ends with its path.
"""

import argparse
import difflib
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliPositionalArg, CliSettingsSource

from mask_ray import progress, proxies
from mask_ray.config import MaskRayError, Repeatable, Settings, explain, home
from mask_ray.files import is_full
from mask_ray.ray_internals import START_ENVIRONMENT, on_worker_output

S = TypeVar("S", bound=Settings)

_, _POSITIONAL = get_args(CliPositionalArg)


# Turns off the usage statistics that libraries collect and send home.
NO_TELEMETRY = {
    # `ray start` would ask, and then send.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}

# Exit code after Ctrl-C, as of a shell's own commands.
INTERRUPTED = 130

# Reads the settings of an earlier run by its ID.
Stored = Callable[[str], dict[str, Any]]


def main(
    settings_class: type[S], job: Callable[[S], dict[str, Any]], stored: Stored | None = None
) -> None:
    """Parse the command line, connect to Ray (or start it), run `job`, print its result.

    Args:
        settings_class: Class whose fields are the flags.
        job: Function to run.
        stored: Reads the settings of the run that `--resume` or `--from-run` names.
    """
    # Without it, Ray's clients send no token, and a cluster that needs one rejects them.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # TensorFlow logs an error for every GPU library that is missing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What Ray forwards from workers goes to the log: without colours, and every line of it. Ray
    # reads these when it is imported, which `stored` may do.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Of variables that users have set, their values stay.
    for name, value in (NO_TELEMETRY | START_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    os.environ.update(proxies.without_this_machine(os.environ))
    try:
        settings = parse(settings_class, sys.argv[1:], stored)
        connect(instead=f"ray job submit --working-dir . -- python -m {_module()} ...")
        result = job(settings)
    except MaskRayError as error:
        fail(with_flags(settings_class, one_line(error)) + where_logged(), exit_code=1)
    except KeyboardInterrupt as stop:
        # A job that can be resumed says how.
        how = " ".join(map(str, stop.args)) or "run the same command to begin again"
        fail(f"stopped: {how}", exit_code=INTERRUPTED)
    except Exception as error:
        if is_full(error):
            fail(f"a disk is full: {error}{where_logged()}", exit_code=1)
        print(f"unexpected error{where_logged()}", file=progress.stderr(), flush=True)
        progress.end_log()  # the traceback goes to the terminal
        raise
    print(f"{json.dumps(result)}\n", end="", file=progress.stdout(), flush=True)


def parse(settings_class: type[S], arguments: list[str], stored: Stored | None = None) -> S:
    """Parse settings from flags and from the YAML file that `--config` names.

    Flags override the file. Both override the stored settings of the run that `--resume` or
    `--from-run` names, which `stored` reads.

    Invalid settings end the process with one line on standard error and exit code 2.
    """
    try:
        flags = _read_flags(settings_class, arguments)
        values = _read_config(flags.pop("config", None)) | flags
        if stored is not None and (run_id := values.get("resume") or values.get("from_run")):
            values = stored(run_id) | values
        return settings_class(**values)
    except ValidationError as error:
        fail(with_flags(settings_class, explain(error)), exit_code=2)
    except MaskRayError as error:
        fail(with_flags(settings_class, one_line(error)), exit_code=2)


# After a name that begins a sentence, and so is a setting and no ordinary word.
_VERB = r"(?= (?:must|is|are|holds?|has|have|cannot|does|and) )"


def with_flags(settings_class: type[Settings], message: str) -> str:
    """Write names of settings as they are typed: `num_workers` as `--num-workers`.

    Not inside of paths and other names. A name of one word is replaced only where it begins a
    sentence about it, such as `data must ...`.
    """
    if message.startswith("search "):  # the names that follow are values of this flag
        return f"--{message}"
    positional = _positional_names(settings_class)
    for name in settings_class.model_fields:
        typed = name.upper() if name in positional else f"--{name.replace('_', '-')}"
        if "_" in name:
            pattern = rf"(?<![\w/.:{{@=-]){name}(?![\w/.@=-]*[\w/@=-])"
        else:
            pattern = rf"(?:(?<=^)|(?<=; )){name}{_VERB}"
        message = re.sub(pattern, typed, message)
    return message


def _read_flags(settings_class: type[Settings], arguments: list[str]) -> dict[str, Any]:
    """Parse the flags on the command line. Returns them by field name, not validated."""

    class Flags(settings_class, BaseSettings):  # type: ignore[misc, valid-type]
        config: Path | None = Field(None, description="YAML file with any of these flags.")

    verbatim: dict[str, Any] = {}
    repeatable = _repeatable_names(settings_class)
    parser = _Parser(
        usage=_usage(settings_class),
        description=settings_class.__doc__,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.register("action", None, partial(_Store, repeatable))

    def parse_arguments(parser: argparse.ArgumentParser, texts: list[str]) -> argparse.Namespace:
        """Hide names of files and sources from pydantic-settings, which splits them at commas."""
        parsed = parser.parse_intermixed_args(texts)
        for name in _positional_names(settings_class):
            verbatim[name] = vars(parsed).pop(name)
        for name in repeatable:
            if vars(parsed).get(name) is not None:
                verbatim[name] = vars(parsed).pop(name)
        return parsed

    flags = CliSettingsSource[argparse.ArgumentParser](
        Flags,
        root_parser=parser,
        cli_parse_args=arguments,
        parse_args_method=parse_arguments,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    return flags() | verbatim


def _positional_names(settings_class: type[Settings]) -> list[str]:
    fields = settings_class.model_fields.items()
    return [name for name, field in fields if _POSITIONAL in field.metadata]


def _repeatable_names(settings_class: type[Settings]) -> list[str]:
    fields = settings_class.model_fields.items()
    return [
        name
        for name, field in fields
        if any(isinstance(each, Repeatable) for each in _annotations(field))
    ]


def _annotations(field: FieldInfo) -> list[Any]:
    """The annotations of a field's type, including those of `X` in `X | None`."""
    return [*field.metadata, *(m for t in get_args(field.annotation) for m in get_args(t)[1:])]


def _usage(settings_class: type[Settings]) -> str:
    positional = _positional_names(settings_class)
    required = [
        name.upper() if name in positional else f"--{name.replace('_', '-')} ..."
        for name, field in settings_class.model_fields.items()
        if field.is_required()
    ]
    return " ".join([f"python -m {_module()}", *required, "[flags]"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            message = self._about_unknown(unknown.split()[0].partition("=")[0])
        raise MaskRayError(message)

    def _about_unknown(self, flag: str) -> str:
        """Say that there is no such flag, and name those that were perhaps meant."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        words = set(flag.strip("-").split("-"))
        holding = [name for name in known if words <= set(name.strip("-").split("-"))]
        meant = holding or difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
        question = f"; did you mean {' or '.join(meant[:4])}?" if meant else "."
        return f"there is no flag {flag}{question} --help lists all"


class _Store(argparse.Action):
    """Stores the last value of a flag, or all values of a repeatable one."""

    def __init__(self, repeatable: list[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._is_repeatable = self.dest in repeatable

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*earlier, values] if self._is_repeatable else values)


class _Help(argparse.HelpFormatter):
    """Lists required flags first, and leaves out defaults of None, which descriptions explain."""

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        super().add_arguments(sorted(actions, key=_is_optional))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and action.help.replace(" (default: None)", "")


def _is_optional(action: argparse.Action) -> bool:
    return "(required)" not in (action.help or "")


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MaskRayError(f"--config must be a readable YAML file; got {path}: {error}") from error
    except yaml.YAMLError as error:
        raise MaskRayError(
            f"--config must be a readable YAML file; got {path}: {_yaml_mistake(error)}"
        ) from error
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise MaskRayError(f"--config must hold a mapping of settings; {path} holds {held}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _yaml_mistake(error: yaml.YAMLError) -> str:
    """Say what is wrong and where, without the text there: it may be another file, with secrets."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or type(error).__name__
    return problem if mark is None else f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def connect(instead: str) -> None:
    """Start the log, connect to Ray or start it, and print what workers say.

    Args:
        instead: What to run if `RAY_ADDRESS` is the URL of a cluster's dashboard.

    Raises:
        MaskRayError: no Ray answers at `RAY_ADDRESS`, or it is such a URL.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address and not address.startswith("ray://"):
        raise MaskRayError(
            f"RAY_ADDRESS is {address}, the URL of a dashboard, which takes submitted jobs: run "
            f"`{instead}`; or unset RAY_ADDRESS to run this on the Ray of this machine"
        )
    _start_log()

    import ray
    from ray.exceptions import RayError

    try:
        ray.init(logging_level=logging.WARNING, ignore_reinit_error=True)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        # Not only the first: Ray cannot read the address, or waits for it in vain.
        raise MaskRayError(f"no Ray cluster answers: {error}") from error
    on_worker_output(progress.relay)


def _start_log() -> None:
    """Log to a new file in MASK_RAY_HOME, or in a temporary folder if that cannot be written."""
    name = f"{_module().rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        progress.start_log(home() / "logs" / name)
    except (OSError, MaskRayError):
        progress.start_log(Path(tempfile.mkdtemp(), name))


def where_logged() -> str:
    """Return the end of an error: where the log is, if there is one."""
    path = progress.log_path()
    return f" (log: {path})" if path else ""


def one_line(error: MaskRayError) -> str:
    """Return the text of an error without line breaks."""
    return " ".join(str(error).split())


def fail(message: str, exit_code: int) -> NoReturn:
    """Print the message on standard error and exit."""
    if exit_code == INTERRUPTED:
        progress.leave_echo()
    print(f"error: {progress.printable(message)}", file=progress.stderr(), flush=True)
    raise SystemExit(exit_code)
