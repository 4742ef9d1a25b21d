"""A worker: owns one device, loads the model, answers and grades problems, and reports its health.

Everything heavy is imported by `load`, so that making a worker is instant and a failing load is an ordinary exception.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from datetime import datetime
from threading import Lock
from typing import Any, NamedTuple

from evals.evaluate import start_sample
from evals.record import AnsweredBy, Record, RecordKey
from evals.tasks.task import make_task
from evals.types import Answer, Problem
from orchestrator.inputs.models import ModelSource, folder_on_node
from orchestrator.inputs.preflight import Inputs
from orchestrator.machine.gpus import wait_for_free_memory
from orchestrator.rundir.telemetry_rows import WorkerState
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Health, Work

ENGINE_FAILED = 1  # exit code
MOST_CANCELLED = 10_000
"""Cancelled calls that are remembered: more than wait to begin, since those that had ended already are among them."""
MAX_CPU_THREADS = 2
"""From 4 threads on, matrix products were measured to differ in the last bit from those of 1 to 3: answers would depend
on the number of workers. More workers use more cores just as well."""


class WorkerConfig(NamedTuple):
    """What every worker of a session is loaded with."""

    model: ModelSource
    run: RunConfig
    """Resolved."""
    slots: int | None
    """Problems at once, at most; None: as many as fit."""
    max_length: int
    """Longest prompt plus answer, in tokens."""
    train_problems: tuple[Problem, ...]
    """Where solved examples come from."""
    texts: Mapping[RecordKey, Answer] | None
    """What the sampler replays; None where it samples."""
    time: datetime
    """What chat templates take for now."""

    @property
    def num_threads(self) -> int | None:
        """CPU threads of the model, a share of the cores; on a GPU None: the choice is left to torch."""
        cores = len(os.sched_getaffinity(0)) // self.run.num_actors
        return None if self.run.use_gpus else max(1, min(MAX_CPU_THREADS, cores))


class Worker:
    """The worker of one device; `rank` and `name` go into its records."""

    def __init__(self, rank: int, name: str) -> None:
        self._rank, self._name = rank, name
        self._engine: Any = None
        self._loading, self._calling = Lock(), Lock()
        self._under_way: dict[int, Future[Record]] = {}
        """By `Work.call`."""
        self._cancelled = deque[int](maxlen=MOST_CANCELLED)
        """Calls that were cancelled while they were not under way: before they began, or after they had ended."""

    def __repr__(self) -> str:
        """The name in Ray's dashboard, which reads it once, when the actor starts."""
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"{self._name} (rank {self._rank}{f', GPU {devices}' if devices else ''})"

    def load(self, config: WorkerConfig, room: int | None = None) -> int | None:
        """Load the model and start an engine for it; between two runs called again, keep the model, which has to be
        the same, and start a new engine.

        Returns the bytes of the GPU that were free before the load; None on CPUs. A replacement gets as `room` the
        number that its first predecessor returned, and waits until so much is free again.

        Raises UserError when the model cannot be used here, and whatever else loading raises.
        """
        from evals.engine.checkpoint import load_model
        from evals.engine.engine import Engine

        with self._loading:
            free_bytes, engine = None, config.run.engine
            if self._engine is None:
                free_bytes = wait_for_free_memory(room) if config.run.use_gpus else None
                device = "cuda" if config.run.use_gpus else "cpu"
                folder, adapter = folder_on_node(config.model, engine), config.model.adapter
                merged = None if adapter is None else folder_on_node(adapter, engine)
                model = load_model(folder, engine, device, config.num_threads, merged)
            else:
                self._engine.close()
                model = self._engine.model
            self._engine = Engine.build(
                model, engine, slots=config.slots, max_length=config.max_length, sequences=config.run.sampler.sequences
            )
            self._config, self._texts = config, config.texts or {}
            self._notes = self._engine.notes
            self._engine.start()
            return free_bytes if room is None else room

    def cancel(self, call: int) -> None:
        """Give up the call of `solve` with this number, begun or not, which then returns None."""
        with self._calling:
            under_way = self._under_way.get(call)
            if under_way is None:
                self._cancelled.append(call)
        if under_way is not None:
            under_way.cancel()

    def begin(self, work: Work) -> Future[Record]:
        """Begin to answer a problem; the future gets its record, or the exception that ended it."""
        return start_sample(
            work.problem,
            work.sample_index,
            make_task(work.task, work.seed, self._config.train_problems, self._config.time),
            work.sampler,
            self._engine,
            AnsweredBy(self._rank, self._name, os.getpid(), socket.gethostname(), work.attempt),
            self._config.run.engine.prefetch,
            self._texts.get(work.key),
            work.log_probs,
        )

    def solve(self, work: Work) -> Record | None:
        """Answer and grade a problem and return its record; None if it was cancelled.

        If the engine's thread has failed (out of memory, a lost CUDA context), the process ends and is replaced: no
        problem is to blame for certain, and nothing more can be done here.
        """
        try:
            answer = self.begin(work)
            with self._calling:
                self._under_way[work.call] = answer
                cancelled = work.call in self._cancelled
            if cancelled:
                answer.cancel()
            return answer.result()
        except CancelledError:
            return None
        except Exception:
            if self.failure() is not None:
                traceback.print_exception(self.failure(), file=sys.stderr)
                sys.stderr.flush()
                os._exit(ENGINE_FAILED)
            raise
        finally:
            self._under_way.pop(work.call, None)

    def failure(self) -> BaseException | None:
        """The exception that ended the engine's thread; None while it works."""
        return self._engine.failure

    def health(self) -> Health:
        """Process, counters of the engine, memory, state of the device, and what has not been told yet."""
        from evals.engine.device import device_state

        device = self._engine.model.device
        notes, self._notes = self._notes, ""
        state = WorkerState(
            worker=self._name,
            rank=self._rank,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=str(device),
            **self._engine.counters()._asdict(),
            memory=self._engine.memory(),
            idle_seconds=None if self._engine.idle is None else self._engine.idle.seconds,
            **device_state(device)._asdict(),
        )
        return Health(state, notes, self._engine.take_slot_changes())

    def close(self) -> None:
        """End the engine's thread after its present step; problems in flight fail."""
        self._engine.close()


def worker_config(inputs: Inputs) -> WorkerConfig:
    """What workers are loaded with for a run of these inputs."""
    config = inputs.config
    slots = None if config.use_batched and config.batch_size == "auto" else config.slots
    length, train = inputs.max_length, inputs.train_problems
    return WorkerConfig(inputs.model, config, slots, length, train, inputs.texts, inputs.time)
