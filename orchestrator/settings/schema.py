"""The schema of all settings: their names, what each allows, and the command-line option of each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import MappingProxyType
from typing import Any

from evals.config import listed
from evals.samplers.registry import SAMPLERS
from orchestrator.settings.config import RunConfig
from orchestrator.settings.parser import Parser

SECTIONS = {
    "what runs": ("mode", "model", "model_revision", "data", "data_split", "limit", "num_samples", "seed"),
    "where it runs": ("num_gpus", "num_workers", "batch_size", "use_batched", "inline", "dashboard", "dashboard_host"),
    "where it is kept": ("run_dir", "name", "fresh", "track"),
}
"""Sections of the help for the settings that belong to no group."""
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
PLACEHOLDERS = {"path": "DIR", "whole number": "N", "number": "X"}
WIDEST_CHOICES = 40  # characters of choices that are shown as the placeholder of a value


@cache
def known_settings() -> Mapping[str, dict[str, Any]]:
    """Dotted name -> its JSON schema, groups included (`sampler`, `sampler.alpha`)."""
    schema = RunConfig.model_json_schema()
    settings: dict[str, dict[str, Any]] = {}
    for name, about in schema["properties"].items():
        groups = [
            schema["$defs"][one["$ref"].rpartition("/")[2]] for one in about.get("oneOf", [about]) if "$ref" in one
        ]
        inner = {key: nested for group in reversed(groups) for key, nested in group["properties"].items()}
        if len(groups) > 1:
            words = {
                nested["const"]: nested["description"] for nested in (group["properties"]["kind"] for group in groups)
            }
            kinds = {"type": "string", "enum": list(words), "default": "power", "description": listed(words)}
            inner = {"kind": kinds, **{key: nested for key, nested in inner.items() if key != "kind"}}
        settings[name] = {**({"type": "object", "properties": inner} if groups else {}), **about}
        settings |= {f"{name}.{key}": nested for key, nested in inner.items()}
    return MappingProxyType(settings)


def is_group(name: str) -> bool:
    return known_settings()[name].get("type") == "object"


def is_list(name: str) -> bool:
    return known_settings()[name].get("type") == "array"


def allowed(name: str) -> str:
    """What a setting accepts, in words."""
    return words(known_settings()[name])


def words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(words(part) for part in schema["anyOf"] if part != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(schema["enum"]) if "enum" in schema else schema["const"]
    match schema["type"]:
        case "object":
            return f"a group of {', '.join(schema['properties'])}"
        case "array":
            return 'a list of strings that are not empty, in JSON such as ["Question:"]'
        case "boolean":
            return "true or false"
        case "string" if "format" in schema:
            return "a path"
        case "string" if "pattern" in schema:
            return f"a text of the characters {schema['pattern'].strip('^[]*$')}, at most {schema['maxLength']} of them"
        case "string":
            return "a text that is not empty"
    bounds = "".join(f" {word} {schema[bound]}" for bound, word in BOUNDS.items() if bound in schema)
    return ("a whole number" if schema["type"] == "integer" else "a number") + bounds


def flag_name(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + name.replace("_", "-")


def add_settings(parser: Parser, shown: bool) -> None:
    """An option for every setting that the parser has none for; in its help only where `shown`."""
    inner = {
        f"{name}: {about['description']}": tuple(f"{name}.{key}" for key in about["properties"])
        for name, about in known_settings().items()
        if is_group(name)
    }
    for title, names in {**SECTIONS, **inner}.items():
        section = parser.add_argument_group(title, sampler_help() if shown and title.startswith("sampler:") else None)
        for name in names:
            if flag_name(name) not in parser.flags:
                parser.allowed[flag_name(name)] = allowed(name)
                section.add_argument(
                    flag_name(name), dest=name, default=argparse.SUPPRESS, **option_arguments(name, shown)
                )


def sampler_help() -> str:
    """Lines of the help that say which settings each kind of sampler reads."""
    lines = [f"  {kind:<12} {', '.join(settings_read(kind)) or 'nothing'}" for kind in SAMPLERS]
    return "\n".join(["each kind reads these settings, and another one is refused:", *lines])


def settings_read(kind: str) -> list[str]:
    """The settings of a kind of sampler, beside its kind."""
    return sorted(field.name for field in fields(SAMPLERS[kind]) if field.name != "kind")


def option_arguments(name: str, shown: bool) -> dict[str, Any]:
    """Arguments of `add_argument` for a setting: a switch for a bool, for a list an option that repeats."""
    about = known_settings()[name]
    text = (about["description"] + default_words(about)).replace("%", "%%") if shown else argparse.SUPPRESS
    if about.get("type") == "boolean":
        return {"action": argparse.BooleanOptionalAction, "help": text}
    return {"action": "append" if is_list(name) else "store", "metavar": placeholder(name, about), "help": text}


def default_words(about: Mapping[str, Any]) -> str:
    """The default in brackets, unless the description names it or there is none."""
    default = about.get("default")
    if default is None or "(default:" in about["description"]:
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    shown = json.dumps(default) if isinstance(default, list) else f"{default:g}" if type(default) is float else default
    return f" (default: {shown})"


def placeholder(name: str, about: Mapping[str, Any]) -> str:
    """The placeholder of a setting's value in the help."""
    if choices := ",".join(about.get("enum", ())):
        return f"{{{choices}}}" if len(choices) <= WIDEST_CHOICES else name.rpartition(".")[2].upper()
    can = words(about)
    return next((short for word, short in PLACEHOLDERS.items() if word in can), "TEXT")
