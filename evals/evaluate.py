"""Evaluates problems on one device: problem -> prompt -> chain -> sample -> grades -> record.

This is where tasks, samplers and the engine meet; none of them imports another.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cache, lru_cache
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.record import AnsweredBy, LogProbs, Record, Timings, TokenCounts
from evals.rng import chain_key
from evals.stopping import StopStrings, cut
from evals.tasks.task import Task
from evals.thoughts import Thoughts, end_in, thought_in
from evals.types import (
    Answer,
    Chain,
    Ended,
    Grade,
    Problem,
    Prompt,
    Sample,
    Sampler,
    SamplingContext,
    UserError,
)

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
    given: Answer | None = None,
    log_probs: bool = False,
) -> Future[Record]:
    """Begin one (problem, sample) on a started engine; the future yields its record or the exception that ended it.
    Cancelling it cancels the chain.

    Where slots idle, `prefetch` proposals of a chain may run ahead; `given` is the answer where one is replayed.
    `worker`, who does the work, goes into the record as it is; with `log_probs` the record has those of its tokens.
    Grading has a thread of its own, so that the engine does not wait for a formula that takes seconds to grade.
    """
    began = time.time()
    tokenizer = engine.model.tokenizer
    prompt = make_prompt(task, problem, tokenizer)
    replayed = None if given is None else replayed_answer(given, task, tokenizer)
    thoughts = thought_rule(task.config.thought_end, tokenizer)
    opened = thoughts.opened_by(prompt.token_ids)

    def read(tokens: Sequence[int]) -> Answer:
        if replayed is not None:  # no prompt was read, and the tokens may say less than the text
            return Answer(replayed.text, thought_in(replayed.text, thoughts.end), replayed.ended == "length")
        text, cut_off = answer_text(tokens, task, tokenizer)
        return Answer(text, thoughts.of(tokens, text, opened), cut_off)

    context = SamplingContext(
        prefetch,
        vote=lambda tokens: task.vote(read(tokens)),
        given=replayed and (replayed.tokens, replayed.ended),
    )
    steps = sampler.chain(prompt, chain_key(task.seed, problem.problem_id, sample_index), context)
    sampling = engine.submit(Chain(prompt, steps, sampler.sequences))
    finished: Future[Record] = Future()

    def graded(sample: Sample) -> Record:
        ended = time.time()
        answer = read(sample.tokens)
        chain, scores = sample.chain, task.grade(problem, answer)
        if sample.weighted and scores:
            shares = expected_correct(sample, lambda tokens: task.grade(problem, read(tokens)))
            chain = replace(chain, expected_correct=shares)
        return Record(
            problem_id=problem.problem_id,
            sample_index=sample_index,
            status="ok",
            text=answer.text,
            token_ids=list(sample.tokens),
            ended=sample.ended,
            scores=scores,
            chain=chain,
            timings=Timings(began, ended, ended - began),
            memory=engine.memory(),
            tokens=TokenCounts(len(prompt.token_ids), len(sample.tokens), chain.generated or 0, chain.prefilled or 0),
            worker=worker,
            group=problem.group,
            thought=answer.thought,
            log_probs=LogProbs(sample.log_p.tolist(), sample.log_q.tolist()) if log_probs else None,
        )

    def finish() -> None:
        if not finished.set_running_or_notify_cancel():
            return
        try:
            finished.set_result(graded(sampling.result()))
        except BaseException as error:  # noqa: BLE001 - any error goes to the caller, who waits for the record
            finished.set_exception(error)

    sampling.add_done_callback(lambda _: to_be_graded().put(finish))
    finished.add_done_callback(lambda done: sampling.cancel() if done.cancelled() else None)
    return finished


@cache
def to_be_graded() -> SimpleQueue[Callable[[], None]]:
    """What the process's one grading thread takes from, in the order in which answers were finished."""
    queue = SimpleQueue[Callable[[], None]]()

    def grade() -> None:
        while True:
            queue.get()()

    Thread(target=grade, name="grading", daemon=True).start()  # the end of the process waits for no grade
    return queue


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

    if problem.prompt_ids:
        return problem.prompt_ids

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


@lru_cache(maxsize=16)
def thought_rule(end: str | None, tokenizer: Tokenizer) -> Thoughts:
    """How the model's thoughts are told; where no `end` is set it is that of the model's chat template."""
    return Thoughts(end_in(tokenizer.chat_template) if end is None else end, tokenizer.decode, tokenizer.added)


def answer_text(tokens: Sequence[int], task: Task, tokenizer: Tokenizer) -> tuple[str, bool]:
    """The text of a complete answer, without its EOS token and up to the earliest stop string, and whether it was cut
    off: ended by neither."""
    ended = tokens[-1] in tokenizer.eos_ids
    whole = tokenizer.decode(tokens[:-1] if ended else tokens)
    text = cut(whole, task.config.stop)
    return text, not ended and len(text) == len(whole)


class ReplayedAnswer(NamedTuple):
    """A text from elsewhere as an answer."""

    text: str
    """What is graded: as it was given, whatever the tokenizer would make of it."""
    tokens: tuple[int, ...]
    """What the tokenizer makes of it, with what ended it."""
    ended: Ended


def replayed_answer(given: Answer, task: Task, tokenizer: Tokenizer) -> ReplayedAnswer:
    """The answer that a given one is, ended as a model's would be: by its first stop string, else by an EOS token.

    No token limit applies, but one that was cut off elsewhere ends as such.
    """
    kept = cut(given.text, (*task.config.stop, *tokenizer.eos_texts))
    rest, eos = given.text[len(kept) :], tuple(sorted(tokenizer.eos_ids)[:1])
    stop = "" if rest.startswith(tokenizer.eos_texts) else next(filter(rest.startswith, task.config.stop), "")
    cut_off = given.cut_off and not rest
    tokens = (*tokenizer.encode(kept + stop, whole=False), *(() if stop or cut_off else eos))
    return ReplayedAnswer(kept, tokens, "stop" if stop else "length" if cut_off else "eos")


def expected_correct(sample: Sample, grade: Callable[[tuple[int, ...]], Mapping[str, Grade]]) -> dict[str, float]:
    """grader -> share of the sample's weights that lies on right answers. Equal answers are graded once."""
    weights: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens, weight in sample.weighted:
        weights[tokens] += weight
    shares: defaultdict[str, float] = defaultdict(float)
    for tokens, weight in weights.items():
        for name, one in grade(tokens).items():
            shares[name] += weight * one.correct
    return dict(shares)
