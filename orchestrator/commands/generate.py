"""`powersample generate`: answers every row of a file by an ordinary run, and writes its answers to OUT.

The run in OUT.run is authoritative: OUT is made from its records, grows while they come, and is put in order at the
end. The format of a line is in export/generate_output.py.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from evals.record import Record
from evals.types import UserError
from orchestrator.commands.run import tell_unused
from orchestrator.console import say
from orchestrator.driver import session
from orchestrator.driver.open_runs import OpenRun
from orchestrator.export import generate_output
from orchestrator.inputs.batch import read_batch, settled
from orchestrator.inputs.this_machine import resolved
from orchestrator.installation import CONFIGS
from orchestrator.live.progress import Progress
from orchestrator.rundir.files import write_atomically, write_whole, writing
from orchestrator.rundir.reading.telemetry import read_telemetry, timings
from orchestrator.rundir.telemetry_rows import WorkerState
from orchestrator.settings.config import RunConfig
from orchestrator.settings.merge import build_config, named_settings
from orchestrator.settings.parser import check_text, variable_name
from orchestrator.wording import duration

POWER = {"sampler.alpha", "sampler.num_moves"}
"""Settings that select power sampling."""
BUSY, PER_MINUTE = 0.7, 200.0  # below these there is advice
SHOWN = 20  # failed rows that are listed with their reasons


def generate(args: Namespace) -> int:
    """Answer the rows; returns the exit code. Raises UserError for what the user can mend."""
    output = generate_output.target(args.output_file)
    asked = build_config(args, os.environ, defaults(args, os.environ), greedy_at_zero=True)
    config = checked_config(asked, output)
    if rows := read_batch(Path(config.data or ""), config.task):
        config = settled(config, rows, named_settings(args, os.environ))
    config = resolved(config)
    tell_unused(args, [config])
    files = Files(output, args.hourly_rate)
    return session.run(config, files.show, files.conclude)


def defaults(args: Namespace, environ: Mapping[str, str]) -> Path:
    """The configuration file that is read unless --config names another."""
    power = any(name in vars(args) or environ.get(variable_name(name)) for name in POWER)
    return CONFIGS / f"generate{'_power' if power else ''}.yaml"


def checked_config(config: RunConfig, output: Path) -> RunConfig:
    """The configuration of the run behind `output`. Raises UserError for what it cannot be; writes nothing."""
    for name, usual in (("run_dir", None), ("fresh", False), ("num_samples", 1), ("mode", "auto")):
        if getattr(config, name) != usual:
            raise UserError(
                f"generate keeps one answer per row (of a batch n) and its run beside the output; leave {name} out "
                "(another --output_file starts over)."
            )
    if config.task.name != "open":
        raise UserError(f"generate grades nothing but task.name is {config.task.name}; set it to open.")
    if config.model is None or config.data is None:
        missing = "model" if config.model is None else "data"
        raise UserError(f"generate needs {missing}; `powersample generate --help` lists the options.", (missing,))
    if not Path(config.data).is_file():
        raise UserError(f"There is no file {config.data}; name a file of rows (JSONL, JSON, CSV, Parquet).", ("data",))
    if output.is_dir():
        raise UserError(f"{output} is a directory; name a file by --output_file.")
    run, data = generate_output.run_of(output), str(Path(config.data).absolute())
    for path in (str(output), data):  # of a link, or below this directory, another text than the user gave
        check_text(f"The path {path}", path)
    if output.exists() and (not run.is_dir() or output.samefile(config.data)):
        raise UserError(f"{output} is there already, and not from generate; name another --output_file or move it.")
    return config.model_copy(update={"run_dir": run, "data": data, "mode": "run"})


class Files(NamedTuple):
    """The output that is written, and what an hour costs."""

    output: Path
    hourly_rate: float | None

    def show(self, run: OpenRun) -> Progress:
        """Write the answers that the run already has; returns the progress that appends the others."""
        self._write(run)
        return Generation(self, run)

    def conclude(self, runs: Sequence[OpenRun]) -> None:
        """Write the output in order of its rows, and print what failed, time and cost."""
        (run,) = runs
        self._write(run)
        records = run.records
        failed = sorted((record for record in records if record.status == "failed"), key=lambda r: r.problem_id)
        answered = len(records) - len(failed)
        cut = sum(record.ended == "length" for record in records)
        print(f"{self.output}: {answered} answers, {cut} of them cut off at the longest length")
        for record in failed[:SHOWN]:
            print(f"Failed: row {record.problem_id}: {' '.join((record.error or '').split())}")
        if len(failed) > SHOWN:
            print(f"and {len(failed) - SHOWN} more, in {run.store.directory / 'records.jsonl'}")
        if not run.owed:  # this start has sampled nothing
            return
        telemetry = read_telemetry(run.store.telemetry_path)
        spent = timings(telemetry)
        if spent.sampling_seconds:
            per_minute = 60 * answered / spent.sampling_seconds
            price = cost(spent.total_seconds or 0.0, self.hourly_rate)
            print(f"{duration(spent.total_seconds)} in all, {per_minute:.0f} examples/minute while sampling{price}")
            busy = [
                row.utilisation for row in telemetry if isinstance(row, WorkerState) and row.utilisation is not None
            ]
            for sentence in advice(mean(busy) if busy else None, per_minute, run.config):
                say(sentence)

    def writing(self, run: OpenRun) -> AbstractContextManager[None]:
        """A context that raises UserError where the output cannot be written."""
        kept = f"the answers are kept in {run.store.directory}: make room there, then start again to go on"
        return writing(self.output, kept)

    def _write(self, run: OpenRun) -> None:
        with self.writing(run):
            write_atomically(self.output, generate_output.lines(run.records, run.inputs.data.inputs, run.config))


class Generation(Progress):
    """Progress of a run without grades: shows what failed and which batch it is, and appends answers to the output."""

    def __init__(self, files: Files, run: OpenRun) -> None:
        self._run, self._files = run, files
        self._at_once = run.config.slots * run.config.num_actors
        self._told = files.hourly_rate is None
        super().__init__("generate", run.extent.total, run.records)
        self._output = files.output.open("ab", buffering=0)

    def add(self, record: Record) -> None:
        """Count one more record and append the line of its row, if that has all its answers, to the output."""
        super().add(record)
        keys = [(record.problem_id, k) for k in range(self._run.config.num_samples)]
        answers = [self._run.store.records[key] for key in keys if key in self._run.store.records]
        line = generate_output.lines(answers, self._run.inputs.data.inputs, self._run.config)
        with self._files.writing(self._run):
            write_whole(self._output.fileno(), line.encode())
        left = self.seconds_left
        if not self._told and left is not None and self.num_new >= min(2 * self._at_once, self.total // 10):
            self._told = True
            say(f"By the first {self.num_new} examples: {duration(left)} to go{cost(left, self._files.hourly_rate)}")

    def close(self) -> None:
        """Close the output, whose lines are in the order of the answers until `Files.conclude` sorts them."""
        self._output.close()
        super().close()

    def score(self) -> str:
        return f"failed {self._failed()}, {self._batch()}"

    def _batch(self) -> str:
        """The present batch and their number, as if rows were answered in batches instead of taking free slots."""
        size = self.slots or self._at_once
        return f"batch {-(-self.num // size)}/{-(-self.total // size)}"

    def state(self, speed: str) -> str:
        failed, left = self._failed(), self.seconds_left
        remaining = "unknown" if left is None else duration(left)
        return (
            f"Progress: {self.num}/{self.total} ({self.num / self.total:.1%}) - Generated: {self.num - failed}, "
            f"Failed: {failed} - {self._batch()}, {duration(self.seconds)} elapsed, {remaining} remaining"
            f"{speed and f', {speed}'}"
        )

    def _failed(self) -> int:
        return sum(record.status == "failed" for record in self._run.records)


def cost(seconds: float, hourly_rate: float | None) -> str:
    """The cost of so many seconds, as `, $1.20 at $2.40 an hour`; nothing without a rate."""
    return "" if hourly_rate is None else f", ${seconds / 3600 * hourly_rate:.2f} at ${hourly_rate:g} an hour"


def advice(utilisation: float | None, per_minute: float, config: RunConfig) -> list[str]:
    """Sentences on what would make it faster, by the GPUs' mean utilisation (0 to 1) and the examples per minute."""
    sentences = []
    if utilisation is not None and utilisation < BUSY:
        larger = "a higher --engine.target-utilisation" if config.batch_size == "auto" else "a larger --batch_size"
        sentences.append(f"The GPUs were busy {utilisation:.0%} of the time: {larger} would use them better.")
    if per_minute < PER_MINUTE:
        causes = [
            *(["CPUs instead of GPUs"] if not config.use_gpus else []),
            *([f"{config.slots} rows at once (--batch_size auto takes more)"] if config.batch_size != "auto" else []),
            *(["a sampler that draws more than one answer per row"] if config.sampler.kind != "temperature" else []),
            f"answers of up to {config.task.max_new_tokens} tokens (--max_new_tokens)",
            "a large model, other work on the same device, or few rows for the time that it takes to fill up",
        ]
        few = f"{per_minute:.0f} examples/minute while sampling are few"
        sentences.append(f"{few}; likely causes: {'; '.join(causes)}.")
    return sentences
