"""`powersample generate`: answers to every row of a JSONL file, by a run whose records are written in another format.

The run in OUT.run is the truth: OUT is made from its records, streamed while they come, and put in order at the end.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any, NamedTuple

from evals.types import Record, UserError
from orchestrator import outputs
from orchestrator.config import RunConfig
from orchestrator.durable import write_atomically, write_whole
from orchestrator.layout import duration
from orchestrator.progress import Progress, say
from orchestrator.runs import OpenRun
from orchestrator.telemetry import read_telemetry, timings

CONFIGS = Path(__file__).parents[1] / "configs"
STARTING_BATCHES = {"H200": 32, "H100": 16, "A100": 8, "A6000": 10}
"""Batch sizes to start from by hand, for 8B models at 2,048 tokens; auto measures and takes more."""
SETTINGS = {
    "--model_path": "--model",
    "--input_file": "--data",
    "--batch_size": "--batch-size",
    "--max_new_tokens": "--task.max-new-tokens",
    "--max_examples": "--limit",
    "--temperature": "--sampler.temperature",
    "--top_p": "--sampler.top-p",
    "--alpha": "--sampler.alpha",
    "--num_moves": "--sampler.num-moves",
}
"""Options that are settings of a run under other names."""
INPUT = "--input_file"
POWER = ("--alpha", "--num_moves")
BUSY, PER_MINUTE = 0.7, 200.0  # below these there is advice
SHOWN = 20  # failed rows that are listed with their reasons

HELP = f"""usage: powersample generate --model_path MODEL --input_file IN.jsonl --output_file OUT.jsonl [options]

Answers every row of IN.jsonl, which has its text under `input` or `prompt`, on all GPUs (or --num-workers processes on
CPUs). OUT.jsonl grows in the order in which answers come and is put in the order of its rows at the end; the run behind
it is kept in OUT.jsonl.run, and the same command goes on from there. Try --max_examples 10 first.

  --batch_size N        rows at once per GPU (default: auto, as many as its memory holds; values to start from by hand:
                        {", ".join(f"{gpu} {size}" for gpu, size in STARTING_BATCHES.items())})
  --max_new_tokens N    longest answer (default: 2048); prompts are cut at --task.max-prompt-tokens (2048)
  --max_examples N      only the first so many rows
  --temperature T       (default: 0.7) and
  --top_p P             (default: 0.9) of the draws
  --alpha A             power sampling from p^A instead, with
  --num_moves N         Metropolis-Hastings moves per answer (default: 10)
  --hourly_rate X       price of all GPUs together for an hour: the cost is told after a warm-up and at the end

All options of `powersample run --help` that do not contradict these are taken, too, such as --task.chat,
--task.template "Question: {{question}}" or --num-gpus; the defaults are in configs/generate.yaml, or, with --alpha or
--num_moves, in configs/generate_power.yaml.

Exit codes: 0 complete, 2 refused with one sentence, 3 complete but some rows failed (they are listed)."""


class Options(NamedTuple):
    """The command line, sorted."""

    flags: list[str]
    """As `powersample run` takes them."""
    output: Path
    hourly_rate: float | None
    defaults: Path
    """The configuration file unless the flags name one."""


def generate(arguments: Sequence[str], start: Callable[..., int]) -> int:
    """Run the command; `start` takes a configuration, the GPUs and what `session.run` takes. Returns the exit code."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(HELP)
        return 0
    from orchestrator import hardware
    from orchestrator.settings import build_config

    options = read_options(arguments)
    try:
        config = checked(build_config(options.flags, os.environ, options.defaults), options.output)
        files = Files(options.output, outputs.input_rows(Path(config.data or ""), INPUT), options.hourly_rate)
        return start(config, hardware.gpus(), show=files.show, conclude=files.conclude)
    except UserError as error:
        raise UserError(in_our_words(str(error))) from error


def in_our_words(refusal: str) -> str:
    """A refusal by a run, with the options named as they are here."""
    for ours, setting in {**SETTINGS, "--output_file": "POWERSAMPLE_RUN_DIR or --run-dir"}.items():
        refusal = re.sub(rf"(?<![\w-]){re.escape(setting)}(?![\w-]|\.\w)", ours, refusal)
    return refusal


def read_options(arguments: Sequence[str]) -> Options:
    """Raises UserError for a value that is missing or no price."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*SETTINGS, "--output_file"):
        parser.add_argument(*{name, name.replace("_", "-")})
    parser.add_argument("--hourly_rate", "--hourly-rate", type=price)
    try:
        given, flags = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"generate: {error}; `powersample generate --help` lists the options.") from error
    if given.output_file is None:
        raise UserError("generate needs --output_file, such as answers.jsonl.")
    values = {name: getattr(given, name.removeprefix("--")) for name in SETTINGS}
    for name, value in values.items():
        flags += [] if value is None else [SETTINGS[name], value]
    power = any(values[name] is not None for name in POWER)
    defaults = CONFIGS / f"generate{'_power' if power else ''}.yaml"
    return Options(flags, outputs.target(Path(given.output_file)), given.hourly_rate, defaults)


def price(text: str) -> float:
    """Raises ValueError unless it is one."""
    if not 0 <= (rate := float(text)) < float("inf"):
        raise ValueError
    return rate


def checked(config: RunConfig, output: Path) -> RunConfig:
    """The run behind `output`. Raises UserError for what cannot be one, before anything is written."""
    for name, usual in (("run_dir", None), ("fresh", False), ("num_samples", 1), ("mode", "auto")):
        if getattr(config, name) != usual:
            raise UserError(
                f"generate keeps one answer per row and its run beside the output; leave {name} out (another "
                "--output_file starts over)."
            )
    if config.task.name != "open":
        raise UserError(f"generate grades nothing but task.name is {config.task.name}; set it to open.")
    if config.model is None or config.data is None:
        missing = "--model_path" if config.model is None else "--input_file"
        raise UserError(f"generate needs {missing}; `powersample generate --help` lists the options.")
    if not Path(config.data).is_file():
        raise UserError(f"There is no file {config.data}; name a JSONL file by --input_file.")
    run = outputs.run_of(output)
    if output.is_dir() or (output.exists() and (not run.is_dir() or output.samefile(config.data))):
        raise UserError(f"{output} is there already, and not from generate; name another --output_file or move it.")
    return config.model_copy(update={"run_dir": run, "data": str(Path(config.data).absolute()), "mode": "run"})


class Files(NamedTuple):
    """One input and its output."""

    output: Path
    rows: Mapping[int, Any]
    hourly_rate: float | None

    def show(self, run: OpenRun) -> Progress:
        """The output as far as it is, and the progress that lets it grow."""
        self._write(run)
        return Generation(self, run)

    def conclude(self, runs: Sequence[OpenRun]) -> None:
        """The output in order, what failed, time and cost."""
        (run,) = runs
        self._write(run)
        records = run.store.records.values()
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
        if spent["sampling_seconds"]:
            per_minute = 60 * answered / spent["sampling_seconds"]
            price = cost(spent["total_seconds"], self.hourly_rate)
            print(f"{duration(spent['total_seconds'])} in all, {per_minute:.0f} examples/minute while sampling{price}")
            busy = [row["utilisation"] for row in telemetry if row.get("utilisation") is not None]
            for sentence in advice(mean(busy) if busy else None, per_minute, run.config):
                say(sentence)

    def _write(self, run: OpenRun) -> None:
        text = outputs.lines(run.store.records.values(), self.rows, run.config)
        try:
            write_atomically(self.output, text)
        except OSError as error:
            raise unwritable(self.output, run, error) from error


def unwritable(output: Path, run: OpenRun, error: OSError) -> UserError:
    return UserError(
        f"{output} cannot be written ({error.strerror}); the answers are kept in {run.store.directory}: make room "
        "there, then start again to go on."
    )


class Generation(Progress):
    """Progress of a run without grades: what failed and which batch it is; every answer goes into the output."""

    def __init__(self, files: Files, run: OpenRun) -> None:
        self._run, self._files = run, files
        self._at_once = run.config.slots * run.config.num_actors
        self._told = files.hourly_rate is None
        self._start = monotonic()
        super().__init__("generate", run.total, run.store.records.values())
        self._output = files.output.open("ab", buffering=0)

    def add(self, record: Record) -> None:
        """One more record, and its line."""
        super().add(record)
        if record.status == "ok":
            line = outputs.line(record, self._files.rows[record.problem_id], self._run.config)
            try:
                write_whole(self._output.fileno(), line.encode())
            except OSError as error:
                raise unwritable(self._files.output, self._run, error) from error
        new = self.num - self._initial
        if not self._told and new >= min(2 * self._at_once, self._total // 10):
            self._told = True
            left = (self._total - self.num) * (monotonic() - self._start) / new
            say(f"By the first {new} examples: {duration(left)} to go{cost(left, self._files.hourly_rate)}")

    def close(self) -> None:
        """The output is in the order of the answers until `Files.conclude`."""
        self._output.close()
        super().close()

    def _score(self) -> str:
        return f"failed {self._failed()}, {self._batch()}"

    def _batch(self) -> str:
        """Which of how many batches it would be, if rows did not follow one another into free slots."""
        size = sum(reading.get("slots", 0) for reading in self._workers.values()) or self._at_once
        return f"batch {-(-self.num // size)}/{-(-self._total // size)}"

    def _state(self, speed: str) -> str:
        elapsed, new, failed = monotonic() - self._start, self.num - self._initial, self._failed()
        remaining = duration(elapsed * (self._total - self.num) / new) if new else "unknown"
        return (
            f"Progress: {self.num}/{self._total} ({self.num / self._total:.1%}) - Generated: {self.num - failed}, "
            f"Failed: {failed} - {self._batch()}, {duration(elapsed)} elapsed, {remaining} remaining"
            f"{speed and f', {speed}'}"
        )

    def _failed(self) -> int:
        return sum(record.status == "failed" for record in self._run.store.records.values())


def cost(seconds: float, hourly_rate: float | None) -> str:
    """`, $1.20 at $2.40 an hour`; nothing without a rate."""
    return "" if hourly_rate is None else f", ${seconds / 3600 * hourly_rate:.2f} at ${hourly_rate:g} an hour"


def advice(utilisation: float | None, per_minute: float, config: RunConfig) -> list[str]:
    """What would make it faster, by the GPUs' mean utilisation (0 to 1) and the examples per minute."""
    found = []
    if utilisation is not None and utilisation < BUSY:
        larger = "a higher --engine.target-utilisation" if config.batch_size == "auto" else "a larger --batch_size"
        found.append(f"The GPUs were busy {utilisation:.0%} of the time: {larger} would use them better.")
    if per_minute < PER_MINUTE:
        causes = [
            *(["CPUs instead of GPUs"] if not config.use_gpus else []),
            *([f"{config.slots} rows at once (--batch_size auto takes more)"] if config.batch_size != "auto" else []),
            *(["a sampler that draws more than one answer per row"] if config.sampler.kind != "temperature" else []),
            f"answers of up to {config.task.max_new_tokens} tokens (--max_new_tokens)",
            "a large model, other work on the same device, or few rows for the time that it takes to fill up",
        ]
        found.append(f"{per_minute:.0f} examples/minute while sampling are few; likely causes: {'; '.join(causes)}.")
    return found
