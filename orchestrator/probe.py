"""Whether a batch works: a child process loads the model, makes the engine and answers a batch, and is gone again.

It does what a worker of the run does, by the worker's own code, with keys and values for answers of full length; only
the answers are short. What it held, an overflow included, ends with its process.
"""

from __future__ import annotations

import resource
import signal
import traceback
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

from evals.types import Problem, UserError
from orchestrator.config import RunConfig
from orchestrator.crew import Work
from orchestrator.worker import Worker, WorkerConfig

ANSWER_TOKENS = 32
OVERFLOWN = -signal.SIGKILL, -signal.SIGABRT
"""How a process ends that the system has no memory for, or whose C++ code has none."""


NO_MEMORY = "annot allocate memory", "can't start new thread"
"""In the words of whoever is refused memory by the system."""


class Outcome(NamedTuple):
    """What became of a probe."""

    works: bool
    peak_bytes: int | None
    """Most that was allocated on the GPU, or on a CPU resident; None where memory ran out."""
    reason: str = ""
    """Why it does not work."""


def batch(config: RunConfig, problems: Sequence[Problem], size: int) -> list[Work]:
    """`size` answers to begin at once, to the longest questions, each at most ANSWER_TOKENS long."""
    longest = sorted(problems, key=lambda problem: -len(problem.question))
    task = config.task.model_copy(update={"max_new_tokens": min(ANSWER_TOKENS, config.task.max_new_tokens)})
    return [Work(longest[i % len(longest)], i // len(longest), config.sampler, task, config.seed) for i in range(size)]


def probe(settings: WorkerConfig, works: Sequence[Work], memory: int | None = None) -> Outcome:
    """Whether a worker of `settings` answers all `works` at once, in a slot each; on a CPU within `memory` bytes.

    Raises UserError where the model cannot be used in any batch, RuntimeError where the child fails otherwise.
    """
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=attempt, args=(theirs, settings, works, memory), daemon=True)
    child.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = None
    finally:
        child.kill()
        child.join()
    if isinstance(answer, UserError):
        raise answer
    if answer is None and child.exitcode in OVERFLOWN:
        return Outcome(False, None, f"its process was ended by {signal.Signals(-child.exitcode).name}")
    if not isinstance(answer, Outcome):
        raise RuntimeError(f"the probe of {len(works)} slots failed: {answer or f'exit code {child.exitcode}'}")
    return answer


def attempt(answer: Connection, settings: WorkerConfig, works: Sequence[Work], memory: int | None) -> None:
    """The child: sends an Outcome, a UserError, or the traceback of what else was raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    try:
        answer.send(outcome(settings, works, memory))
    except Exception as error:  # noqa: BLE001 - told to the parent
        if reason := overflow(error):
            answer.send(Outcome(False, None, reason))
        else:
            answer.send(error if isinstance(error, UserError) else traceback.format_exc())


def outcome(settings: WorkerConfig, works: Sequence[Work], memory: int | None) -> Outcome:
    """Answer the batch in this process, with its data limited to `memory` bytes. Raises what the worker raises."""
    worker = Worker(0, "probe")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (soft if memory is None else memory, hard))
    try:
        worker.load(settings)
        for answered in [worker.begin(work) for work in works]:
            answered.result()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    health = worker.health()
    worker.close()
    peak = health["memory"]["peak_bytes"] or health["memory"]["peak_rss_bytes"]
    slots = health["slots"]
    return Outcome(slots == len(works), peak, "" if slots == len(works) else f"there is room for {slots}")


def overflow(error: BaseException | None) -> str | None:
    """How memory ran out, on a GPU or on the host; None if `error` is something else."""
    from evals.engine.memory import out_of_memory

    if reason := out_of_memory(error):
        return reason
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no memory'}"
        error = error.__context__
    return None
