"""`powersample run`, from a configuration to an exit code: find, check, lock, start the crew, drive, report.

A session fills one run directory, or several one after the other with the same workers (the demo's four methods). What
the user got wrong is refused before Ray starts and before anything is written.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from evals.samplers.make import make_sampler
from evals.tasks.gsm8k import make_task
from evals.types import Problem
from orchestrator import address, hardware, preflight
from orchestrator.config import Provenance, RunConfig, fingerprint, plan, run_content, run_directory
from orchestrator.crew import Crew, Died, Lost, Ready, Spawned, Work
from orchestrator.driver import drive, failed_record, note
from orchestrator.inline import InlineCrew
from orchestrator.metrics import check_tracker, published
from orchestrator.models import ModelSource, resolve_model
from orchestrator.problems import TRAIN_SETTING, DataSource, load_problems
from orchestrator.progress import Progress
from orchestrator.report import tell
from orchestrator.stop import Stop
from orchestrator.store import Key, RunStore, check_root, check_store, fresh_directory, open_store
from orchestrator.telemetry import Telemetry
from orchestrator.texts import load_texts, texts_digest
from orchestrator.worker import Worker, WorkerConfig

MAX_CPU_THREADS = 2
"""From 4 threads on, products were measured to differ in the last bit from those of 1 to 3: answers would depend on the
number of workers. More workers use more cores just as well."""
FAILED = 3  # exit code of a complete run in which problems were given up
NO_ROWS: Mapping[int, str] = MappingProxyType({})
WAITING_SECONDS = 30.0  # between two lines that say what is waited for


class Inputs(NamedTuple):
    """What was found and checked before anything starts."""

    config: RunConfig
    model: ModelSource
    data: DataSource
    train_problems: tuple[Problem, ...]
    train_digest: str | None
    max_length: int
    """Longest prompt plus answer, in tokens."""
    prompts_digest: str
    texts: dict[Key, str] | None = None
    """What the sampler replays; None where it samples."""

    @property
    def provenance(self) -> Provenance:
        texts = None if self.texts is None else texts_digest(self.texts)
        return Provenance(self.model.digest, self.data.digest, self.train_digest, texts)


class Planned(NamedTuple):
    """A run before its directory is opened."""

    config: RunConfig
    directory: Path
    fingerprint: str
    content: dict[str, Any]
    """What run.json will say."""


class OpenRun(NamedTuple):
    """A locked run directory with what it still owes."""

    config: RunConfig
    store: RunStore
    telemetry: Telemetry
    owed: list[Work]
    total: int

    def start(self, began: float, workers: int, software: Mapping[str, Any]) -> None:
        """Say in the telemetry that this process works on the run, since `began` (Unix seconds), by `software`."""
        self.telemetry.event(
            "start",
            time=began,
            pid=os.getpid(),
            host=socket.gethostname(),
            done=len(self.store.records),
            owed=len(self.owed),
            num_workers=workers,
            slots=self.config.slots,
            inline=self.config.inline,
            **software,
        )
        self.telemetry.phase("setup", began)
        if self.store.cut_bytes:
            self.telemetry.event("torn_tail", bytes=self.store.cut_bytes)


def show_progress(run: OpenRun) -> Progress:
    """Accuracy so far, for a run that is being driven."""
    return Progress(run.config.name, run.total, run.store.records.values())


def conclude(runs: Sequence[OpenRun]) -> None:
    """Write and print the report of complete runs."""
    if not any(one.owed for one in runs):
        say("The run is complete already; this is its report again (--fresh starts over in a new directory).")
    directories = [one.store.directory for one in runs]
    tell(directories, common(directories) if len(runs) > 1 else None)


def run(
    config: RunConfig,
    show: Callable[[OpenRun], Progress] = show_progress,
    conclude: Callable[[Sequence[OpenRun]], None] = conclude,
) -> int:
    """Do all that a resolved configuration asks for; returns the exit code.

    `show` makes what shows a run while it is driven, `conclude` tells of runs that are complete.

    0 complete, 3 complete but some problems were given up, 128 + number of the signal that stopped it. Raises UserError
    for what the user can mend and WorkersLost when the workers cannot be kept alive; the records so far are safe.
    """
    began = time.time()
    check_ray(config)
    inputs, environment = find(config), hardware.describe()
    return carry_out(
        config,
        lambda stack: open_runs(plan_runs(inputs, environment), inputs.data.problems, stack, inputs.data.refused),
        lambda owing, stop: sample(owing, inputs, stop, show),
        conclude,
        began,
        environment,
    )


def check_ray(config: RunConfig) -> None:
    """Raises UserError where Ray is to be joined or listened to and cannot be."""
    if not config.inline:
        address.check(config.dashboard_host)
        if address.ray_address() == address.AUTO:
            from orchestrator.join import find_cluster

            find_cluster()


def carry_out(
    config: RunConfig,
    opened: Callable[[ExitStack], list[OpenRun]],
    sampled: Callable[[list[OpenRun], Stop], None],
    conclude: Callable[[Sequence[OpenRun]], None],
    began: float,
    environment: Mapping[str, Any],
) -> int:
    """Open runs, work off by `sampled` what they owe, and conclude; returns the exit code. Raises as `run` does."""
    stop = Stop()
    with ExitStack() as stack:
        runs = opened(stack)
        if any(one.owed for one in runs):
            stop.install()
            stack.callback(stop.restore)
            software = {name: environment[name] for name in ("git_commit", "git_dirty", "versions")}
            owing = [one for one in runs if one.owed]
            for one in owing:
                one.start(began, config.num_actors, software)
            sampled(owing, stop)
        directories = [one.store.directory for one in runs]
        done, total = sum(len(one.store.records) for one in runs), sum(one.total for one in runs)
        if stop.number is not None and done < total:
            say(
                f"Stopped by {signal.Signals(stop.number).name} with {done} of {total} answers in "
                f"{common(directories)}; {way_on(config, common(directories))}."
            )
            return 128 + stop.number
        conclude(runs)
        return FAILED if any(record.status == "failed" for one in runs for record in one.store.records.values()) else 0


def find(config: RunConfig, model: ModelSource | None = None) -> Inputs:
    """Find model, unless it was found before, and data, and check that they fit. Raises UserError."""
    check_tracker(config.track)
    data = load_problems(config.data or "", config.data_split, config.limit, config.task)
    sampler, train = config.sampler, None
    texts = None if sampler.texts is None else load_texts(sampler.texts, data, config.num_samples)
    if config.task.num_shots and config.task.train_data is not None:
        train = load_problems(config.task.train_data, "train", None, config.task, TRAIN_SETTING)
    model = model or resolve_model(
        config.model or "",
        config.model_revision,
        trust_remote_code=config.engine.trust_remote_code,
        allow_pickle=config.engine.allow_pickle,
    )
    train_problems = tuple(train.problems) if train else ()
    max_length = preflight.check(config, model.folder, data.problems, train_problems, texts)
    prompts = preflight.prompts_digest(make_task(config.task, config.seed, train_problems), data.problems)
    return Inputs(config, model, data, train_problems, train.digest if train else None, max_length, prompts, texts)


def way_on(config: RunConfig, directory: Path) -> str:
    """How to go on with a run that was stopped: a second fresh start would be another run."""
    if config.fresh:
        return f"--run-dir {directory} without --fresh (variables: without POWERSAMPLE_FRESH) goes on from there"
    return "the same command goes on from there"


def plan_runs(inputs: Inputs, environment: Mapping[str, Any]) -> list[Planned]:
    """The planned runs with their directories, of which none is made here."""
    config, planned = inputs.config, []
    if config.fresh and config.mode == "demo":
        config = config.model_copy(update={"run_dir": fresh_directory(config.run_dir or Path("runs/demo"))})
    for one in plan(config):
        digest = fingerprint(one, inputs.provenance)
        directory = run_directory(one, digest)
        if config.fresh and config.mode != "demo":
            directory = fresh_directory(directory)
        found = inputs.model.describe(), inputs.data.describe(), inputs.data.num_problems
        content = run_content(one, *found, environment, inputs.prompts_digest, inputs.provenance.texts)
        planned.append(Planned(one, directory, digest, content))
    return planned


def open_runs(
    planned: Sequence[Planned], problems: Sequence[Problem], stack: ExitStack, refused: Mapping[int, str] = NO_ROWS
) -> list[OpenRun]:
    """Open and lock the directories of all planned runs, or of none; `stack` closes them. Raises UserError.

    Rows that were `refused` (row -> reason) have failed before a worker hears of them.
    """
    if len(planned) > 1:
        check_root([one.directory for one in planned])
        for one in planned:
            check_store(one.directory, one.fingerprint, one.content)
    runs = []
    for config, directory, digest, content in planned:
        store = open_store(directory, digest, content)
        stack.callback(store.close)
        telemetry = Telemetry(store.telemetry_path)
        stack.callback(telemetry.close)
        if store.cut_bytes:
            say(f"{directory}: cut an unfinished record of {store.cut_bytes} bytes, left by a crash; it is owed again.")
        for row, reason in refused.items():
            work = Work(Problem(row, "", ""), 0, config.sampler, config.task, config.seed)
            store.append(failed_record(work, "input", reason))
        owed, total = works(config, problems, store), len(problems) * config.num_samples + len(refused)
        say(f"{directory}: {total - len(owed)} of {total} answers are there, {len(owed)} are owed.")
        runs.append(OpenRun(config, store, telemetry, owed, total))
    return runs


def works(config: RunConfig, problems: Sequence[Problem], store: RunStore) -> list[Work]:
    """What a run owes."""
    owed = store.owed(problems, config.num_samples)
    return [Work(problem, index, config.sampler, config.task, config.seed) for problem, index in owed]


def sample(
    runs: Sequence[OpenRun], inputs: Inputs, stop: Stop, show: Callable[[OpenRun], Progress] = show_progress
) -> None:
    """Work off what the runs owe with one crew, until done or stopped."""
    with ExitStack() as stack:
        crew = start_crew(runs, inputs, stop, stack)
        work_off(crew, runs, stop, show)
        if stop.number is not None:
            for one in runs:
                one.telemetry.event("stop", signal=signal.Signals(stop.number).name)


def start_crew(runs: Sequence[OpenRun], inputs: Inputs, stop: Stop, stack: ExitStack) -> Crew:
    """A crew with a worker that has loaded; `stack` ends it. The time goes into the telemetry of `runs`."""
    crew = make_crew(inputs, stop, max(one.config.slots for one in runs))
    stack.callback(crew.close)
    mark(runs, "load" if inputs.config.inline else "ray")
    with stop.breaking():  # nothing is answered yet that it would be worth to wait for
        if not stop:
            crew.start()
    mark(runs, "load")
    wait_for_a_worker(crew, runs, stop)
    mark(runs, "waiting")
    return crew


def work_off(
    crew: Crew, runs: Sequence[OpenRun], stop: Stop, show: Callable[[OpenRun], Progress] = show_progress
) -> None:
    """What the runs owe, one run after the other with the same workers; more runs may follow on the same crew."""
    for one in runs:
        if stop:
            return
        one.telemetry.phase("sampling")
        progress = show(one)
        with closing(progress), published(one.config, one.total, one.telemetry, progress):
            drive(crew, one.store, one.owed, one.telemetry, progress, lambda: stop)
        one.telemetry.phase("end")


def worker_config(inputs: Inputs) -> WorkerConfig:
    """What workers load for these inputs."""
    config = inputs.config
    return WorkerConfig(
        model=inputs.model,
        engine=config.engine,
        slots=None if config.use_batched and config.batch_size == "auto" else config.slots,
        max_length=inputs.max_length,
        device="cuda" if config.use_gpus else "cpu",
        num_threads=None if config.use_gpus else cpu_threads(config.num_actors),
        train_problems=inputs.train_problems,
        texts=inputs.texts,
        sequences=make_sampler(config.sampler).sequences,
    )


def make_crew(inputs: Inputs, stop: Stop, slots: int) -> Crew:
    """Ray actors, or one worker in this process, that load for `inputs` and later for at most `slots` slots."""
    config, settings = inputs.config, worker_config(inputs)
    if config.inline:
        return InlineCrew(Worker(0, "inline"), settings, config.slots)
    from orchestrator.cluster import RayCrew, Shape

    job = f"powersample {config.name} {len(inputs.data.problems)}x{config.num_actors}"
    dashboard = None if config.dashboard else False
    each = config.engine.tensor_parallel
    shape = Shape(config.num_actors, slots, config.use_gpus, job, dashboard, config.dashboard_host, each)
    return RayCrew(Worker, settings, shape, on_ray=stop.install)


def cpu_threads(num_workers: int) -> int:
    """Threads of each CPU worker: its share of the cores, at most MAX_CPU_THREADS."""
    return max(1, min(MAX_CPU_THREADS, len(os.sched_getaffinity(0)) // num_workers))


def wait_for_a_worker(crew: Crew, runs: Sequence[OpenRun], stop: Stop) -> None:
    """Until the first worker has loaded; the others join while it works. Raises what the crew raises.

    An actor stays pending for as long as others have the device: that, too, is said now and then.
    """
    config, began, ready = runs[0].config, time.monotonic(), False
    said = began
    while not ready and not stop:
        if (now := time.monotonic()) - said >= WAITING_SECONDS:
            said = now
            say(waiting(config, now - began))
        for event in crew.wait(0.2):
            ready = ready or isinstance(event, Ready)
            if isinstance(event, Died):
                say(f"worker {event.worker} did not start, and is started again: {event.reason}")
            if isinstance(event, Spawned | Ready | Died | Lost):
                for one in runs:
                    note(one.telemetry, event)


def waiting(config: RunConfig, seconds: float) -> str:
    """What has been waited for so long."""
    workers = f"{config.num_actors} worker{'s' if config.num_actors > 1 else ''}"
    devices = "GPUs" if config.use_gpus else "CPUs"
    return (
        f"Waiting for {workers} to load {config.model}, {seconds:.0f} s so far; if {devices} are busy, Ray gives them "
        "when they are free."
    )


def mark(runs: Sequence[OpenRun], phase: str) -> None:
    for one in runs:
        one.telemetry.phase(phase)


def common(directories: Sequence[Path]) -> Path:
    """The directory itself, or the one that holds all of them."""
    return directories[0] if len(directories) == 1 else Path(os.path.commonpath(directories))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
