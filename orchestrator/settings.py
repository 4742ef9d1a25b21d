"""From file, environment and flags to one RunConfig: each overrides the one before. Knows no model, data or device.

pydantic-settings reads the environment and the flags, pydantic judges the values; here they are merged, and every
refusal becomes one sentence with the name as the user wrote it, the value, what is allowed, and the nearest right name.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, EnvSettingsSource, SettingsError

from evals.types import UserError
from orchestrator.config import RunConfig
from orchestrator.names import allowed, is_json, known_settings, suggestion

PREFIX = "POWERSAMPLE_"
SCRIPT_VARIABLES = frozenset({f"{PREFIX}PYTHON", f"{PREFIX}RESTART_SECONDS"})
"""Read by the shell scripts alone."""


class Given(NamedTuple):
    """What one source sets, and how that source spells the name of a setting (`sampler.num_moves`)."""

    values: dict[str, Any]
    spell: Callable[[str], str]

    def find(self, name: str) -> tuple[bool, Any]:
        """Whether the source sets `name`, and to what."""
        value: Any = self.values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False, None
            value = value[part]
        return True, value


def build_config(flags: Sequence[str], environ: Mapping[str, str], path: str | Path | None = None) -> RunConfig:
    """The configuration that `flags` (arguments after `run`), `environ` and the YAML file `path` ask for together.

    `path` is used if the flags name no file by --config. Raises UserError for anything unknown or out of range.
    """
    named, rest = take_config(flags)
    path = path if named is None else named
    sources = [read_flags(rest), read_environment(environ)]
    if path is not None:
        sources.append(read_file(Path(path)))
    merged: dict[str, Any] = {} if path is None else {"name": re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)}
    for source in reversed(sources):
        merged = merge(merged, source.values)
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise UserError(refusal(error, sources)) from error


def take_config(flags: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, and the other flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        found, rest = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError("--config needs the name of a YAML file, such as configs/gsm8k_power.yaml.") from error
    return found.config, rest


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    return PREFIX + name.replace(".", "__").upper()


def read_flags(flags: Sequence[str]) -> Given:
    """What the command line sets; `-h` and `--help` print the flags and raise SystemExit."""
    known = {flag_name(name) for name in known_settings()}
    known |= {"--no-" + flag_name(name)[2:] for name, field in known_settings().items() if field.annotation is bool}
    for flag in flags:
        name = flag.split("=")[0]
        if flag.startswith("--") and name not in known | {"--help"}:
            near = suggestion(name, known | {"--config"})
            raise UserError(f"Unknown option {name}{near}; `powersample run --help` lists all options.")
    lists, rest = take_lists(flags)
    try:
        source = CliSettingsSource(
            RunConfig,
            cli_prog_name="powersample run [--config FILE]",
            cli_parse_args=rest,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_exit_on_error=False,
        )
        return Given(merge(source(), lists), flag_name)
    except SettingsError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise UserError(f"Command line: {reason}; `powersample run --help` lists all options.") from error


def take_lists(flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings that are lists, and the other flags. A value that begins with `[` is JSON, any other is one string.

    Repeated flags add up. pydantic-settings would split a value at its commas and keep the backslashes of JSON.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = [name for name in known_settings() if is_json(name)]
    for name in names:
        parser.add_argument(flag_name(name), dest=name, action="append")
    try:
        found, rest = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"Command line: {error}; `powersample run --help` lists all options.") from error
    values: dict[str, Any] = {}
    for name in names:
        texts = getattr(found, name)
        if texts is not None:
            group, _, key = name.rpartition(".")
            items = {key: [item for text in texts for item in list_items(name, text)]}
            values = merge(values, {group: items} if group else items)
    return values, rest


def list_items(name: str, text: str) -> list[Any]:
    """What one flag adds to the list `name`."""
    if not text.startswith("["):
        return [text]
    check_json(flag_name(name), text, name)
    return json.loads(text)


def read_environment(environ: Mapping[str, str]) -> Given:
    """What POWERSAMPLE_* variables set; an empty one counts as not set."""
    names = {variable_name(name): name for name in known_settings()}
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value != ""}
    for variable, value in ours.items():
        if variable not in names.keys() | SCRIPT_VARIABLES:
            near = suggestion(variable, names.keys() | SCRIPT_VARIABLES, PREFIX)
            raise UserError(
                f"Unknown environment variable {variable}={value}{near}; unset it (`powersample run --help` lists all)."
            )
        if variable in names and is_json(names[variable]):
            check_json(variable, value, names[variable])
    source = EnvSettingsSource(RunConfig, env_prefix=PREFIX, env_nested_delimiter="__")
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    return Given(source(), variable_name)


def check_json(variable: str, value: str, name: str) -> None:
    try:
        json.loads(value)
    except ValueError as error:
        raise UserError(f"{variable}={value} is not valid JSON; allowed: {allowed(name)}.") from error


def read_file(path: Path) -> Given:
    """What a YAML file sets. Raises UserError naming the file, and line or key where there is one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read ({error.strerror}); see configs/.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold settings as `name: value` lines, not a {type(values).__name__}.")
    given = Given({str(key): value for key, value in values.items()}, lambda name: f"{path}: {name}")
    for name in known_settings():  # YAML reads yes and on as true, which pydantic would take for the number 1
        found, value = given.find(name)
        if found and isinstance(value, bool) and "number" in allowed(name):
            raise UserError(f"{path}: {name}={shown(value)} is refused; allowed: {allowed(name)}.")
    return given


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, group by group."""
    both = low.keys() & high.keys()
    groups = {k: merge(low[k], high[k]) for k in both if isinstance(low[k], Mapping) and isinstance(high[k], Mapping)}
    return {**low, **high, **groups}


def refusal(error: ValidationError, sources: Sequence[Given]) -> str:
    """The sentence about the first thing that pydantic refused, spelt as its source spells it."""
    first = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) for part in first["loc"]]
    known = known_settings()
    if first["type"] == "extra_forbidden":
        name = ".".join(parts)
        return f"{written(name, sources)[0]} is unknown{suggestion(name, known)}; {siblings(parts)}."
    name = ".".join(parts)
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    spelling, value = written(name, sources)
    reason = first["msg"].removeprefix("Value error, ")
    return f"{spelling}={shown(value)} is refused: {reason}; allowed: {allowed(name)}."


def written(name: str, sources: Sequence[Given]) -> tuple[str, Any]:
    """How the source that decides `name` spells it, and the value that it gives."""
    for source in sources:
        found, value = source.find(name)
        if found:
            return source.spell(name), value
    return name, None


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def siblings(parts: Sequence[str]) -> str:
    """What may stand where an unknown key stands."""
    group = ".".join(parts[:-1])
    names = [n.removeprefix(f"{group}.") for n in known_settings() if n.rpartition(".")[0] == group]
    return f"{group or 'a configuration'} has {', '.join(names)}"
