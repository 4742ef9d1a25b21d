"""Prepares run directories and opens them, all or none, with the work that each still owes."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from evals.record import Record
from evals.samplers.registry import settings_of
from evals.tasks.presets import PRESETS
from evals.types import Problem, UserError
from orchestrator.console import say
from orchestrator.driver.dispatcher import failed_record
from orchestrator.inputs.preflight import Inputs
from orchestrator.inputs.problems import DIGITS
from orchestrator.inputs.prompts import check_rows
from orchestrator.inputs.replay_texts import text_digests
from orchestrator.machine.description import Environment
from orchestrator.rundir.directory import RECORDS
from orchestrator.rundir.extents import Extent
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import first_records
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.rundir.writing.ownership import num_lines
from orchestrator.rundir.writing.run_store import RunStore, check_root, check_store, fresh_directory, open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RECORD_FORMAT, RunConfig, fingerprint, fingerprints, run_directory, runs_of
from orchestrator.workers.pool import Work


class PreparedRun(NamedTuple):
    """A run whose directory has not been opened yet."""

    config: RunConfig
    directory: Path
    content: dict[str, JsonValue]
    """What run.json will say."""
    inputs: Inputs
    """What its workers load; between runs that share it they load nothing."""


class OpenRun(NamedTuple):
    """A locked run directory with the work that it still owes."""

    config: RunConfig
    store: RunStore
    telemetry: Telemetry
    owed: list[Work]
    extent: Extent
    """What it was asked for."""
    inputs: Inputs

    @property
    def records(self) -> list[Record]:
        """The answers that were asked for and are there: it may have more, which were asked for before."""
        return [record for key, record in self.store.records.items() if key in self.extent]

    def start(self, began: float, environment: Environment) -> None:
        """Write to the telemetry that this process drives the run, since `began` (Unix seconds), and its software."""
        start = Event(
            event="start",
            time=began,
            pid=os.getpid(),
            host=socket.gethostname(),
            done=len(self.records),
            owed=len(self.owed),
            num_workers=self.config.num_actors,
            slots=self.config.slots,
            inline=self.config.inline,
            git_commit=environment.git_commit,
            git_dirty=environment.git_dirty,
            versions=environment.versions,
        )
        self.telemetry.write(start)
        self.telemetry.write(Event(event="phase", time=began, name="setup"))
        if self.store.cut_bytes:
            self.telemetry.write(Event(event="torn_tail", bytes=self.store.cut_bytes))


def prepare_runs(inputs: Inputs, environment: Environment) -> list[PreparedRun]:
    """The runs of a configuration with their directories, none of which is made yet.

    Raises UserError if the demo's would lie in a directory of other files, or the prompts have changed since a run
    began.
    """
    config, prepared = inputs.config, []
    demo = config.mode == "demo"
    if config.fresh and demo:
        config = config.model_copy(update={"run_dir": fresh_directory(config.run_dir or Path("runs/demo"))})
    for one in runs_of(config):
        content, directory = run_content(one, inputs, environment), run_directory(one, inputs.provenance)
        if config.fresh and not demo:
            directory = fresh_directory(directory)
        if begun := Manifest.begun(directory, *fingerprints(one, inputs.provenance)):
            content["fingerprint"] = begun.fingerprint
            if num_lines(directory / RECORDS):  # without an answer all may be mended
                check_preset(begun, PRESETS[one.task.preset].version)
                check_rows(begun, inputs.data)
                check_texts(begun, inputs)
                check_prompts(begun, inputs)
        prepared.append(PreparedRun(one, directory, content, inputs))
    if demo:
        check_root([one.directory for one in prepared])
    return prepared


def run_content(config: RunConfig, inputs: Inputs, environment: Environment) -> dict[str, JsonValue]:
    """The content of run.json: configuration, inputs, environment, fingerprint, extents."""
    settings = config.model_dump(mode="json", exclude={"fresh", "inline"})
    asked = extent_of(config, inputs).model_copy(
        update={"time": datetime.now().astimezone().isoformat(timespec="seconds")}
    )
    return {
        "config": {**settings, "sampler": settings_of(config.sampler)},
        "num_problems": inputs.data.num_problems,
        "provenance": {
            **inputs.describe(),
            "dtype": config.engine.dtype,
            "record_format": RECORD_FORMAT,
            "preset_version": PRESETS[config.task.preset].version,
            **asdict(environment),
        },
        "prompt_ids_sha256": inputs.prompt_ids,
        "rows_sha256": inputs.data.rows_digest,
        **({"replayed_sha256": [*text_digests(inputs.texts)]} if inputs.texts else {}),
        "fingerprint": fingerprint(config, inputs.provenance),
        "extents": [asked.model_dump()],
    }


def extent_of(config: RunConfig, inputs: Inputs) -> Extent:
    """What a run is asked for."""
    data = inputs.data
    return Extent(
        limit=config.limit, num_samples=config.num_samples, num_problems=data.num_problems, rows=data.num_rows
    )


def check_preset(begun: Manifest, present: str) -> None:
    """Raises UserError if the run has begun with another version of its preset; older runs do not say with which."""
    if begun.preset_version not in (None, present):
        raise UserError(
            f"The run in {begun.directory} has begun with version {begun.preset_version} of the preset {begun.preset}, "
            f"which is at version {present} now; go on with the version that began it, or start over in a new "
            "directory.",
            ("fresh",),
        )


def check_texts(begun: Manifest, inputs: Inputs) -> None:
    """Raises UserError if the run has begun with another text for a problem that is replayed now."""
    for problem, (old, new) in enumerate(zip(begun.replayed_sha256, text_digests(inputs.texts or {}), strict=False)):
        if not (old.startswith(new) or new.startswith(old)):
            raise UserError(
                f"The texts to replay for problem {problem} are not those that the run in {begun.directory} has begun "
                "with; restore them to go on, or start over in a new directory.",
                ("sampler.texts", "fresh"),
            )


def check_prompts(begun: Manifest, inputs: Inputs) -> None:
    """Raises UserError if the run has begun with other token ids for a problem that it still owes."""
    kept, ours = begun.prompt_ids_sha256 or "", inputs.prompt_ids
    if kept.startswith(ours) or ours.startswith(kept):
        return
    records, samples = first_records(begun.directory / RECORDS), range(inputs.config.num_samples)
    for place, problem in enumerate(inputs.data.problems):
        old, new = (digits[DIGITS * place : DIGITS * place + DIGITS] for digits in (kept, ours))
        if old and old != new and any((problem.problem_id, k) not in records for k in samples):
            raise UserError(
                f"The prompt of problem {problem.problem_id}, which the run in {begun.directory} still owes, has other "
                "token ids than when the run began: the tokenizer's files, the chat template or the versions of "
                "transformers and tokenizers have changed; restore them to go on, or start over in a new directory.",
                ("fresh",),
            )


def open_runs(prepared: Sequence[PreparedRun], stack: ExitStack) -> list[OpenRun]:
    """Open and lock the directories of all prepared runs, or of none; `stack` closes them. Raises UserError.

    Rows of the data that were refused get a failed record here, and no worker is given them.
    """
    if len(prepared) > 1:
        for one in prepared:
            check_store(one.directory, one.content)
    runs = []
    for config, directory, content, inputs in prepared:
        store = open_store(directory, content)
        stack.callback(store.close)
        telemetry = Telemetry(store.telemetry_path)
        stack.callback(telemetry.close)
        if store.cut_bytes:
            say(f"{directory}: cut an unfinished record of {store.cut_bytes} bytes, left by a crash; it is owed again.")
        problems, refused = inputs.data.problems, inputs.data.refused
        for row, reason in refused.items():
            work = Work(Problem(row, "", ""), 0, config.sampler, config.task, config.seed)
            store.append(failed_record(work, "input", reason))
        owed = [
            Work(problem, index, config.sampler, config.task, config.seed)
            for problem, index in store.owed(problems, config.num_samples)
        ]
        extent = extent_of(config, inputs)
        rows = f" {len(refused)} row{'s' * (len(refused) > 1)} refused," if refused else ""
        there = f"{extent.total - len(refused) - len(owed)} of {extent.total} answers are there"
        more = len(store.records) - (extent.total - len(owed))
        rows += f" {more} more that were asked for before are kept," if more else ""
        say(f"{directory}: {there},{rows} {len(owed)} are owed.")
        runs.append(OpenRun(config, store, telemetry, owed, extent, inputs))
    return runs
