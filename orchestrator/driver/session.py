"""A session: opens runs, starts a worker pool, has it answer what they owe, then reports; returns the exit code.

A session has a list of runs, which one pool works off one after the other. A plain run is a list of one, the demo of
four, a sweep of one per value. What the user got wrong is refused before Ray starts and before anything is written.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path

from evals.grading.grade import score_name
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.console import say
from orchestrator.driver.dispatcher import dispatch
from orchestrator.driver.open_runs import OpenRun, PreparedRun, open_runs, prepare_runs
from orchestrator.driver.signals import Stop
from orchestrator.inputs.preflight import resolve_inputs
from orchestrator.live.metrics import Metrics, Sink, Tracker
from orchestrator.live.progress import Progress
from orchestrator.machine import description
from orchestrator.report.make import print_reports
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Died, WorkerPool
from orchestrator.workers.worker import Worker, worker_config

FAILED = 3  # exit code of a complete run in which problems were given up
WAITING_SECONDS = 30.0  # between two lines that say that no worker has loaded yet


def show_progress(run: OpenRun) -> Progress:
    """The progress display of a run, with its accuracy so far."""
    score = score_name(PRIMARY_METRIC, run.config.task.name)
    return Progress(run.config.name, run.extent.total, run.records, score=score)


def conclude(runs: Sequence[OpenRun]) -> None:
    """Write and print the report of complete runs."""
    if not any(one.owed for one in runs):
        say("The run is complete already; this is its report again (fresh starts over in a new directory).")
    directories = [one.store.directory for one in runs]
    print_reports(directories, Path(os.path.commonpath(directories)))


def run(
    config: RunConfig,
    show: Callable[[OpenRun], Progress] = show_progress,
    conclude: Callable[[Sequence[OpenRun]], None] = conclude,
) -> int:
    """Carry out a resolved configuration from its inputs to its report; returns the exit code of `carry_out`."""
    began = time.time()
    check_ray(config)
    inputs, environment = resolve_inputs(config, local_time(began)), description.describe()
    return carry_out(config, prepare_runs(inputs, environment), environment, began, show, conclude)


def local_time(seconds: float) -> datetime:
    """A time of Unix seconds in the zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone()


def check_ray(config: RunConfig) -> None:
    """Raise UserError if the run needs Ray and `cluster.ray_session.check_ray_access` refuses it."""
    if not config.inline:
        from orchestrator.cluster.ray_session import check_ray_access

        check_ray_access(config.dashboard_host)


def carry_out(
    config: RunConfig,
    prepared: Sequence[PreparedRun],
    environment: description.Environment,
    began: float,
    show: Callable[[OpenRun], Progress],
    conclude: Callable[[Sequence[OpenRun]], None],
) -> int:
    """Open runs, have workers answer what they owe, and conclude; returns the exit code.

    `config` is what the user asked for; `show` makes the display of a run while it is driven, `conclude` reports on
    complete runs. 0 complete, 3 complete but some problems were given up, 128 + number of the signal that stopped it.
    Raises UserError for what the user can mend and WorkersLost when the workers cannot be kept alive; the records so
    far are safe.
    """
    if any(one.inputs.asked_raw for one in prepared):
        say("The model has a chat template and is asked without it: its prompts are raw texts (task.chat is false).")
    stop = Stop()
    with ExitStack() as stack:
        runs = open_runs(prepared, stack)
        if owing := [one for one in runs if one.owed]:
            stop.install()
            stack.callback(stop.restore)
            for one in owing:
                one.start(began, environment)
            with ExitStack() as pools:
                answer_owed(start_pool(owing, stop, pools), owing, stop, show)
                for one in owing if stop.number is not None else ():
                    stopped = signal.Signals(stop.number).name
                    one.telemetry.write(Event(event="stop", signal=stopped))
        done, total = sum(len(one.records) for one in runs), sum(one.extent.total for one in runs)
        if stop.number is None or done == total:
            conclude(runs)
            return FAILED if any(record.status == "failed" for one in runs for record in one.records) else 0
        directory = Path(os.path.commonpath([one.store.directory for one in runs]))
        resume = "the same command goes on from there"
        if config.fresh:  # a second fresh start would be another run
            resume = f"run_dir={directory} without fresh goes on from there"
        name = signal.Signals(stop.number).name
        say(f"Stopped by {name} with {done} of {total} answers in {directory}; {resume}.")
        return 128 + stop.number


def start_pool(runs: Sequence[OpenRun], stop: Stop, stack: ExitStack) -> WorkerPool:
    """Start a pool and wait until one worker has loaded for the first run; `stack` ends it.

    The phases of the start go into the telemetry of all `runs`.
    """
    inputs, config, settings = runs[0].inputs, runs[0].inputs.config, worker_config(runs[0].inputs)
    if config.inline:
        pool = InlineWorkerPool(Worker(0, "inline"), settings, config.slots)
    else:
        from orchestrator.cluster.actors import RayWorkerPool

        job = f"powersample {config.name} {len(inputs.data.problems)}x{config.num_actors}"
        pool = RayWorkerPool(Worker, settings, config, max(one.config.slots for one in runs), job, stop.install)
    stack.callback(pool.close)
    log_phase(runs, "load" if config.inline else "ray")
    with stop.interruptible():  # nothing is in flight yet, so a stop need not wait for the start to end
        if not stop:
            pool.start()
    log_phase(runs, "load")
    wait_for_a_worker(pool, runs, stop)
    log_phase(runs, "waiting")
    return pool


def answer_owed(pool: WorkerPool, runs: Sequence[OpenRun], stop: Stop, show: Callable[[OpenRun], Progress]) -> None:
    """Have the pool answer what the runs owe, one run after the other; its workers are loaded for the first run."""
    loaded = runs[0].inputs
    for one in runs:
        if one.inputs is not loaded and not stop:
            loaded = one.inputs
            log_phase([one], "load")
            pool.reload(worker_config(loaded), loaded.config.slots)
            wait_for_a_worker(pool, [one], stop)
        if stop:
            return
        log_phase([one], "sampling")
        with closing(show(one)) as progress, publishing(one.telemetry, progress, sinks(one.config), one.config.name):
            dispatch(pool, one.store, one.owed, one.telemetry, progress, lambda: stop)
        log_phase([one], "end")


@contextmanager
def publishing(telemetry: Telemetry, progress: Progress, sinks: Sequence[Sink], run: str) -> Iterator[None]:
    """Within this context `progress` hears of the run's telemetry, and `sinks` get the metrics of both."""
    with (
        closing(Metrics(run, progress, sinks)) as metrics,
        telemetry.heard_by(progress.add_row, metrics.add_row),
    ):
        progress.on_record = metrics.record
        yield


def sinks(config: RunConfig) -> list[Sink]:
    """The sinks of a run's metrics: Ray's unless the run is inline, and the tracker that the configuration names."""
    chosen: list[Sink] = []
    if not config.inline:
        from orchestrator.cluster.ray_metrics import RayMetrics

        chosen.append(RayMetrics())
    if config.track is not None:
        chosen.append(Tracker(config.track, config.name, config.model_dump(mode="json")))
    return chosen


def wait_for_a_worker(pool: WorkerPool, runs: Sequence[OpenRun], stop: Stop) -> None:
    """Wait until the first worker has loaded; the others join while it works. Raises what the pool raises.

    Ray keeps an actor pending while others use the device, so every WAITING_SECONDS a line says what is waited for.
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
        for message in pool.wait(0.2):
            rows = [message] if isinstance(message, Event) else []
            ready = ready or any(row.event == "ready" for row in rows)
            if isinstance(message, Died):
                say(f"worker {message.worker} did not start, and is started again: {message.reason}")
                rows = message.rows()
            write_rows(runs, rows)


def log_phase(runs: Sequence[OpenRun], phase: str) -> None:
    """Write to the telemetry of the runs that a phase begins."""
    write_rows(runs, [Event(event="phase", name=phase)])


def write_rows(runs: Sequence[OpenRun], rows: Sequence[Event]) -> None:
    """Write to the telemetry of all `runs`."""
    for one in runs:
        for row in rows:
            one.telemetry.write(row)
