"""The options of `powersample run`: one flag per setting, grouped and explained. Knows neither variables nor files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from evals.config import READS
from evals.types import UserError
from orchestrator.names import allowed, as_group, is_list, known_settings, suggestion

INTRODUCTION = """Sample answers to math problems from a language model, grade them, and report accuracy with its error.

Started again, the same command goes on where it was stopped. Each option is also a variable, --batch-size
POWERSAMPLE_BATCH_SIZE and --sampler.num-moves POWERSAMPLE_SAMPLER__NUM_MOVES, and a key of the YAML file (sampler:
num_moves). Options win over variables, variables over the file."""

EXAMPLES = """examples:
  powersample run
      without GPUs the demo, four samplers compared on the embedded problems; with GPUs all of GSM8K by power sampling
  powersample run --limit 20 --sampler.alpha 2
  powersample run --config configs/gsm8k_power.yaml --num-gpus 2 --batch-size 16 --limit 100 --run-dir runs/mine
  powersample run --model path/to/model --data problems.jsonl --task.num-shots 4 --task.train-data train.jsonl
  powersample run --model demo --data demo --sampler.kind best_of --sampler.num-candidates 8
  powersample run --model demo --data demo --sampler.kind temperature --num-samples 16
      16 answers to each problem, for pass@k and maj@k
  powersample run --config configs/gsm8k_power.yaml --task.stop "Question:" --task.stop '["\\n\\n"]'
      stop strings: as they are, or as a JSON list; several add up"""

SECTIONS = {
    "what runs": ("mode", "model", "model_revision", "data", "data_split", "limit", "num_samples", "seed"),
    "where it runs": ("num_gpus", "num_workers", "batch_size", "use_batched", "inline", "dashboard", "dashboard_host"),
    "where it is kept": ("run_dir", "name", "fresh", "track"),
}
"""The settings that belong to no group."""

ALL_OPTIONS = "`powersample run --help` lists all options"
WIDEST_CHOICES = 40  # characters of choices that are shown as the placeholder of a value


def flag_name(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + name.replace("_", "-")


def help_text() -> str:
    """What `powersample run --help` prints."""
    return make_parser().format_help().rstrip()


def parse_flags(flags: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The file that --config names, and the settings that the other flags give, as nested dictionaries of texts.

    Raises UserError for an unknown flag, one without its value, and a word that belongs to none.
    """
    check_names(flags)
    try:
        found, stray = make_parser().parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(value_refusal(str(error.argument_name))) from error
    if stray:
        raise UserError(f"{stray[0]} belongs to no option; options are written --name value; {ALL_OPTIONS}.")
    given = vars(found)
    config = given.pop("config", None)
    values: dict[str, Any] = {}
    for name, value in given.items():
        group, _, key = name.rpartition(".")
        target = values.setdefault(group, {}) if group else values
        target[key] = [item for text in value for item in list_items(name, text)] if is_list(name) else value
    return config, values


def check_names(flags: Sequence[str]) -> None:
    """Raises UserError for a flag that does not exist, with the nearest one that does."""
    settings = known_settings()
    known = {flag_name(name): name for name, field in settings.items() if as_group(field.annotation) is None}
    switches = {"--no-" + flag[2:] for flag, name in known.items() if settings[name].annotation is bool}
    for flag in flags:
        name = flag.split("=")[0]
        if not name.startswith("--") or name in known or name in switches | {"--config", "--"}:
            continue
        near = suggestion(name, known.keys() | switches | {"--config"})
        if inner := [other for other in known if other.startswith(name + ".")]:
            near = f" (a group of settings, such as {inner[0]})"
        raise UserError(f"Unknown option {name}{near}; {ALL_OPTIONS}.")


def value_refusal(option: str) -> str:
    """The sentence for an option without its value, or with one that it cannot take; `option` as argparse names it."""
    if "/" in option:
        on, off = option.split("/")
        return f"{on} takes no value; write {on} or {off}."
    name = option.removeprefix("--").replace("-", "_")
    what = allowed(name) if name in known_settings() else "a YAML file, such as configs/gsm8k_power.yaml"
    return f"{option} needs a value: {what}."


def list_items(name: str, text: str) -> list[Any]:
    """What one flag adds to the list `name`: a value that begins with `[` is JSON, any other is one string."""
    if not text.startswith("["):
        return [text]
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{flag_name(name)}={text} is not valid JSON; allowed: {allowed(name)}.") from error


def make_parser() -> argparse.ArgumentParser:
    """Reads flags into texts, under the names of their settings, and writes the help."""
    parser = argparse.ArgumentParser(
        usage="powersample run [--config FILE] [options]",
        description=INTRODUCTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    first = parser.add_argument_group("options")
    first.add_argument("--config", metavar="FILE", help="YAML file with settings, such as those in configs/")
    for title, names in SECTIONS.items():
        section = parser.add_argument_group(title)
        for name in names:
            add_option(section, name)
    for group, field in known_settings().items():
        if (settings := as_group(field.annotation)) is not None:
            section = parser.add_argument_group(
                f"{group}: {field.description}", kinds() if group == "sampler" else None
            )
            for name in settings.model_fields:
                add_option(section, f"{group}.{name}")
    return parser


def kinds() -> str:
    """Which settings each kind of sampler reads."""
    lines = [f"  {kind:<12} {', '.join(sorted(names)) or 'nothing'}" for kind, names in READS.items()]
    return "\n".join(["each kind reads these settings, and another one is refused:", *lines])


def add_option(section: Any, name: str) -> None:
    """The flag of one setting."""
    field = known_settings()[name]
    words = (field.description or "") + default_words(field.description or "", field.default)
    flag, text = flag_name(name), words.replace("%", "%%")
    if field.annotation is bool:
        section.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
    else:
        action = "append" if is_list(name) else "store"
        section.add_argument(flag, dest=name, action=action, metavar=placeholder(name, field.annotation), help=text)


def default_words(description: str, default: Any) -> str:
    """The default in brackets, unless the description names it or there is none."""
    if default is None or default is PydanticUndefined or "(default:" in description:
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    shown = json.dumps(default) if isinstance(default, tuple) else f"{default:g}" if type(default) is float else default
    return f" (default: {shown})"


def placeholder(name: str, annotation: Any) -> str:
    """What stands for the value in the help."""
    if get_origin(annotation) is Literal:
        choices = "{" + ",".join(map(str, get_args(annotation))) + "}"
        return choices if len(choices) <= WIDEST_CHOICES else name.rpartition(".")[2].upper()
    words = allowed(name)
    if annotation == Path | None:
        return "DIR"
    return "N" if "whole number" in words else "X" if "number" in words else "TEXT"
