"""Measures how fast this machine decodes: times the engine's steps on a model of known shape.

Engine and samplers meet here as they do in evaluate.py: what is timed is the loop that answers problems, with chains
that never end early.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evals.config import EngineConfig
from evals.engine.checkpoint import random_model, read_model
from evals.engine.device import release, reset_peak
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.model import Model
from evals.rng import RandomKey
from evals.samplers.single import one_draw
from evals.types import Chain, MemoryReading, Prompt

ALPHA = 4.0
WARM_UP = 20
"""Steps before the timed ones."""

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "tie_word_embeddings",
)  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (kind, dict(zip(SIZES, sizes, strict=True)) | {"max_position_embeddings": 32_768})
    for name, kind, *sizes in (
        ("tiny", "qwen2", 64, 128, 2, 4, 2, 512, True),
        ("0.5b", "qwen2", 896, 4864, 24, 14, 2, 151_936, True),
        ("1.5b", "qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
        ("7b", "qwen2", 3584, 18944, 28, 28, 4, 152_064, False),
        ("8b", "llama", 4096, 14336, 32, 32, 8, 128_256, False),
    )
}
"""Name -> the library's model type and its sizes: Qwen2.5 0.5B, 1.5B and 7B, Llama 3.1 8B, and one for a CPU."""


class Laps(dict[str, float]):
    """A stopwatch: the seconds of the phases of a start, by name."""

    def __init__(self, began: float) -> None:
        """`began` is on the clock of time.perf_counter."""
        super().__init__()
        self._last = began

    def lap(self, name: str) -> None:
        """Record the time since the last lap as the phase `name`."""
        now = time.perf_counter()
        self[name], self._last = now - self._last, now

    def restart(self) -> None:
        """Begin a lap now; the time since the last one belongs to no phase."""
        self._last = time.perf_counter()


class Decoding(NamedTuple):
    """Measured speed of decoding with all slots busy, host loop included."""

    slots: int
    execution: str
    step_seconds: float
    waits: float | None
    """Share of the time in which the device waited for the host, at most; None where nothing is enqueued ahead."""
    engine_seconds: float
    """To make the engine: self-check, measurement of sizes, compilation and capture."""
    first_token_seconds: float
    """From the submission of all prompts to the first token."""
    peak_bytes: int
    """Peak of device memory since the engine was begun, weights included; on a CPU the process's."""
    notes: str
    """The engine's notes on its memory."""


class Pace:
    """The clock of a run: a stop rule that never stops, since a stop rule sees every token as it arrives."""

    def __init__(self, engine: Engine, first: int, last: int) -> None:
        self._engine, self._first, self._last = engine, first, last
        self._began = time.perf_counter()
        self._seconds: dict[int, float] = {}
        self._idle: dict[int, float] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        count = len(tokens)
        if count in (1, self._first, self._last):  # overwritten if memory ran out and the chain began again
            self._seconds[count] = time.perf_counter() - self._began
            self._idle[count] = 0.0 if self._engine.idle is None else self._engine.idle.seconds
        return False

    @property
    def first_token_seconds(self) -> float:
        """Time from the beginning to the first token."""
        return self._seconds[1]

    @property
    def seconds(self) -> float:
        """Time between the tokens `first` and `last`."""
        return self._seconds[self._last] - self._seconds[self._first]

    @property
    def waits(self) -> float | None:
        """Share of `seconds` in which the device waited for the host; None where it is not measured."""
        if self._engine.idle is None:
            return None
        return (self._idle[self._last] - self._idle[self._first]) / self.seconds


def load(model: str | None, shape: str, config: EngineConfig, device: str) -> Model:
    """The model of the folder `model`, or one of random weights in a named shape, as it came."""
    if model is not None:
        return read_model(model, config, device)
    dtype = {"cpu": "float32", "cuda": "bfloat16"}[device] if config.dtype == "auto" else config.dtype
    return random_model(*SHAPES[shape], dtype, device)


def prompt_length(context: int, steps: int) -> int:
    """Tokens of a prompt whose `steps` timed steps see `context` tokens in the mean; below 1 if there is none."""
    return context - WARM_UP - steps // 2


def needed_length(context: int, steps: int) -> int:
    """Tokens of such a prompt and of all that is drawn after it, warm-up included."""
    return prompt_length(context, steps) + WARM_UP + steps + 1


def random_prompts(model: Model, count: int, length: int) -> list[list[int]]:
    """Prompts of random tokens, which share no page."""
    return np.random.default_rng(0).integers(model.vocab_size, size=(count, length)).tolist()


def decode(model: Model, config: EngineConfig, slots: int | None, context: int, steps: int) -> Decoding:
    """Time `steps` steps of a new engine of `slots` slots (None: as many as fit), all of them busy.

    Raises UserError where not even one slot fits.
    """
    release(model.device)
    reset_peak(model.device)
    length, new = prompt_length(context, steps), WARM_UP + steps + 1
    began = time.perf_counter()
    engine = Engine.build(prepare(model), config, slots=slots, max_length=needed_length(context, steps), sequences=1)
    made = time.perf_counter() - began
    count = engine.counters().slots
    if engine.idle is not None:
        engine.idle.reset()
    pace = Pace(engine, WARM_UP, WARM_UP + steps)
    chains = []
    for row, tokens in enumerate(random_prompts(model, count, length)):
        prompt = Prompt(tuple(tokens), new, frozenset(), stopped=None if row else pace)
        chains.append(Chain(prompt, one_draw(prompt, RandomKey(0, row, 0), ALPHA), sequences=1))
    engine.run(chains)
    decoding = Decoding(
        slots=count,
        execution=engine.execution,
        step_seconds=pace.seconds / steps,
        waits=pace.waits,
        engine_seconds=made,
        first_token_seconds=pace.first_token_seconds,
        peak_bytes=peak(engine.memory()),
        notes=engine.notes,
    )
    engine.close()
    return decoding


def peak(memory: MemoryReading) -> int:
    """The peak of the device in bytes; on a CPU that of the process."""
    return (memory.peak_rss_bytes if memory.peak_bytes is None else memory.peak_bytes) or 0
