"""The largest batch that works for each of several runs: what to try first, and within which memory.

On a GPU the memory model proposes (evals/engine/forecast.py), on CPUs the scale tables; a probe says what works.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from evals.engine.planning import gib
from evals.search import estimate, search_each
from evals.types import UserError
from orchestrator import hardware
from orchestrator.config import RunConfig
from orchestrator.inputs import Inputs
from orchestrator.probe import batch, probe
from orchestrator.shift import worker_config

GIB = 2**30


def fitted(inputs: Mapping[str, Inputs], memory_limit: float | None, say: Callable[[str], None]) -> dict[str, Inputs]:
    """The same inputs, each with its own batch: the largest that works, at most the one asked for.

    `memory_limit` is in GiB, for each worker on CPUs. Raises UserError where no batch works.
    """

    def works(name: str, size: int) -> bool:
        one = inputs[name]
        engine = one.config.engine
        if engine.execution in ("auto", "compiled"):  # compiling takes minutes, and memory is measured before it
            engine = engine.model_copy(update={"execution": "graphs"})
        settings = worker_config(one)._replace(slots=size, engine=engine)
        outcome = probe(settings, batch(one.config, one.data.problems, size), host_memory(one.config, memory_limit))
        peak = f"peak {gib(outcome.peak_bytes)}" if outcome.peak_bytes else ""
        say(f"{name}: {', '.join(filter(None, (peak, outcome.reason)))}")
        return outcome.works

    starts = {name: start(name, one) for name, one in inputs.items()}
    limit = max((one.config.slots for one in inputs.values()), default=1)
    sizes = {name: found.batch_size for name, found in search_each(starts, limit, works, say).items()}
    for name, size in sizes.items():
        if size is None:
            raise UserError(
                f"No batch size that was tried works for {name}; free memory, lower --batch-size or "
                "task.max_new_tokens, or name the batch with --no-auto-batch-size."
            )
    return {
        name: one._replace(config=one.config.model_copy(update={"batch_size": sizes[name]}))
        for name, one in inputs.items()
    }


def start(name: str, inputs: Inputs) -> int:
    """The first batch to try for a run called KNOB=VALUE."""
    config = inputs.config
    if not config.use_gpus:
        group, _, key = name.partition("=")[0].partition(".")
        return estimate(config.slots, {key: getattr(getattr(config, group), key)})
    present = hardware.gpus()
    if not present:
        raise UserError(
            "The batch is searched on a GPU of this machine, which has none; name it by --no-auto-batch-size and "
            "--batch-size."
        )
    if not present[0].memory_bytes or config.engine.tensor_parallel > 1:  # nothing to forecast from
        return config.slots
    from evals.engine.anatomy import anatomy
    from evals.engine.forecast import demand, forecast
    from evals.engine.gate import read_config
    from evals.engine.planning import plan_slots

    settings = worker_config(inputs)
    model = anatomy(read_config(inputs.model.folder, config.engine.trust_remote_code), config.engine.dtype, name)
    wanted = demand(model, config.slots, settings.max_length, settings.sequences)
    reading = forecast(model, present[0].memory_bytes, config.slots, config.engine)
    return plan_slots(reading, wanted, config.engine).slots


def host_memory(config: RunConfig, limit: float | None) -> int | None:
    """Bytes that one worker may take on CPUs; None on a GPU, where the engine keeps to its share.

    Raises UserError for a limit that would be ignored.
    """
    if config.use_gpus:
        if limit is not None:
            raise UserError("--memory-limit is for CPUs; of a GPU engine.target_utilisation says how much may be used.")
        return None
    if limit is not None:
        return int(limit * GIB)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(config.engine.target_utilisation * machine / config.num_actors)
