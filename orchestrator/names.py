"""The names of all settings, what each allows, and which a misspelt name may have meant. Knows no source of values."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.config import RunConfig

CLOSE = 0.6  # similarity from which a name is worth suggesting


@cache
def known_settings() -> MappingProxyType[str, FieldInfo]:
    """Dotted name -> field, groups included (`sampler`, `sampler.alpha`)."""
    fields: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        fields[name] = field
        if (group := as_group(field.annotation)) is not None:
            fields |= {f"{name}.{inner}": nested for inner, nested in group.model_fields.items()}
    return MappingProxyType(fields)


def as_group(annotation: Any) -> type[BaseModel] | None:
    """The annotation if it is a group of settings."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def is_list(name: str) -> bool:
    """Whether a setting is a list of texts."""
    return get_origin(known_settings()[name].annotation) is tuple


def is_json(name: str) -> bool:
    """Whether the environment gives this setting as JSON: groups and lists."""
    return is_list(name) or as_group(known_settings()[name].annotation) is not None


def choices(name: str) -> tuple[str, ...]:
    """The values of a setting that is one of a few words; empty for any other."""
    annotation = known_settings()[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def allowed(name: str) -> str:
    """What a setting accepts, in words."""
    field = known_settings().get(name)
    return describe(field.annotation, field.metadata) if field is not None else "nothing of this name"


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """An annotation in words, with the bounds in its metadata."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], [m for meta in arguments[1:] for m in getattr(meta, "metadata", [meta])])
    if origin in (Union, UnionType):
        return " or ".join(describe(part, metadata) for part in arguments if part is not type(None))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        return 'a list of strings that are not empty, in JSON such as ["Question:"]'
    if (group := as_group(annotation)) is not None:
        return "a group of " + ", ".join(group.model_fields)
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + bounds(metadata)
    if annotation is str:
        return text(metadata)
    return {bool: "true or false", Path: "a path"}.get(annotation, str(annotation))


def text(metadata: Iterable[Any]) -> str:
    """A string in words: the characters of its pattern `^[...]*$` and its longest length, where there are any."""
    pattern = next((meta.pattern for meta in metadata if getattr(meta, "pattern", None)), None)
    longest = next((meta.max_length for meta in metadata if isinstance(meta, MaxLen)), None)
    return (
        "a text "
        + (f"of the characters {pattern.strip('^[]*$')}" if pattern else "that is not empty")
        + (f", at most {longest} of them" if longest else "")
    )


def bounds(metadata: Iterable[Any]) -> str:
    words = []
    for limit in metadata:
        match limit:
            case Ge(ge=least):
                words.append(f"from {least}")
            case Gt(gt=least):
                words.append(f"above {least}")
            case Le(le=most):
                words.append(f"to {most}")
            case Lt(lt=most):
                words.append(f"below {most}")
    return "".join(f" {word}" for word in words)


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean X?)` for the nearest of `known`, compared without their common prefix; empty if none is near."""
    likenesses = {other: likeness(name.removeprefix(prefix), other.removeprefix(prefix)) for other in sorted(known)}
    near = max(likenesses, key=lambda other: likenesses[other], default="")
    return f" (did you mean {near}?)" if likenesses.get(near, 0) >= CLOSE else ""


def likeness(a: str, b: str) -> float:
    """Of the whole names, or of their last parts (`alpha` and `sampler.alpha` are one thought), from 0 to 1.

    Of names in the same group only the last parts count.
    """
    a, b = (text.lower().replace("__", ".").strip("-").replace("-", "_") for text in (a, b))
    last = SequenceMatcher(None, a.rpartition(".")[2], b.rpartition(".")[2]).ratio()
    if "." in a and a.rpartition(".")[0] == b.rpartition(".")[0]:
        return last
    return max(SequenceMatcher(None, a, b).ratio(), 0.95 * last)
