"""Evaluates problems on one device: problem -> prompt -> chain -> sample -> grades -> record.

This is where tasks, samplers and the engine meet; none of them imports another.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.record import AnsweredBy, Record, Timings, TokenCounts
from evals.rng import chain_key
from evals.stopping import StopStrings, cut
from evals.tasks.task import Task
from evals.types import Chain, Ended, Problem, Prompt, Sample, Sampler, SamplingContext, UserError

if TYPE_CHECKING:
    from evals.engine.engine import Engine
    from evals.engine.tokenizer import Tokenizer


def start_sample(
    problem: Problem,
    sample_index: int,
    task: Task,
    sampler: Sampler,
    engine: Engine,
    worker: AnsweredBy,
    prefetch: int = 0,
    text: str | None = None,
) -> Future[Record]:
    """Begin one (problem, sample) on a started engine; the future yields its record or the exception that ended it.

    Where slots idle, `prefetch` proposals of a chain may run ahead; `text` is the given answer, where one is replayed.
    `worker`, who does the work, goes into the record as it is. Grading has a thread of its own, so that the engine does
    not wait for a formula that takes seconds to grade.
    """
    began = time.time()
    tokenizer = engine.model.tokenizer
    prompt = make_prompt(task, problem, tokenizer)
    given = None if text is None else given_answer(text, task, tokenizer)
    context = SamplingContext(
        prefetch,
        vote=lambda tokens: task.vote(answer_text(tokens, task, tokenizer)),
        given=given and (given.tokens, given.ended),
    )
    steps = sampler.chain(prompt, chain_key(task.seed, problem.problem_id, sample_index), context)
    sampling = engine.submit(Chain(prompt, steps, sampler.sequences))
    finished: Future[Record] = Future()

    def graded(sample: Sample) -> Record:
        ended = time.time()
        text = given.text if given else answer_text(sample.tokens, task, tokenizer)
        chain = sample.chain
        if sample.weighted:
            chain = replace(chain, expected_correct=expected_correct(problem, sample, task, tokenizer))
        return Record(
            problem_id=problem.problem_id,
            sample_index=sample_index,
            status="ok",
            text=text,
            token_ids=list(sample.tokens),
            ended=sample.ended,
            scores=task.grade(problem, text),
            chain=chain,
            timings=Timings(began, ended, ended - began),
            memory=engine.memory(),
            tokens=TokenCounts(len(prompt.token_ids), len(sample.tokens), chain.generated or 0, chain.prefilled or 0),
            worker=worker,
            group=problem.group,
        )

    def finish() -> None:
        try:
            finished.set_result(graded(sampling.result()))
        except BaseException as error:  # noqa: BLE001 - any error goes to the caller, who waits for the record
            finished.set_exception(error)

    sampling.add_done_callback(lambda _: grading_thread().submit(finish))
    return finished


@cache
def grading_thread() -> ThreadPoolExecutor:
    """The process's one grading thread: grades answers in the order in which they were finished."""
    return ThreadPoolExecutor(1, thread_name_prefix="grading")


def make_prompt(task: Task, problem: Problem, tokenizer: Tokenizer) -> Prompt:
    """The prompt of a problem: its token ids and the rules that end an answer to it."""
    return Prompt(
        token_ids=tuple(prompt_ids(task, problem, tokenizer.encode)),
        max_new_tokens=task.config.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        stopped=stop_rule(task.config.stop, tokenizer),
    )


def prompt_ids(task: Task, problem: Problem, encode: Callable[[Any], Sequence[int]]) -> Sequence[int]:
    """Token ids of the problem's prompt, by `encode` (text or chat -> ids).

    A prompt beyond `task.max_prompt_tokens` gets the longest beginning of its question that a bisection finds to fit:
    what a template or a chat puts after the question stays. Raises UserError where none does.
    """

    def ids(characters: int) -> Sequence[int]:
        return encode(task.asked(problem._replace(question=problem.question[:characters])))

    whole, most = ids(len(problem.question)), task.config.max_prompt_tokens
    if most is None or len(whole) <= most:
        return whole
    fitting = bisect_right(range(len(problem.question)), most, key=lambda characters: len(ids(characters))) - 1
    if fitting < 1:
        raise UserError(
            f"Nothing of problem {problem.problem_id}'s question fits a prompt of task.max_prompt_tokens={most}; raise "
            "it, or shorten what the template or the examples put around the question."
        )
    return ids(fitting)


@lru_cache(maxsize=16)
def stop_rule(stop_strings: tuple[str, ...], tokenizer: Tokenizer) -> StopStrings | None:
    """The stop rule, one for all problems, since it learns which tokens can end a stop string; None without strings."""
    return StopStrings(stop_strings, tokenizer.decode) if stop_strings else None


def answer_text(tokens: Sequence[int], task: Task, tokenizer: Tokenizer) -> str:
    """The text that is graded: a complete answer's without its EOS token, up to the earliest stop string."""
    ended = tokens[-1] in tokenizer.eos_ids
    return cut(tokenizer.decode(tokens[:-1] if ended else tokens), task.config.stop)


class GivenAnswer(NamedTuple):
    """A text from elsewhere as an answer."""

    text: str
    """What is graded: as it was given, whatever the tokenizer would make of it."""
    tokens: tuple[int, ...]
    """What the tokenizer makes of it, with what ended it."""
    ended: Ended


def given_answer(text: str, task: Task, tokenizer: Tokenizer) -> GivenAnswer:
    """The answer that a given text is, ended as a model's would be: by its first stop string, else by an EOS token.

    No token limit applies.
    """
    kept = cut(text, (*task.config.stop, *tokenizer.eos_texts))
    rest, eos = text[len(kept) :], tuple(sorted(tokenizer.eos_ids)[:1])
    stop = "" if rest.startswith(tokenizer.eos_texts) else next(filter(rest.startswith, task.config.stop), "")
    tokens = (*tokenizer.encode(kept + stop, whole=False), *(() if stop else eos))
    return GivenAnswer(kept, tokens, "stop" if stop else "eos" if eos else "length")


def expected_correct(problem: Problem, sample: Sample, task: Task, tokenizer: Tokenizer) -> dict[str, float]:
    """grader -> share of the sample's weights that lies on right answers. Equal answers are graded once."""
    weights: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens, weight in sample.weighted:
        weights[tokens] += weight
    shares: defaultdict[str, float] = defaultdict(float)
    for tokens, weight in weights.items():
        for name, grade in task.grade(problem, answer_text(tokens, task, tokenizer)).items():
            shares[name] += weight * grade.correct
    return dict(shares)
