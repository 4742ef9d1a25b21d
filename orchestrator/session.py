"""`powersample run`, from a configuration to an exit code: find, check, lock, start the crew, drive, report.

A session fills one run directory, or several one after the other with the same workers (the demo's four methods). What
the user got wrong is refused before Ray starts and before anything is written.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator import address, hardware
from orchestrator.config import RunConfig
from orchestrator.inputs import Inputs, find
from orchestrator.progress import Progress, say
from orchestrator.report import tell
from orchestrator.runs import OpenRun, open_runs, plan_runs
from orchestrator.shift import show_progress, start_crew, work_off
from orchestrator.stop import Stop

FAILED = 3  # exit code of a complete run in which problems were given up


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


def way_on(config: RunConfig, directory: Path) -> str:
    """How to go on with a run that was stopped: a second fresh start would be another run."""
    if config.fresh:
        return f"--run-dir {directory} without --fresh (variables: without POWERSAMPLE_FRESH) goes on from there"
    return "the same command goes on from there"


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


def common(directories: Sequence[Path]) -> Path:
    """The directory itself, or the one that holds all of them."""
    return directories[0] if len(directories) == 1 else Path(os.path.commonpath(directories))
