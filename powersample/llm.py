"""A language model that answers by power sampling, in this process or by Ray actors on several GPUs."""

from __future__ import annotations

import atexit
import json
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from datetime import datetime
from hashlib import blake2b
from operator import index
from os import PathLike
from typing import Any, NamedTuple, Self, SupportsIndex

import numpy as np
from tqdm import tqdm

from evals.config import TaskConfig
from evals.record import Record
from evals.rng import MASK, MAX_SAMPLES
from evals.samplers.registry import settings_of
from evals.types import Chat, Problem, UserError
from orchestrator.driver.requests import Requests
from orchestrator.inputs.models import resolve_model
from orchestrator.inputs.preflight import check_adapter, open_model
from orchestrator.inputs.this_machine import resolved
from orchestrator.settings.config import RunConfig
from orchestrator.settings.merge import validated
from orchestrator.settings.schema import members
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Work, WorkerPool
from orchestrator.workers.worker import Worker, WorkerConfig
from powersample.outputs import CompletionOutput, RequestOutput
from powersample.sampling import Sampling, spelt

MOST_TOKENS, USUAL_MAX_TOKENS = 4096, 512
BAR_SECONDS = 0.5
TASK = TaskConfig(preset="generate")
NO_SAMPLING = "sampling is a Sampling, or a list with one for each prompt."

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text, token ids that are asked as they are, or the turns of a chat (`role`, `content`), the last one the user's."""
Key = tuple[int, int]
"""Problem and sample of a draw, as records have them."""


class Asked(NamedTuple):
    """A prompt that was checked, and how it is asked."""

    text: str | None
    ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    key: Key | None


class LLM:
    """A model and its workers. Close it, or use it as a context, to give memory back; the interpreter's exit does too.

    One worker, on one GPU or without, is in this process; for several, Ray starts one actor each.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        num_gpus: int | None = None,
        max_length: int | None = None,
        batch_size: int | str = "auto",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Load a local folder, a model of the hub, or `demo`, the embedded model.

        `num_gpus`: all that are there by default, 0 for CPUs. `max_length`: longest prompt plus answer in tokens, by
        default the model's context, at most 4,096. `batch_size`: answers at once per worker. `settings` are others of
        `powersample run`, those of the engine by their last name: num_workers (without GPUs, default 1),
        model_revision, dtype, adapter, trust_remote_code and so on. Raises UserError for what the caller can mend.
        """
        names = {name: name for name in ("model", "num_gpus", "batch_size", "seed", "num_workers", "model_revision")}
        names |= {name: f"engine.{name}" for name in members("engine")}
        model = str(model) if isinstance(model, PathLike) else model
        given = {"model": model, "batch_size": batch_size, "seed": seed, "num_workers": 1, **settings}
        given |= {} if num_gpus is None else {"num_gpus": num_gpus}
        config = resolved(validated(spelt("LLM", given, names), mode="run", dashboard=False))
        config = config.model_copy(update={"inline": config.num_actors == 1})
        source = resolve_model(model, config.model_revision, config.engine)
        context, self.vocab_size, self.tokenizer = open_model(source.folder, config.engine)
        if source.adapter is not None:
            check_adapter(source.folder, source.adapter.folder, config.engine)
        if max_length is not None and not (isinstance(max_length, SupportsIndex) and 2 <= max_length <= context):
            raise UserError(f"max_length is {max_length}; with this model's context it is from 2 to {context}.")
        self.max_length = max_length or min(context, MOST_TOKENS)
        """Longest prompt plus answer, in tokens."""
        self.seed, self._time = config.seed, datetime.now().astimezone()
        self._asked_before, self._asking = Counter[int](), threading.Lock()
        slots = None if config.batch_size == "auto" else config.slots
        loaded = WorkerConfig(source, config, slots, self.max_length, (), None, self._time)
        self._requests = Requests(pool_of(loaded, config))
        self.close = weakref.finalize(self, self._requests.close)
        atexit.register(self.close)  # before what Ray has registered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[Key] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to `prompts`, in their order; `sampling` is one for all or one for each.

        `keys` names problem and first sample of each prompt: with a run's prompts, settings and seed the answers are
        that run's, on a CPU token for token. A prompt without a key is keyed by its ids and its sampling, and by how
        often both were asked before: other prompts and repeats have other draws, and the same calls after the same
        start have the same. Raises UserError before anything is asked. Where a request fails, or this call is
        interrupted, the others are cancelled.
        """
        each = [prompts] if isinstance(prompts, str) else listed(prompts, "prompts is one prompt, or a list of them.")
        if not each:
            raise UserError("There is no prompt; give at least one.")
        if isinstance(each[0], Mapping) or is_whole(each[0]):
            each = [each]
        sampling = Sampling() if sampling is None else sampling
        samplings = [sampling] * len(each) if isinstance(sampling, Sampling) else listed(sampling, NO_SAMPLING)
        named = [None] * len(each) if keys is None else listed(keys, "keys has a (problem, sample) for each prompt.")
        for name, num in (("sampling", len(samplings)), ("keys", len(named))):
            if num != len(each):
                raise UserError(f"{name} has {num} entries for {len(each)} prompts; give one for each.")
        settings = zip(each, samplings, named, strict=True)
        asked = [self._checked(*one, place, chat_template_kwargs or {}) for place, one in enumerate(settings)]
        futures: list[Future[RequestOutput]] = []
        try:
            futures += map(self._ask, asked)
            left = {*futures}
            with tqdm(desc="answers", total=len(left), disable=not sys.stderr.isatty()) as bar:
                while left:  # looked at now and then: to wake for every answer would hold the engine up
                    done, left = wait(left, BAR_SECONDS, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    bar.update(len(done))
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def chat(
        self,
        conversations: Prompt | Iterable[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[Key] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`generate` for conversations alone, put into the model's chat template with variables of it."""
        sentence = "chat takes conversations, lists of turns with role and content; generate takes texts."
        each = listed(conversations, sentence)
        if any(isinstance(one, str) for one in each):
            raise UserError(sentence)
        return self.generate(each, sampling, keys, chat_template_kwargs)

    def submit(self, prompt: Prompt, sampling: Sampling | None = None, key: Key | None = None) -> Future[RequestOutput]:
        """Ask one prompt and go on; from any thread. The future's `cancel()` takes it back, and frees what it holds at
        the engine's next step. The future raises RuntimeError where a request failed however often it was tried. Its
        callbacks may submit more, and must not wait for answers."""
        return self._ask(self._checked(prompt, Sampling() if sampling is None else sampling, key, 0, {}))

    def _checked(
        self, prompt: Any, sampling: Sampling, key: Key | None, place: int, template_args: Mapping[str, Any]
    ) -> Asked:
        """The prompt in this place as it is asked. Raises UserError."""
        if not isinstance(sampling, Sampling):
            raise UserError(NO_SAMPLING)
        neither = f"Prompt {place} is neither a text, nor token ids, nor the turns of a chat."
        text, parts = (prompt, []) if is_text(prompt) else (None, listed(prompt, neither))
        if text is not None:
            ids = self.tokenizer.encode(text)
        elif parts and isinstance(parts[0], Mapping):
            chat = Chat(place, tuple(map(checked_turn, parts)), template_args, self._time)
            self.tokenizer.check_chat(chat)
            ids = self.tokenizer.encode(chat)
            text = self.tokenizer.decode(ids)
        else:
            ids = listed(parts, neither, index)
        if not ids:
            raise UserError(f"Prompt {place} has no tokens.")
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise UserError(f"Prompt {place} has a token id outside the model's, which are 0 to {self.vocab_size - 1}.")
        left = self.max_length - len(ids)
        max_tokens = min(USUAL_MAX_TOKENS, left) if sampling.max_tokens is None else sampling.max_tokens
        if left < 1 or max_tokens > left:
            raise UserError(
                f"Prompt {place} does not fit: its {len(ids)} tokens and max_tokens {max(max_tokens, 1)} are more than "
                f"max_length {self.max_length}; lower max_tokens, shorten it, or load the model with a larger "
                "max_length where its context allows."
            )
        if key is not None:
            refused = f"a problem is from 0 to {MASK}, and samples are from 0 to {MAX_SAMPLES - 1}."
            refused = f"The key {key!r:.80} is refused: {refused}"
            key = tuple(listed(key, refused, index))
            if len(key) != 2 or not (0 <= key[0] <= MASK and 0 <= key[1] <= MAX_SAMPLES - sampling.n):
                raise UserError(refused)
        return Asked(text, tuple(ids), sampling, max_tokens, key)

    def _ask(self, asked: Asked) -> Future[RequestOutput]:
        """Ask for all answers to a prompt. The future is one for all of them."""
        text, ids, sampling, max_tokens, _ = asked
        task = TASK.model_copy(update={"max_new_tokens": max_tokens, "stop": sampling.stop})
        keys = self._keys(asked)

        def work(seed: int, problem: int, sample: int) -> Work:
            asks = Problem(problem, text or "", prompt_ids=ids)
            return Work(asks, sample, sampling.sampler, task, seed, log_probs=sampling.logprobs)

        def output(records: Sequence[Record], _model: LLM = self) -> RequestOutput:  # which lives as long as its work
            made = [CompletionOutput.of(i, record, keys[i][0]) for i, record in enumerate(records)]
            return RequestOutput(text, list(ids), made)

        return self._requests.ask([work(*key) for key in keys], output)

    def _keys(self, asked: Asked) -> list[tuple[int, int, int]]:
        """Seed, problem and sample of each answer."""
        sampling, seed = asked.sampling, self.seed if asked.sampling.seed is None else asked.sampling.seed
        if asked.key is not None:
            problem, first = asked.key
            return [(seed, problem, first + i) for i in range(sampling.n)]
        settings = json.dumps([settings_of(sampling.sampler), asked.max_tokens, sampling.stop, seed])
        contents = np.asarray(asked.ids, "<u4").tobytes() + settings.encode()
        named = int.from_bytes(blake2b(contents, digest_size=8).digest(), "big")
        with self._asking:
            first = self._asked_before[named]
            self._asked_before[named] += sampling.n
        keys = []
        for number in range(first, first + sampling.n):
            turn, sample = divmod(number, MAX_SAMPLES)  # a word holds so many; further ones are another problem's
            keys.append((seed ^ (named >> 32) << 32, (named + turn) & MASK, sample))
        return keys


def listed(values: Any, otherwise: str, made: Callable[[Any], Any] = lambda one: one) -> list[Any]:
    """What is `made` of the values; raises UserError(otherwise) where they have no order, or one cannot be made."""
    try:
        if isinstance(values, str | bytes | bytearray | Set | Mapping):
            raise TypeError("it is no list")
        return [made(one) for one in values]
    except TypeError as error:
        raise UserError(otherwise) from error


def is_text(value: Any) -> bool:
    """Whether this is a text that UTF-8 can hold."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def is_whole(value: Any) -> bool:
    """Whether this is a whole number, of whatever type."""
    try:
        return index(value) is not None
    except TypeError:  # an array has the method as well
        return False


def checked_turn(turn: Any) -> dict[str, str]:
    """A turn of a chat. Raises UserError unless it has a role and a content, both texts."""
    if not isinstance(turn, Mapping) or not all(is_text(turn.get(name)) for name in ("role", "content")):
        raise UserError(f"A turn of a chat has role and content, both texts; {turn!r:.80} has not.")
    return dict(turn)


def pool_of(loaded: WorkerConfig, config: RunConfig) -> WorkerPool:
    """The pool of workers for a configuration."""
    if config.inline:
        return InlineWorkerPool(Worker(0, "inline"), loaded, config.slots)
    from orchestrator.cluster.actors import RayWorkerPool, ray

    if ray.is_initialized():  # to close the one that there is would end what is not ours
        raise UserError(
            "An LLM with several workers starts a Ray of its own, and this process has one already; close the other "
            "LLM, call ray.shutdown(), or take one worker."
        )
    handler, main = signal.getsignal(signal.SIGTERM), threading.main_thread()

    def restore() -> None:  # Ray has put its own in its place
        if threading.current_thread() is main:
            signal.signal(signal.SIGTERM, handler)

    return RayWorkerPool(Worker, loaded, config, config.slots, on_ray=restore)
