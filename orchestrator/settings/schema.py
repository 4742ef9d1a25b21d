"""What can be set: every setting as its field in `RunConfig` declares it, in words, and as an option."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from operator import methodcaller
from types import MappingProxyType

from pydantic.json_schema import JsonSchemaValue

from evals.config import listed
from evals.samplers.registry import SAMPLERS
from orchestrator.settings.config import RunConfig
from orchestrator.settings.parser import Parser, flag_name, option

BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
PLACEHOLDERS = {"JSON object": "JSON", "path": "DIR", "whole number": "N", "number": "X"}
WIDEST_CHOICES = 40  # characters of choices that are shown as the placeholder of a value


@cache
def known_settings() -> Mapping[str, JsonSchemaValue]:
    """Dotted name (`limit`, `sampler.alpha`) -> its JSON schema."""
    schema = RunConfig.model_json_schema()
    fields_of = {group: about.get("properties", {}) for group, about in schema["$defs"].items()}
    meanings = {kind: fields_of[one.__name__]["kind"]["description"] for kind, one in SAMPLERS.items()}
    kinds = {"enum": list(SAMPLERS), "description": listed(meanings), "default": "power"}
    known: dict[str, JsonSchemaValue] = {"sampler.kind": kinds}
    for name, about in schema["properties"].items():
        groups = [one["$ref"].rpartition("/")[2] for one in about.get("oneOf", [about]) if "$ref" in one]
        for group in groups:
            for key, field in fields_of[group].items():
                known.setdefault(f"{name}.{key}", field)
        if not groups:
            known[name] = about
    return MappingProxyType(known)


def members(group: str) -> list[str]:
    """The settings of a group, without its name; of those in no group for an empty name."""
    return [key for inner, _, key in (name.rpartition(".") for name in known_settings()) if inner == group]


def settings_read(kind: str) -> list[str]:
    """The settings of a kind of sampler, beside its kind."""
    return sorted(field.name for field in fields(SAMPLERS[kind]) if field.name != "kind")


def allowed(name: str) -> str:
    """What a setting accepts, in words."""
    return words(known_settings()[name])


def words(schema: JsonSchemaValue) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(words(part) for part in schema["anyOf"] if part != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(schema["enum"]) if "enum" in schema else schema["const"]
    match schema["type"]:
        case "array":
            return 'a list of strings that are not empty, in JSON such as ["Question:"]'
        case "object":
            return 'a JSON object such as {"enable_thinking": false}'
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


def add_settings(parser: Parser) -> None:
    """Add an option for every setting that the parser has none for."""
    for group, field in {"": None, **RunConfig.model_fields}.items():
        title = f"{group}: {field.description}" if field else "the run"
        names = [f"{group}.{key}" if group else key for key in members(group)]
        new = [name for name in names if flag_name(name) not in parser.options]
        parser.add(
            parser.add_argument_group(title, kinds_help() if group == "sampler" else None), *map(setting_option, new)
        )


def kinds_help() -> str:
    """Lines of the help that say which settings each kind of sampler has."""
    lines = [f"  {kind:<12} {', '.join(settings_read(kind)) or 'nothing'}" for kind in SAMPLERS]
    return "\n".join(["each kind reads these settings, and another one is refused:", *lines])


def setting_option(name: str) -> methodcaller:
    """The option of a setting: a switch for a bool, for a list an option that repeats."""
    about = known_settings()[name]
    how = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": (about["description"] + default_words(about)).replace("%", "%%"),
    }
    if about.get("type") == "boolean":
        return option(flag_name(name), action=argparse.BooleanOptionalAction, **how)
    placeholder = next((short for word, short in PLACEHOLDERS.items() if word in allowed(name)), "TEXT")
    if choices := ",".join(about.get("enum", ())):
        placeholder = f"{{{choices}}}" if len(choices) <= WIDEST_CHOICES else name.rpartition(".")[2].upper()
    return option(flag_name(name), action="append" if is_list(name) else "store", metavar=placeholder, **how)


def is_list(name: str) -> bool:
    return known_settings()[name].get("type") == "array"


def is_object(name: str) -> bool:
    return known_settings()[name].get("type") == "object"


def default_words(about: JsonSchemaValue) -> str:
    """The default in brackets, unless the description names it or there is none."""
    default = about.get("default")
    if default in (None, "", {}) or "(default:" in about["description"]:
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    shown = json.dumps(default) if isinstance(default, list) else f"{default:g}" if type(default) is float else default
    return f" (default: {shown})"
