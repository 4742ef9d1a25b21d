"""Merges the settings of file, environment and command line into one RunConfig; each overrides the one before.

pydantic judges the values; here its refusals become one sentence with the name as the user wrote it, the value, what is
allowed, and the nearest right name.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from evals.samplers.registry import SAMPLERS
from evals.types import UserError
from orchestrator.settings.config import RunConfig
from orchestrator.settings.parser import suggestion
from orchestrator.settings.schema import allowed, flag_name, is_group, is_list, known_settings, settings_read

PREFIX = "POWERSAMPLE_"
SEE = "configs/gsm8k_power.yaml"  # a file to look at
SCRIPT_VARIABLES = frozenset({f"{PREFIX}PYTHON", f"{PREFIX}RESTART_SECONDS"})
"""Read by the shell scripts alone."""


class Source(NamedTuple):
    """The settings of one source, and how that source spells the name of a setting (`sampler.num_moves`)."""

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


def build_config(args: Namespace, environ: Mapping[str, str], path: str | Path | None = None) -> RunConfig:
    """The configuration that options, `environ` and the YAML file `path` ask for together.

    `path` is used if the options name no file by --config. Raises UserError for anything unknown or out of range.
    """
    path = getattr(args, "config", path)
    sources = [read_options(args), read_environment(environ)]
    if path is not None:
        sources.append(read_file(Path(path)))
    merged: dict[str, Any] = {} if path is None else {"name": re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)}
    for source in reversed(sources):
        merged = merge(merged, source.values)
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise UserError(refusal(error, sources)) from error


def read_options(args: Namespace) -> Source:
    """The settings that command-line options set."""
    values: dict[str, Any] = {}
    for name in vars(args).keys() & known_settings().keys():
        value = getattr(args, name)
        if is_list(name):  # each time the option is there: a value that begins with `[` is JSON, any other one string
            value = [
                item
                for text in value
                for item in (from_json(flag_name(name), text, name) if text.startswith("[") else [text])
            ]
        values = merge(values, nested(name, value))
    return Source(values, flag_name)


def nested(name: str, value: Any) -> dict[str, Any]:
    """`sampler.alpha` and 2 -> {"sampler": {"alpha": 2}}."""
    group, _, key = name.rpartition(".")
    return {group: {key: value}} if group else {key: value}


def variable_name(name: str) -> str:
    return PREFIX + name.replace(".", "__").upper()


def read_environment(environ: Mapping[str, str]) -> Source:
    """The settings that POWERSAMPLE_* variables set, groups and lists as JSON; an empty one counts as not set."""
    names = {variable_name(name): name for name in known_settings()}
    values: dict[str, Any] = {}
    for variable, value in sorted(environ.items()):  # a group before its settings
        if not variable.startswith(PREFIX) or value == "" or variable in SCRIPT_VARIABLES:
            continue
        if variable not in names:
            single = {one for one, name in names.items() if not is_group(name)}
            near = suggestion(variable, single | SCRIPT_VARIABLES, PREFIX)
            raise UserError(
                f"Unknown environment variable {variable}={value}{near}; unset it (`powersample run --help` lists all)."
            )
        name = names[variable]
        whole = is_group(name) or is_list(name)
        values = merge(values, nested(name, from_json(variable, value, name) if whole else value))
    return Source(values, variable_name)


def from_json(spelling: str, text: str, name: str) -> Any:
    """The value of the setting `name`, given as JSON. Raises UserError with the source's `spelling` of it."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{spelling}={shown(text)} is not valid JSON; allowed: {allowed(name)}.") from error


def read_file(path: Path) -> Source:
    """The settings of a YAML file. Raises UserError naming the file, and line or key where there is one."""
    values = read_yaml(path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold settings as `name: value` lines, not a {type(values).__name__}; see {SEE}.")
    given = Source({str(key): value for key, value in values.items()}, lambda name: f"{path}: {name}")
    for name in known_settings():  # YAML reads yes and on as true, which pydantic would take for the number 1
        is_set, value = given.find(name)
        if is_set and isinstance(value, bool) and "number" in allowed(name):
            raise UserError(f"{path}: {name}={shown(value)} is refused; allowed: {allowed(name)}.")
    return given


class UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice in a mapping: YAML would take the last one, unnoticed."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value} is there twice; leave one out"
                raise MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError naming the file and, for a mistake in it, the line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read ({error.strerror}); see {SEE}.") from error
    except (UnicodeDecodeError, ReaderError) as error:
        raise UserError(
            f"The configuration file {path} is not a text in UTF-8; name a YAML file such as {SEE}."
        ) from error
    except MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not valid YAML ({problem}); settings are `name: value` lines, see {SEE}."
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; settings are `name: value` lines, see {SEE}.") from error
    except ValueError as error:  # a value that looks like a date and is none
        raise UserError(f"{path}: a value is not valid YAML ({error}); put it in quotes.") from error


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings as one: `high` overrides `low`, and groups are merged likewise."""
    both = low.keys() & high.keys()
    groups = {k: merge(low[k], high[k]) for k in both if isinstance(low[k], Mapping) and isinstance(high[k], Mapping)}
    return {**low, **high, **groups}


def refusal(error: ValidationError, sources: Sequence[Source]) -> str:
    """The message about the first value that pydantic refused, with its name as its source spells it."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    known = known_settings()
    context, kind = first.get("ctx", {}), ""
    if parts[0] == "sampler" and parts[1:] and parts[1] in SAMPLERS:
        kind = parts.pop(1)
    if first["type"] == "union_tag_invalid":
        parts.append("kind")
    name = ".".join(parts)
    if kind and first["type"] == "unexpected_keyword_argument" and name in known:
        owners = ", ".join(one for one in SAMPLERS if parts[1] in settings_read(one))
        reason = f"kind {kind} does not read {parts[1]}, which belongs to {owners}"
        return conflict([name, "sampler.kind"], f"{reason}; leave {parts[1]} out or choose such a kind", sources)
    if kind and first["type"] == "missing":
        return conflict(["sampler.kind"], "name by sampler.texts what is replayed, a JSONL file or gold", sources)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{spelling_and_value(name, sources)[0]} is unknown{suggestion(name, known)}; {known_siblings(parts)}."
    if first["type"] == "conflict":
        return conflict([f"{name}.{setting}" for setting in context["settings"]], first["msg"], sources)
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    spelling, value = spelling_and_value(name, sources)
    reason = f": {context['error']}" if first["type"] == "value_error" else ""
    near = suggestion(value, known[name].get("enum", ())) if isinstance(value, str) else ""
    return f"{spelling}={shown(value)} is refused{reason}{near}; allowed: {allowed(name)}."


def conflict(names: Sequence[str], reason: str, sources: Sequence[Source]) -> str:
    """The message about settings that do not go together; it names those of them that are set."""
    set_names = [name for name in names if any(source.find(name)[0] for source in sources)]
    cited = [
        f"{spelling}={shown(value)}" for spelling, value in (spelling_and_value(name, sources) for name in set_names)
    ]
    verdict = "is refused" if len(cited) == 1 else "do not go together"
    return f"{' and '.join(cited)} {verdict}: {reason}."


def spelling_and_value(name: str, sources: Sequence[Source]) -> tuple[str, Any]:
    """Spelling and value of the setting `name` in the source that decides it."""
    for source in sources:
        is_set, value = source.find(name)
        if is_set:
            return source.spell(name), value
    return name, None


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def known_siblings(parts: Sequence[str]) -> str:
    """The phrase that lists the known names in the group of an unknown one."""
    group = ".".join(parts[:-1])
    names = [n.removeprefix(f"{group}.") for n in known_settings() if n.rpartition(".")[0] == group]
    return f"{group or 'a configuration'} has {', '.join(names)}"
