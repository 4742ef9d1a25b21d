"""`powersample export RUN --to FORMAT`: a run in the files of other tools, with the scores that its report shows.

Texts of questions and prompts are made again from the data and must be those that the run was made with. Knows how
files come about, and of each format only which module it is in.
"""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from evals.config import TaskConfig
from evals.types import Message, Problem, Record, UserError
from orchestrator import export_inspect, export_lm_eval
from orchestrator.asked import problems_of, prompts_of, task_of
from orchestrator.claim import RUN
from orchestrator.config import DEFAULT_DATA
from orchestrator.durable import write_atomically
from orchestrator.problems import GSM8K_SHA256
from orchestrator.progress import say
from orchestrator.report import read
from orchestrator.run_record import RunRecord
from orchestrator.scores import graders, right


class Exported(NamedTuple):
    """All that a format needs of a run."""

    run: RunRecord
    summary: Mapping[str, Any]
    task: TaskConfig
    records: Sequence[Record]
    """In the order of problems and samples, with the scores that count."""
    problems: Mapping[int, Problem]
    """Of the records."""
    prompts: Mapping[int, str | tuple[Message, ...]]
    """Of the records; the turns where the model was asked through its chat template."""

    @property
    def name(self) -> str:
        """The task's for other tools: the preset on GSM8K, else the data's own, so that nothing else passes for it."""
        if self.run.data == DEFAULT_DATA or self.run.data_sha256 == GSM8K_SHA256:
            return self.task.preset
        return PurePath(self.run.data or "").name.removesuffix(".jsonl").removesuffix(".json")

    @property
    def replayed(self) -> bool:
        """Whether the texts were produced elsewhere, and no model was asked."""
        return self.run.sampler["kind"] == "replay"

    @property
    def model(self) -> str:
        """Whose answers these are."""
        return f"replay-of-{PurePath(self.run.sampler['texts']).name}" if self.replayed else str(self.run.model)

    @property
    def began(self) -> float:
        """Start of the first answer in Unix seconds; 0 where one does not say."""
        return min(record.timings.get("start", 0.0) for record in self.records)

    @property
    def ended(self) -> float:
        return max(record.timings.get("end", 0.0) for record in self.records)

    def prompt_text(self, problem_id: int) -> str:
        """A prompt as one text, a chat's turns as JSON."""
        prompt = self.prompts[problem_id]
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def parquet(found: Exported, out: Path | None, usual: Path) -> dict[Path, bytes]:
    """The one file: `out`, or records.parquet in `usual`. run.json goes with it, as the schema's key `powersample`."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    text, whole, names = pa.string(), pa.int64(), graders(found.records)
    graded = {f"{name}_{what}": kind for name in names for what, kind in (("correct", pa.bool_()), ("answer", text))}
    columns = {
        **dict.fromkeys(("problem_id", "sample_index"), whole),
        **dict.fromkeys(("question", "solution", "prompt", "status", "ended", "text"), text),
        **{"token_ids": pa.list_(pa.int32()), **graded},
        **dict.fromkeys(("prompt_tokens", "answer_tokens", "generated_tokens"), whole),
        **{"wall_seconds": pa.float64(), "chain": text, "error": text},
    }
    rows = [answer_row(found, record, names) for record in found.records]
    schema = pa.schema(list(columns.items()), {"powersample": json.dumps(found.run.content, ensure_ascii=False)})
    buffer = io.BytesIO()
    write_table(pa.Table.from_pylist(rows, schema), buffer)
    return {out or usual / "records.parquet": buffer.getvalue()}


def answer_row(found: Exported, record: Record, names: Sequence[str]) -> dict[str, Any]:
    """One answer; what a failed record lacks is null, a failed answer is wrong."""
    problem = found.problems[record.problem_id]
    return {
        **record._asdict(),
        "question": problem.question,
        "solution": problem.answer,
        "prompt": found.prompt_text(record.problem_id),
        **{f"{name}_correct": right(record, name) for name in names},
        **{f"{name}_answer": record.scores.get(name, {}).get("answer") for name in names},
        **{f"{name}_tokens": record.tokens.get(name) for name in ("prompt", "answer", "generated")},
        "wall_seconds": record.timings.get("wall_seconds"),
        "chain": json.dumps(record.chain, ensure_ascii=False),
    }


FORMATS = {"lm-eval": export_lm_eval.files, "inspect": export_inspect.files, "parquet": parquet}
"""Format -> the files of a run below a place: path -> content, the one that the tool looks for last."""


def export(args: Namespace) -> int:
    """Write a run in another format; returns the exit code. Raises UserError for what the user can mend."""
    directory = args.run
    try:
        found = gather(directory, args.data)
        files = FORMATS[args.to](found, args.out, directory / "exports")
    except KeyError as error:
        raise UserError(
            f"{directory}: {error} is missing in {RUN} or a record; export the run with the version that made it."
        ) from error
    write_new(files)
    if owed := found.summary["num_owed"]:
        say(f"The run still owes {owed} answers; the export has those that are there.")
    for path in files:
        print(path)
    return 0


def gather(directory: Path, data: str | None) -> Exported:
    """Read a run and make its prompts again. Raises UserError if it has no answer or they are not the run's prompts."""
    found = read(directory)
    task, problems = task_of(found.identity), problems_of(found.identity, data)
    prompts, ids = prompts_of(found.identity, problems), {one.problem_id for one in found.records}
    kept = {key: problem for key, problem in problems.items() if key in ids}
    asked = {key: prompt for key, prompt in prompts.items() if key in ids}
    return Exported(found.identity, found.summary, task, found.records, kept, asked)


def write_new(files: Mapping[Path, str | bytes]) -> None:
    """Write all files or none, and over no file. Raises UserError."""
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists already; move or delete it, or name another place by --out.")
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        place = error.filename or next(iter(files))
        raise UserError(f"{place} cannot be written ({error.strerror}); name another place by --out.") from error
