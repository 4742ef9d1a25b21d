"""The largest batch that works for each of several runs: what to try first, and a child process that tries it.
Knows no run directory.

On a GPU the memory model proposes (evals/engine/forecast.py), on CPUs the scale tables; a probe says what works. It
does what a worker of the run does, by the worker's own code, with keys and values for answers of full length; only the
answers are short. What it held, an overflow included, ends with its process.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from evals.engine.planning import GIB, gib
from evals.search import estimate, search
from evals.types import Problem, UserError
from orchestrator import hardware
from orchestrator.config import RunConfig
from orchestrator.crew import Work
from orchestrator.inputs import Inputs
from orchestrator.session import worker_config
from orchestrator.worker import Worker, WorkerConfig

ANSWER_TOKENS = 32
STATUS = Path("/proc/self/status")


class Value(NamedTuple):
    """A value of the setting `knob`, and what its run needs."""

    knob: str
    text: str
    """As it was asked for."""
    inputs: Inputs

    @property
    def name(self) -> str:
        return f"{self.knob}={self.text}"

    @property
    def setting(self) -> Any:
        return attrgetter(self.knob)(self.inputs.config)


def fitted(value: Value, memory_limit: float | None, say: Callable[[str], None]) -> Value:
    """The same with its own batch: the largest that works, at most the one asked for.

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
        outcome = probe(asked, batch(config, problems, size), host_memory(config, memory_limit))
        peak = f"peak {gib(outcome.peak_bytes)}" if outcome.peak_bytes else ""
        tell(", ".join(filter(None, (peak, outcome.reason))))
        return not outcome.reason

    size = search(start(value), config.slots, works, tell)
    if size is None:
        raise UserError(
            f"No batch size that was tried works for {value.name}; free memory, lower --batch-size or "
            "task.max_new_tokens, or name the batch with --no-auto-batch-size."
        )
    sized = config.model_copy(update={"batch_size": size})
    return value._replace(inputs=value.inputs._replace(config=sized))


def start(value: Value) -> int:
    """The first batch to try."""
    inputs, config = value.inputs, value.inputs.config
    if not config.use_gpus:
        return estimate(config.slots, {value.knob.partition(".")[2]: value.setting})
    present = hardware.gpus()
    if not present:
        raise UserError(
            "The batch is searched on a GPU of this machine, which has none; name it by --no-auto-batch-size and "
            "--batch-size."
        )
    if not present[0].memory_bytes or config.engine.tensor_parallel > 1:  # nothing to forecast from
        return config.slots
    from evals.engine.forecast import anatomy, demand, forecast
    from evals.engine.gate import read_config
    from evals.engine.planning import plan_slots

    settings = worker_config(inputs)
    model = anatomy(read_config(inputs.model.folder, config.engine.trust_remote_code), config.engine.dtype, value.name)
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


class Outcome(NamedTuple):
    """What became of a probe."""

    peak_bytes: int | None
    """Most that was allocated on the GPU, or held of a host's memory; None where memory ran out."""
    reason: str = ""
    """Why it does not work; empty where it does."""


def batch(config: RunConfig, problems: Sequence[Problem], size: int) -> list[Work]:
    """`size` answers to begin at once, to the longest questions, each at most ANSWER_TOKENS long."""
    longest = sorted(problems, key=lambda problem: -len(problem.question))
    task = config.task.model_copy(update={"max_new_tokens": min(ANSWER_TOKENS, config.task.max_new_tokens)})
    return [Work(longest[i % len(longest)], i // len(longest), config.sampler, task, config.seed) for i in range(size)]


def probe(settings: WorkerConfig, works: Sequence[Work], limit: int | None = None) -> Outcome:
    """Whether a worker of `settings` answers all `works` at once, in a slot each, on a host within `limit` bytes.

    Raises UserError where the model cannot be used in any batch, RuntimeError where the child fails otherwise.
    """
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=attempt, args=(theirs, settings, works, limit), daemon=True)
    child.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = None
    finally:
        ours.close()
        child.kill()
        child.join()
    if isinstance(answer, UserError):
        raise answer
    if answer is None and child.exitcode == -signal.SIGKILL:
        return Outcome(None, "the system had no memory left and ended the process")
    if not isinstance(answer, Outcome):
        raise RuntimeError(f"the probe of {len(works)} slots failed: {answer or f'exit code {child.exitcode}'}")
    return answer


def attempt(answer: Connection, settings: WorkerConfig, works: Sequence[Work], limit: int | None) -> None:
    """The child: sends an Outcome, a UserError, or the traceback of what else was raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    Path("/proc/self/oom_score_adj").write_text("1000")  # before any other process of a machine without memory
    try:
        answer.send(outcome(settings, works, limit))
    except Exception as error:  # noqa: BLE001 - told to the parent
        if reason := overflow(error):
            answer.send(Outcome(None, reason))
        else:
            answer.send(error if isinstance(error, UserError) else traceback.format_exc())


def outcome(settings: WorkerConfig, works: Sequence[Work], limit: int | None) -> Outcome:
    """Answer the batch in this process. Raises what the worker raises.

    A host's limit is compared, not enforced: libraries that are refused memory fail in all ways. Keys and values for
    all slots count before they are written to, so that a batch that is too large ends before it takes its room.
    """
    worker = Worker(0, "probe")
    worker.load(settings)
    if limit is not None and held() > limit:
        return Outcome(held(), f"more than {gib(limit)}")
    for answered in [worker.begin(work) for work in works]:
        answered.result()
    health = worker.health()
    worker.close()
    peak = health["memory"]["peak_bytes"] or held()
    if limit is not None and peak > limit:
        return Outcome(peak, f"more than {gib(limit)}")
    slots = health["slots"]
    return Outcome(peak, "" if slots == len(works) else f"there is room for {slots}")


def held() -> int:
    """Bytes of this process: its data, written to or not, or the most that was resident, whichever is more."""
    sizes = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * max(int(sizes[name].split()[0]) for name in ("VmData", "VmHWM"))


def overflow(error: BaseException | None) -> str | None:
    """How memory ran out, on a GPU or on the host; None if `error` is something else."""
    from evals.engine.device import out_of_memory

    if reason := out_of_memory(error):
        return reason
    while error is not None:
        if isinstance(error, MemoryError) or "annot allocate memory" in str(error):
            return f"{type(error).__name__}: {error}".splitlines()[0]
        error = error.__context__
    return None
