"""From runs to an exit code: find, check, lock, start a crew, have it work off what they owe, stop or report.
Knows neither how work is done nor how it is told.

One path for all: a session has a list of runs, worked off one after the other by one crew. A plain run is a list of
one, the demo of four, a sweep of one per value. What the user got wrong is refused before Ray starts and before
anything is written.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator import hardware
from orchestrator.config import RunConfig
from orchestrator.crew import Crew, Died, InlineCrew, Lost, Ready, Spawned
from orchestrator.driver import drive, note
from orchestrator.inputs import Inputs, find
from orchestrator.metrics import published
from orchestrator.progress import Progress, say
from orchestrator.report import tell
from orchestrator.runs import OpenRun, Planned, open_runs, plan_runs
from orchestrator.worker import Worker, WorkerConfig

FAILED = 3  # exit code of a complete run in which problems were given up
WAITING_SECONDS = 30.0  # between two lines that say what is waited for
ONE_STOP_SECONDS = 1.0  # a terminal, a shell and a job manager may each pass the same Ctrl-C on


def show_progress(run: OpenRun) -> Progress:
    """Accuracy so far, for a run that is being driven."""
    return Progress(run.config.name, run.total, run.store.records.values())


def conclude(runs: Sequence[OpenRun]) -> None:
    """Write and print the report of complete runs."""
    if not any(one.owed for one in runs):
        say("The run is complete already; this is its report again (--fresh starts over in a new directory).")
    directories = [one.store.directory for one in runs]
    tell(directories, Path(os.path.commonpath(directories)))


def run(
    config: RunConfig,
    show: Callable[[OpenRun], Progress] = show_progress,
    conclude: Callable[[Sequence[OpenRun]], None] = conclude,
) -> int:
    """Do all that a resolved configuration asks for; returns the exit code, as `carry_out` (see there)."""
    began = time.time()
    check_ray(config)
    inputs, environment = find(config), hardware.describe()
    return carry_out(config, plan_runs(inputs, environment), environment, began, show, conclude)


def check_ray(config: RunConfig) -> None:
    """Raises UserError where Ray is to be joined or listened to and cannot be."""
    if not config.inline:
        from orchestrator.join import check

        check(config.dashboard_host)


def carry_out(
    config: RunConfig,
    planned: Sequence[Planned],
    environment: Mapping[str, Any],
    began: float,
    show: Callable[[OpenRun], Progress],
    conclude: Callable[[Sequence[OpenRun]], None],
) -> int:
    """Open runs, work off what they owe, and conclude; returns the exit code.

    `config` is what the user asked for; `show` makes what shows a run while it is driven, `conclude` tells of runs that
    are complete. 0 complete, 3 complete but some problems were given up, 128 + number of the signal that stopped it.
    Raises UserError for what the user can mend and WorkersLost when the workers cannot be kept alive; the records so
    far are safe.
    """
    stop = Stop()
    with ExitStack() as stack:
        runs = open_runs(planned, stack)
        if owing := [one for one in runs if one.owed]:
            stop.install()
            stack.callback(stop.restore)
            for one in owing:
                one.start(began, environment)
            with ExitStack() as crews:
                work_off(start_crew(owing, stop, crews), owing, stop, show)
                for one in owing if stop.number is not None else ():
                    one.telemetry.event("stop", signal=signal.Signals(stop.number).name)
        done, total = sum(len(one.store.records) for one in runs), sum(one.total for one in runs)
        if stop.number is None or done == total:
            conclude(runs)
            records = [record for one in runs for record in one.store.records.values()]
            return FAILED if any(record.status == "failed" for record in records) else 0
        directory = Path(os.path.commonpath([one.store.directory for one in runs]))
        way_on = "the same command goes on from there"
        if config.fresh:  # a second fresh start would be another run
            way_on = f"--run-dir {directory} without --fresh (variables: without POWERSAMPLE_FRESH) goes on from there"
        name = signal.Signals(stop.number).name
        say(f"Stopped by {name} with {done} of {total} answers in {directory}; {way_on}.")
        return 128 + stop.number


def start_crew(runs: Sequence[OpenRun], stop: Stop, stack: ExitStack) -> Crew:
    """A crew with a worker that has loaded for the first run; `stack` ends it. The time goes into their telemetry."""
    inputs, config, settings = runs[0].inputs, runs[0].inputs.config, worker_config(runs[0].inputs)
    if config.inline:
        crew = InlineCrew(Worker(0, "inline"), settings, config.slots)
    else:
        from orchestrator.cluster import RayCrew

        job = f"powersample {config.name} {len(inputs.data.problems)}x{config.num_actors}"
        crew = RayCrew(Worker, settings, config, max(one.config.slots for one in runs), job, stop.install)
    stack.callback(crew.close)
    mark(runs, "load" if config.inline else "ray")
    with stop.breaking():  # nothing is answered yet that it would be worth to wait for
        if not stop:
            crew.start()
    mark(runs, "load")
    wait_for_a_worker(crew, runs, stop)
    mark(runs, "waiting")
    return crew


def work_off(crew: Crew, runs: Sequence[OpenRun], stop: Stop, show: Callable[[OpenRun], Progress]) -> None:
    """What the runs owe, one run after the other by workers that load the model once; the first run is loaded for."""
    loaded = runs[0].inputs
    for one in runs:
        if one.inputs is not loaded and not stop:
            loaded = one.inputs
            mark([one], "load")
            crew.reload(worker_config(loaded), loaded.config.slots)
            wait_for_a_worker(crew, [one], stop)
        if stop:
            return
        mark([one], "sampling")
        progress = show(one)
        with closing(progress), published(one.config, one.telemetry, progress):
            drive(crew, one.store, one.owed, one.telemetry, progress, lambda: stop)
        mark([one], "end")


def worker_config(inputs: Inputs) -> WorkerConfig:
    """What workers load for these inputs."""
    config = inputs.config
    slots = None if config.use_batched and config.batch_size == "auto" else config.slots
    return WorkerConfig(inputs.model, config, slots, inputs.max_length, inputs.train_problems, inputs.texts)


def wait_for_a_worker(crew: Crew, runs: Sequence[OpenRun], stop: Stop) -> None:
    """Until the first worker has loaded; the others join while it works. Raises what the crew raises.

    An actor stays pending for as long as others have the device: that, too, is said now and then.
    """
    config, ready = runs[0].config, False
    began = said = time.monotonic()
    while not ready and not stop:
        if (now := time.monotonic()) - said >= WAITING_SECONDS:
            said = now
            workers = f"{config.num_actors} worker{'s' if config.num_actors > 1 else ''}"
            say(
                f"Waiting for {workers} to load {config.model}, {now - began:.0f} s so far; if "
                f"{'GPUs' if config.use_gpus else 'CPUs'} are busy, Ray gives them when they are free."
            )
        for event in crew.wait(0.2):
            ready = ready or isinstance(event, Ready)
            if isinstance(event, Died):
                say(f"worker {event.worker} did not start, and is started again: {event.reason}")
            if isinstance(event, Spawned | Ready | Died | Lost):
                for one in runs:
                    note(one.telemetry, event)


def mark(runs: Sequence[OpenRun], phase: str) -> None:
    for one in runs:
        one.telemetry.event("phase", name=phase)


class Stop:
    """False until SIGINT or SIGTERM asks the session to stop, which leaves runs that can go on. A second request ends
    the process, whatever blocks it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = 0.0
        self._breaks = False
        self._old: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def install(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            old = signal.signal(number, self._handle)
            self._old.setdefault(number, old)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """What is done within is broken off by a request, by an exception that stays in here. Check for an earlier one
        within. The signals are ours again afterwards."""
        self._breaks = True
        try:
            yield
        except SystemExit as error:  # Ray's answer to SIGTERM, which it takes for itself while it starts
            if self.number is None and error.code != signal.SIGTERM:
                raise
            self.number = self.number or signal.SIGTERM
        except KeyboardInterrupt:
            if self.number is None:
                raise
        finally:
            self._breaks = False
            self.install()

    def restore(self) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._asked = number, now
            if self._breaks:
                raise KeyboardInterrupt
        elif now - self._asked >= ONE_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
