"""Finds the largest batch size that works for a run: forecasts a first one, then probes sizes in child processes.

The forecast is that of `powersample plan`, of the run's own configuration. A probe (probe.py) does what a worker of the
run does, by the worker's own code, with keys and values for answers of full length; only the answers are short. What it
held, an overflow included, ends with its process.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from evals.sizing.slots import GIB, gib, most_slots
from evals.types import UserError
from orchestrator.batch_search.probe import probe, probe_work
from orchestrator.inputs.preflight import Inputs
from orchestrator.machine import gpus
from orchestrator.settings.config import RunConfig
from orchestrator.workers.worker import worker_config

MAX_ATTEMPTS = 5


def fit_batch_size(name: str, inputs: Inputs, memory_limit: float | None, say: Callable[[str], None]) -> Inputs:
    """`inputs` with the largest batch size that works, at most the one asked for; `name` begins what is said.

    `memory_limit` is in GiB, for each worker on CPUs. Raises UserError where no batch works.
    """
    config, settings = inputs.config, worker_config(inputs)
    memory = host_memory(config, memory_limit)
    if config.engine.execution in ("auto", "compiled"):  # compiling takes minutes, and memory is measured before it
        engine = config.engine.model_copy(update={"execution": "graphs"})
        settings = settings._replace(run=config.model_copy(update={"engine": engine}))

    def tell(line: str) -> None:
        say(f"{name}: {line}")

    def works(size: int) -> bool:
        work = probe_work(config, inputs.data.problems, size)
        outcome = probe(settings._replace(slots=size), work, memory)
        peak = f"peak {gib(outcome.peak_bytes)}" if outcome.peak_bytes else ""
        tell(", ".join(filter(None, (peak, outcome.reason))))
        return not outcome.reason

    size = search(first_batch_size(inputs, memory), config.slots, works, tell)
    if not size:
        raise UserError(
            f"No batch size that was tried works for {name}; free memory, or set smaller or search for none.",
            ("batch_size", "task.max_new_tokens", "auto_batch_size"),
        )
    return inputs._replace(config=config.model_copy(update={"batch_size": size}))


def first_batch_size(inputs: Inputs, memory: int | None) -> int:
    """The first batch size to try: what is forecast to fit `memory` bytes of the host, or else a GPU of this machine.

    Raises UserError where a GPU is needed and none is present.
    """
    config, engine = inputs.config, inputs.config.engine
    if memory is not None:
        engine = engine.model_copy(update={"execution": "eager"})
    else:
        present = gpus.visible_gpus()
        if not present:
            raise UserError(
                "The batch is searched on a GPU of this machine, which has none; name it, and search for none.",
                ("batch_size", "auto_batch_size"),
            )
        if not present[0].memory_bytes or engine.gpus_per_model > 1:  # nothing to forecast from
            return config.slots
        memory = int(engine.target_utilisation * present[0].memory_bytes)
    from evals.engine.memory_forecast import demand, forecast, model_spec
    from evals.engine.model_support import read_config

    settings = worker_config(inputs)
    found = read_config(inputs.model.folder, engine.trust_remote_code)
    try:
        model = model_spec(found, engine.dtype, inputs.model.folder)
    except UserError:  # it has to be tried: a model is told by its weights, too, and a probe says what it refuses
        return config.slots
    wanted = demand(model, config.slots, settings.max_length, settings.run.sampler.sequences)
    reading = forecast(model, memory, config.slots, engine)
    return max(1, most_slots(reading, wanted, engine, memory - reading.others - reading.weights))


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


def search(start: int, limit: int, probe: Callable[[int], bool], say: Callable[[str], None]) -> int:
    """The largest size that worked, 0 where none did; `probe(size)` is called from `start` on, never above `limit`.

    Where one works, half as much again is tried, where one fails, half; once a size works, bisection between it and the
    smallest that fails, until that gap is at most a quarter of it, or for MAX_ATTEMPTS. The first size above the limit
    counts as one that fails. What the probe raises is passed on; ValueError for a start or limit below 1.
    """
    if min(start, limit) < 1:
        raise ValueError(f"a search from {start} up to {limit} has no sizes to try")
    works, fails, size = 0, limit + 1, min(start, limit)
    say(f"estimated batch size {start}, limit {limit}")
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            say(f"next try: batch size {size}")
        if probe(size):
            works = size
            say(f"batch size {size}: works")
        else:
            fails = size
            say(f"batch size {size}: out of memory")
        if fails - works <= max(1, works / 4):
            break
        size = (works + fails) // 2 if fails <= limit else min(limit, max(works + 1, works * 3 // 2))
    say(f"using batch size {works}" if works else "no batch size works")
    return works
