"""A crew made for inputs, waited for, and given what runs owe. Knows no report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from evals.samplers.make import make_sampler
from orchestrator.config import RunConfig
from orchestrator.crew import Crew, Died, Lost, Ready, Spawned
from orchestrator.driver import drive, note
from orchestrator.inline import InlineCrew
from orchestrator.inputs import Inputs
from orchestrator.metrics import published
from orchestrator.progress import Progress, say
from orchestrator.runs import OpenRun
from orchestrator.stop import Stop
from orchestrator.worker import Worker, WorkerConfig

MAX_CPU_THREADS = 2
"""From 4 threads on, products were measured to differ in the last bit from those of 1 to 3: answers would depend on the
number of workers. More workers use more cores just as well."""
WAITING_SECONDS = 30.0  # between two lines that say what is waited for


def show_progress(run: OpenRun) -> Progress:
    """Accuracy so far, for a run that is being driven."""
    return Progress(run.config.name, run.total, run.store.records.values())


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
