"""The output format of `powersample generate`, a line for each answer, which `powersample validate` checks.

Difficulty, domain and the original output are the input row's, null where it has none; its other fields, such as an id,
are in metadata's `other_fields`, which a row without any lacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from evals.config import TaskConfig
from evals.record import Record
from evals.samplers.registry import settings_of
from evals.samplers.single import AtTemperature
from evals.types import UserError
from orchestrator.inputs.jsonl import jsonl_lines, parse_line
from orchestrator.inputs.problems import find_question
from orchestrator.settings.config import RunConfig


class Metadata(BaseModel):
    """The `metadata` of an output line: where it comes from."""

    model_config = ConfigDict(strict=True, extra="forbid")

    original_output: JsonValue
    example_id: int
    """Row of the input, from 0."""
    teacher_model: str
    generation_params: dict[str, JsonValue]
    other_fields: dict[str, JsonValue] = {}


class Output(BaseModel):
    """A line of the output file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input: str
    output: str
    difficulty: JsonValue
    domain: JsonValue
    metadata: Metadata


def generation_params(config: RunConfig) -> dict[str, Any]:
    """The `generation_params` of a line: temperature, top_p and max_new_tokens, or else all that the sampler reads."""
    sampler = config.sampler
    if isinstance(sampler, AtTemperature):
        settings = {"temperature": sampler.temperature, "top_p": sampler.top_p}
        settings |= {"top_k": sampler.top_k} if sampler.top_k else {}
    else:
        settings = settings_of(sampler)
    return {**settings, "max_new_tokens": config.task.max_new_tokens}


def input_fields(row: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    """The fields of an output line that come from its input row."""
    question, original = find_question(row, task), "original_output" if "original_output" in row else "output"
    named = {question, original, "difficulty", "domain"}
    return {
        "input": row[question],
        "difficulty": row.get("difficulty"),
        "domain": row.get("domain"),
        "metadata": {
            "original_output": row.get(original),
            "other_fields": {name: value for name, value in row.items() if name not in named},
        },
    }


def line(record: Record, row: Mapping[str, Any], config: RunConfig) -> str:
    """The output line of a record that is ok."""
    fields = input_fields(row, config.task)
    fields["metadata"] = Metadata(
        **fields["metadata"],
        example_id=record.problem_id,
        teacher_model=config.model or "",
        generation_params=generation_params(config),
    )
    return Output(**fields, output=record.text).model_dump_json(exclude_defaults=True) + "\n"


def lines(records: Iterable[Record], rows: Mapping[int, Mapping[str, Any]], config: RunConfig) -> str:
    """The output file of these records: those that are ok, in the order of the input."""
    good = sorted((record for record in records if record.status == "ok"), key=lambda record: record.problem_id)
    return "".join(line(record, rows[record.problem_id], config) for record in good)


def input_rows(path: Path) -> dict[int, Any]:
    """Row number -> what the row holds; None for a line that is no JSON.

    Raises UserError if there is no such file.
    """
    rows = {}
    for number, (where, text) in enumerate(jsonl_lines(path, "name a JSONL file", ("data",))):
        try:
            rows[number] = parse_line(text, where)
        except UserError:  # reported where the problems are loaded
            rows[number] = None
    return rows


def target(output: Path) -> Path:
    """The path of the output file itself: of a link, what it points to."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def run_of(output: Path) -> Path:
    """The run directory of an output file: `answers.jsonl.run` beside `answers.jsonl`, of a link beside its target."""
    output = target(output)
    return output.with_name(f"{output.name}.run")
