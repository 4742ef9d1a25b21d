"""Finds the largest batch size that works for a run: estimates a first one, then probes sizes in child processes.

The first size comes on a GPU from the memory model (evals/engine/memory_forecast.py), on CPUs from the scale tables. A
probe (probe.py) does what a worker of the run does, by the worker's own code, with keys and values for answers of full
length; only the answers are short. What it held, an overflow included, ends with its process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from evals.sizing.batch_search import estimate, search
from evals.sizing.slots import GIB, gib
from evals.types import UserError
from orchestrator.batch_search.probe import probe, probe_work
from orchestrator.inputs.preflight import Inputs
from orchestrator.machine import gpus
from orchestrator.settings.config import RunConfig
from orchestrator.workers.worker import worker_config


class SweepValue(NamedTuple):
    """A value of the setting `knob` in a sweep, with the inputs of its run."""

    knob: str
    text: str
    """As the user wrote it."""
    inputs: Inputs

    @property
    def name(self) -> str:
        return f"{self.knob}={self.text}"

    @property
    def setting(self) -> Any:
        return attrgetter(self.knob)(self.inputs.config)


def fit_batch_size(value: SweepValue, memory_limit: float | None, say: Callable[[str], None]) -> SweepValue:
    """`value` with the largest batch size that works, at most the one asked for.

    `memory_limit` is in GiB, for each worker on CPUs. Raises UserError where no batch works.
    """
    config, problems = value.inputs.config, value.inputs.data.problems
    settings = worker_config(value.inputs)
    if config.engine.execution in ("auto", "compiled"):  # compiling takes minutes, and memory is measured before it
        engine = config.engine.model_copy(update={"execution": "graphs"})
        settings = settings._replace(run=config.model_copy(update={"engine": engine}))

    def tell(line: str) -> None:
        say(f"{value.name}: {line}")

    def works(size: int) -> bool:
        asked = settings._replace(slots=size)
        outcome = probe(asked, probe_work(config, problems, size), host_memory(config, memory_limit))
        peak = f"peak {gib(outcome.peak_bytes)}" if outcome.peak_bytes else ""
        tell(", ".join(filter(None, (peak, outcome.reason))))
        return not outcome.reason

    size = search(first_batch_size(value), config.slots, works, tell)
    if size is None:
        raise UserError(
            f"No batch size that was tried works for {value.name}; free memory, or set smaller or search for none.",
            ("batch_size", "task.max_new_tokens", "auto_batch_size"),
        )
    sized = config.model_copy(update={"batch_size": size})
    return value._replace(inputs=value.inputs._replace(config=sized))


def first_batch_size(value: SweepValue) -> int:
    """The first batch size to try. Raises UserError where a GPU is needed and none is present."""
    inputs, config = value.inputs, value.inputs.config
    if not config.use_gpus:
        return estimate(config.slots, {value.knob.partition(".")[2]: value.setting})
    present = gpus.visible_gpus()
    if not present:
        raise UserError(
            "The batch is searched on a GPU of this machine, which has none; name it, and search for none.",
            ("batch_size", "auto_batch_size"),
        )
    if not present[0].memory_bytes or config.engine.gpus_per_model > 1:  # nothing to forecast from
        return config.slots
    from evals.engine.memory_forecast import demand, forecast, model_spec
    from evals.engine.model_support import read_config
    from evals.sizing.slots import plan_slots

    settings = worker_config(inputs)
    model = model_spec(
        read_config(inputs.model.folder, config.engine.trust_remote_code), config.engine.dtype, value.name
    )
    wanted = demand(model, config.slots, settings.max_length, settings.run.sampler.sequences)
    reading = forecast(model, present[0].memory_bytes, config.slots, config.engine)
    return plan_slots(reading, wanted, config.engine).slots


def host_memory(config: RunConfig, limit: float | None) -> int | None:
    """Bytes that one worker may take on CPUs; None on a GPU, where the engine keeps to its share.

    Raises UserError for a limit that would be ignored.
    """
    if config.use_gpus:
        if limit is not None:
            raise UserError("memory_limit is for CPUs; of a GPU engine.target_utilisation says how much may be used.")
        return None
    if limit is not None:
        return int(limit * GIB)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(config.engine.target_utilisation * machine / config.num_actors)
