"""The output format of `powersample generate`, a line for each answer, which `powersample validate` checks.

Difficulty, domain and the original output are the input row's, null where it has none; its other fields, such as an id,
are in metadata's `other_fields`, which a row without any lacks. Of a batch of OpenAI's the output is one, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from evals.record import Record
from evals.samplers.registry import settings_of
from orchestrator.export import openai_batch
from orchestrator.inputs.batch import BatchRow
from orchestrator.inputs.rows import InputRow
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


def generation_params(sampler: Mapping[str, JsonValue], max_new_tokens: int | None) -> dict[str, JsonValue]:
    """The `generation_params` of a line: temperature, top_p and max_new_tokens, or else all settings of the sampler.

    `sampler` is as run.json has it.
    """
    if sampler["kind"] == "temperature":
        usual = {"temperature": sampler["temperature"], "top_p": sampler.get("top_p", 1.0)}
        sampler = {**usual, "top_k": sampler["top_k"]} if sampler.get("top_k") else usual
    return {**sampler, "max_new_tokens": max_new_tokens}


def written(row: InputRow, text: str, example_id: int, teacher_model: str, params: dict[str, JsonValue]) -> Output:
    """The line of the answer `text` to an input row, which is the `example_id`-th."""
    metadata = Metadata(
        original_output=row.original_output,
        example_id=example_id,
        teacher_model=teacher_model,
        generation_params=params,
        other_fields=row.others,
    )
    return Output(input=row.question, output=text, difficulty=row.difficulty, domain=row.domain, metadata=metadata)


def outputs(
    records: Iterable[Record], rows: Mapping[int, InputRow], teacher_model: str, params: dict[str, JsonValue]
) -> list[Output]:
    """The lines of the records that are ok, in the order of the input."""
    answered = sorted((record.problem_id, record.text) for record in records if record.status == "ok")
    return [written(rows[number], text, number, teacher_model, params) for number, text in answered]


def lines(records: Iterable[Record], rows: Mapping[int, InputRow], config: RunConfig) -> str:
    """The output file of these records of a run."""
    if isinstance(next(iter(rows.values()), None), BatchRow):
        return openai_batch.lines(records, rows, config.model or "", config.num_samples)
    params = generation_params(settings_of(config.sampler), config.task.max_new_tokens)
    made = outputs(records, rows, config.model or "", params)
    return "".join(one.model_dump_json(exclude_defaults=True) + "\n" for one in made)


def target(output: Path) -> Path:
    """The path of the output file itself: of a link, what it points to."""
    return output.resolve() if output.is_symlink() else output


def run_of(output: Path) -> Path:
    """The run directory of an output file: `answers.jsonl.run` beside `answers.jsonl`, of a link beside its target."""
    output = target(output)
    return output.with_name(f"{output.name}.run")
