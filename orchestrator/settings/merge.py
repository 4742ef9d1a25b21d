"""Merges the settings of file, environment and command line into one RunConfig; each overrides the one before.

pydantic judges the values; here its refusals become one sentence with the name as the user wrote it, the value, what is
allowed, and the nearest right name.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import JsonValue, ValidationError
from pydantic_core import from_json
from yaml.error import MarkedYAMLError

from evals.samplers.registry import SAMPLERS
from evals.types import UserError
from orchestrator.settings.config import RunConfig
from orchestrator.settings.parser import PREFIX, check_text, flag_name, suggestion, variable_name
from orchestrator.settings.schema import allowed, is_list, is_object, known_settings, members, settings_read

SEE = "configs/gsm8k_power.yaml"  # a file to look at
CHOICES = ("sampler.kind", "task.preset")
"""What decides what else its group of settings can be, and what it is where nothing is set."""
SCRIPT_VARIABLES = frozenset({f"{PREFIX}PYTHON", f"{PREFIX}RESTART_SECONDS"})
"""Read by the shell scripts alone."""
NULL = "tag:yaml.org,2002:null"
BOOLS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


class Given(NamedTuple):
    """A setting that is set: its name as the user wrote it, and the value."""

    spelling: str
    value: Any

    def __str__(self) -> str:
        text = self.value if isinstance(self.value, str) else json.dumps(self.value, default=str)
        return f"{self.spelling}={text if len(text) <= 80 else text[:77] + '...'}"


def build_config(
    args: Namespace, environ: Mapping[str, str], path: str | Path | None = None, greedy_at_zero: bool = False
) -> RunConfig:
    """The configuration that options, `environ` and the YAML file `path` ask for together.

    `path` is used if the options name no file by --config. `greedy_at_zero`: temperature 0 is the sampler greedy.
    Raises UserError for anything unknown or out of range.
    """
    values: dict[str, Any] = {}
    given = named = named_settings(args, environ)
    if (path := getattr(args, "config", path)) is not None:
        values["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)[:100]
        if not hasattr(args, "config"):
            given = yielding(read_file(Path(path)), named) | named
    return validated(greedy_for_zero(given) if greedy_at_zero else given, named, **values)


def named_settings(args: Namespace, environ: Mapping[str, str]) -> dict[str, Given]:
    """The settings that the user made: in the file that --config names, by variables, by options."""
    file = read_file(Path(args.config)) if hasattr(args, "config") else {}
    return file | read_environment(environ) | read_options(args)


def validated(given: Mapping[str, Given], named: Mapping[str, Given] | None = None, **values: Any) -> RunConfig:
    """The configuration of these settings and `values`; `named` are those that the user made, where not all. Raises
    UserError, by the spellings given."""
    for name, one in given.items():
        text = isinstance(one.value, str) and one.value
        check_text(str(one), text or json.dumps(one.value, ensure_ascii=False, default=str))
        group, _, key = name.rpartition(".")
        (values.setdefault(group, {}) if group else values)[key] = one.value
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise UserError(refusal(error, given, given if named is None else named)) from error


def yielding(usual: Mapping[str, Given], asked: Mapping[str, Given]) -> dict[str, Given]:
    """What stays of `usual`, the settings of a file that the user did not name, beside those `asked` for: of a group
    whose choice is asked for as another one, nothing; nor the data beside another task."""
    chosen = {name: usual[name].value if name in usual else known_settings()[name]["default"] for name in CHOICES}
    gone = {name.partition(".")[0] for name in CHOICES if name in asked and asked[name].value != chosen[name]}
    gone |= {"data", "data_split"} if "task" in gone else set()
    return {name: one for name, one in usual.items() if name.partition(".")[0] not in gone}


def greedy_for_zero(given: dict[str, Given]) -> dict[str, Given]:
    """The settings with draws at temperature 0, of which no top_k or top_p changes anything, as the sampler greedy."""
    sampler = {name for name in given if name.startswith("sampler.")}
    others = sampler - {f"sampler.{name}" for name in ("kind", *settings_read("temperature"))}
    kind, temperature = given.get("sampler.kind"), given.get("sampler.temperature")
    if others or not kind or kind.value not in ("temperature", "greedy"):
        return given
    if not temperature or not is_zero(temperature.value):
        return given
    greedy = {"sampler.kind": Given(temperature.spelling, "greedy")}
    return {name: one for name, one in given.items() if name not in sampler} | greedy


def is_zero(value: Any) -> bool:
    """Whether a value, as it was written, is the number 0."""
    try:
        return float(value) == 0
    except (TypeError, ValueError, OverflowError):
        return False


def read_options(args: Namespace) -> dict[str, Given]:
    """The settings that command-line options set."""
    spell = getattr(args, "spell", flag_name)
    known = [name for name in vars(args) if name in known_settings()]
    return {name: as_texts(name, Given(spell(name), getattr(args, name))) for name in known}


def read_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """The settings that POWERSAMPLE_* variables set; an empty one counts as not set."""
    names = {variable_name(name): name for name in known_settings()}
    given = {}
    for variable, value in environ.items():
        if variable in names and value:
            given[names[variable]] = as_texts(names[variable], Given(variable, value))
        elif variable.startswith(PREFIX) and value and variable not in SCRIPT_VARIABLES:
            near = suggestion(variable, [*names, *SCRIPT_VARIABLES])
            raise UserError(
                f"Unknown environment variable {variable}={value}{near}; unset it (`powersample run --help` lists all)."
            )
    return given


def as_texts(name: str, given: Given) -> Given:
    """What options and variables say: of a list of strings each text is one of them or, if it begins with `[`, JSON; an
    object is JSON."""
    if is_object(name):
        return Given(given.spelling, of_json(name, given))
    if not is_list(name):
        return given
    texts: list[str] = []
    for text in [given.value] if isinstance(given.value, str) else given.value:
        texts += of_json(name, Given(given.spelling, text)) if text.startswith("[") else [text]
    return Given(given.spelling, texts)


def of_json(name: str, given: Given) -> Any:
    """The value of a setting that is written in JSON. Raises UserError if it is not."""
    try:
        return from_json(given.value, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{given} is not valid JSON; allowed: {allowed(name)}.") from error


def read_file(path: Path) -> dict[str, Given]:
    """The settings of a YAML file. Raises UserError naming the file, and line or key where there is one."""
    how = f"settings are `name: value` lines, see {SEE}"
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); {how}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; {how}.")
    given: dict[str, Given] = {}
    for key, value in content.items():
        if (inner := members(key)) and not isinstance(value, dict):
            raise UserError(f"{Given(f'{path}: {key}', value)} is refused; allowed: a group of {', '.join(inner)}.")
        for name, one in [(f"{key}.{each}", value[each]) for each in value] if inner else [(str(key), value)]:
            given[name] = Given(f"{path}: {name}", one)
            if name in known_settings() and is_object(name) and isinstance(one, str):
                given[name] = as_texts(name, given[name])
            if name not in known_settings():
                near = suggestion(name, known_settings())
                has = f"{key if inner else 'a configuration'} has {', '.join(inner or members(''))}"
                raise UserError(f"{given[name].spelling} is unknown{near}; {has}.")
    return given


class Loader(yaml.BaseLoader):
    """Loads scalars as the texts that the user wrote, as options and variables are, but null as None, and of a setting
    that is an object as JSON has them; refuses a key that a mapping has twice, of which YAML would take the last one,
    unnoticed."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key, _ in node.value:
            if key.value in keys:
                problem = f"the key {key.value} is there twice, leave one out"
                raise MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.append(key.value)
        mapping = super().construct_mapping(node, deep)
        objects = {name.rpartition(".")[2] for name in known_settings() if is_object(name)}
        typed = {key.value: as_json(value) for key, value in node.value if key.value in objects}
        return {**mapping, **typed}


def as_json(node: yaml.Node) -> JsonValue:
    """The value of a node; a scalar without quotes is null, a bool, what it is in JSON, or else a text."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: as_json(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [as_json(value) for value in node.value]
    assert isinstance(node, yaml.ScalarNode), "there is no other kind"
    if node.style or node.tag == NULL:
        return node.value if node.style else None
    if (word := node.value.lower()) in BOOLS:
        return BOOLS[word]
    try:
        return from_json(node.value, allow_inf_nan=False)
    except ValueError:
        return node.value


Loader.add_implicit_resolver(NULL, re.compile("(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_constructor(NULL, lambda *_: None)


def refusal(error: ValidationError, given: Mapping[str, Given], named: Mapping[str, Given]) -> str:
    """The message about the first value that pydantic refused; `named` are the settings that the user made."""
    first = error.errors(include_url=False)[0]
    context, where = first.get("ctx", {}), [str(part) for part in first["loc"]]
    kind = where.pop(1) if where[0] == "sampler" and len(where) > 1 else ""
    name = ".".join(where)
    match first["type"]:
        case "conflict":
            return conflict([f"{name}.{one}" for one in context["settings"]], first["msg"], given)
        case "unexpected_keyword_argument":  # all names are known: it is the kind that lacks this one
            key, readers = where[-1], [one for one in SAMPLERS if where[-1] in settings_read(one)]
            reason = f"kind {kind} does not read {key}, which belongs to {', '.join(readers)}; leave {key} out or "
            beside, read = ["sampler.kind"], {f"sampler.{each}" for one in readers for each in settings_read(one)}
            if name in named and beside[0] not in named:  # then it follows from others
                given, beside = named, [one for one in named if one.startswith("sampler.") and one not in read]
            return conflict([name, *beside], f"{reason}choose such a kind", given)
        case "missing":
            return conflict(["sampler.kind"], f"name by {name} {known_settings()[name]['description']}", given)
        case "union_tag_invalid":
            name = "sampler.kind"
    while name not in known_settings():
        name = name.rpartition(".")[0]
    value, choices = given[name].value, known_settings()[name].get("enum", ())
    reason = f": {context['error']}" if first["type"] == "value_error" else ""
    near = suggestion(value, choices) if isinstance(value, str) else ""
    greedy = name == "sampler.temperature" and is_zero(value)
    hint = "; for the likeliest token each time set sampler.kind to greedy and leave the temperature out"
    return f"{given[name]} is refused{reason}{near}; allowed: {allowed(name)}{hint if greedy else ''}."


def conflict(names: Iterable[str], reason: str, given: Mapping[str, Given]) -> str:
    """The message about settings that do not go together; it names those of them that are set."""
    cited = [str(given[name]) for name in names if name in given]
    return f"{' and '.join(cited)} {'is refused' if len(cited) == 1 else 'do not go together'}: {reason}."
