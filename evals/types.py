"""The value types that tasks, samplers, engine and orchestrator share. Plain values: no torch, no transformers, no Ray.

Terms: a *problem* becomes a *prompt*; a *chain* turns a prompt into a *sample* by yielding *operations*, of which the
most common, `Submit`, carries a *request* that the engine answers with a *completion*. A graded sample is a *record*
(record.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from evals.rng import RandomKey

Ended = Literal["eos", "stop", "length", "given_up", "cancelled"]
"""Why a completion ended: EOS token, stop string, token limit, `Request.give_up`, or cancelled by its chain."""

Watch = Callable[[float, float], bool]
"""Is told log q and log Z of a request's tokens, one after another; True once the chain has no use for the rest."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""Type of a model's weights, by torch's name."""

Execution = Literal["auto", "compiled", "graphs", "eager"]
"""How a GPU runs its steps, see `EngineConfig.execution`."""

Handle = NewType("Handle", int)
"""Opaque name of a token sequence whose keys and values the engine holds."""

Amount = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1 + 1e-6)]
"""A little over 1 is allowed: sums of weights are rounded."""
Thought = Annotated[int, Ge(0)] | Literal["open"]
"""How many of the first characters of an answer's text are thought; `open`: all, for the thought has no end."""
TOLERANT = {"extra": "ignore", "strict": True, "allow_inf_nan": False}
"""How tables inside records are read: types are strict, numbers finite, and what another version added is left out."""


class Tolerant:
    """Base of the tables that are read so."""

    __pydantic_config__ = TOLERANT


class UserError(Exception):
    """A mistake that the user can correct: one sentence that says what is wrong, where, and the way out.

    `settings` has the dotted names of what to set otherwise (`run_dir`, `task.max_new_tokens`); in the spelling of the
    command that the user typed they end the sentence, in brackets. The command line prints it without a traceback and
    exits with code 2.
    """

    def __init__(self, reason: str, settings: tuple[str, ...] = ()) -> None:
        super().__init__(reason, settings)
        self.reason, self.settings = reason, settings

    def __str__(self) -> str:
        return f"{self.reason.removesuffix('.')} ({', '.join(self.settings)})." if self.settings else self.reason

    def spelt(self, spell: Callable[[str], str]) -> UserError:
        """The error with its settings in the spelling `spell`."""
        return UserError(self.reason, tuple(dict.fromkeys(map(spell, self.settings))))


class WorkersLost(Exception):  # noqa: N818 - it says what happened
    """The workers cannot be kept alive; what is recorded is safe, and another start of the run goes on."""


class Problem(NamedTuple):
    """One row of a data set: a question, a worked solution for whoever shows one, and the gold for the graders."""

    problem_id: int
    """Row in the data set; enters every random key, so it never depends on a limit or an order."""
    question: str
    solution: str = ""
    """As the data set has it, in GSM8K's form: reasoning, then `#### gold`. Empty where nothing is graded."""
    gold: str = ""
    """The right answer alone, without white space around it."""
    group: str | None = None
    """Shared by problems made from one template, if the data set says so: they are no independent evidence."""
    turns: tuple[Message, ...] = ()
    """Of a conversation, those before the question, which only a chat can hold."""
    prompt_ids: tuple[int, ...] = ()
    """Token ids that are asked as they are, where the prompt is ready made."""

    @classmethod
    def from_answer(cls, problem_id: int, question: str, answer: str, group: str | None = None) -> Problem:
        """The problem whose data set answers it by a solution that ends in `#### gold`, or by the gold alone."""
        solution = answer if "####" in answer else f"#### {answer.strip()}"
        return cls(problem_id, question, solution, solution.rpartition("####")[2].strip(), group)

    @property
    def reasoning(self) -> str:
        """The solution without its `#### gold`."""
        return self.solution.rpartition("####")[0].strip()


class Answer(NamedTuple):
    """What is graded: the text of an answer, already cut at its stop string."""

    text: str
    thought: Thought = 0
    cut_off: bool = False
    """Whether it ended at the token limit, perhaps before it came to its end."""


Message = dict[str, str]
"""One turn of a chat: `role` (system, user, assistant) and `content`."""


class Chat(NamedTuple):
    """A prompt of turns, with all that a model's chat template is given."""

    problem_id: int
    turns: tuple[Message, ...]
    args: Mapping[str, Any]
    """Further variables of the template, JSON values."""
    time: datetime
    """What the template takes for now, with its zone."""


class Prompt(NamedTuple):
    """What a chain continues: token ids and the rules that end an answer, the same for all its requests."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    """Horizon H: an answer of H tokens is complete as it is."""
    eos_ids: frozenset[int]
    """Every id that ends an answer; the EOS token is part of the answer and nothing follows it."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """True when the text of these answer tokens contains a stop string. A function of the answer's tokens alone."""


class Request(NamedTuple):
    """What the engine is asked: to continue `prefix` with tokens of softmax(alpha * logits)."""

    prefix: tuple[int, ...]
    """Prompt and answer so far, at least one token; the first new token lands at position len(prefix)."""
    max_new: int
    """Most new tokens, at least 1."""
    alpha: float
    """Exponent of the proposal, 1 / temperature; inf is greedy (log_q is then 0 and log_z holds log p)."""
    key: RandomKey
    """Of all its tokens; the last word of the counter is each one's position in the answer."""
    origin: int
    """Length of the prompt: the position at which the answer starts."""
    exclude: int | None = None
    """Token that the first draw, and only the first, must avoid; log q and log Z are as if it were allowed."""
    give_up: Callable[[], Watch] | None = None
    """Makes the watch over the request whenever it begins, also after it was preempted; None lets it end by itself."""
    top_k: int = 0
    """Keep only the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose mass reaches p; 1 keeps all."""
    parent: Handle | None = None
    """Held sequence that starts with `prefix`: its keys and values are used and nothing is prefilled."""


class Completion(NamedTuple):
    """The engine's answer to a request: n new tokens with their statistics."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    """[n] log of the proposal probability of each token, in nats."""
    log_z: NDArray[np.float64]
    """[n] log sum_v p(v | prefix)^alpha at each position, clamped at 0 for alpha >= 1; log p for alpha = inf."""
    ended: Ended
    handle: Handle | None
    """The sequence prefix + tokens, held until kept, dropped or the chain ends; None when cancelled."""
    prefilled: int
    """Tokens that had to be run through the model before the first draw, beyond the one fed again: none with a parent,
    and none of a prefix whose keys and values another request has left."""
    idle: int = 0
    """Slots that stood idle when this arrived: so many more requests of the chain delay no other chain."""


class Submit(NamedTuple):
    """Send a request to the engine; its completion comes back as (tag, completion)."""

    tag: Hashable
    request: Request


class Keep(NamedTuple):
    """Let a held sequence replace its parent: the parent's handle is released."""

    handle: Handle


class Drop(NamedTuple):
    """Release a held sequence; pages that it shares with others stay."""

    handle: Handle


class Cancel(NamedTuple):
    """Stop the request of this tag; its completion still arrives, with `ended` = cancelled."""

    tag: Hashable


Operation = Submit | Keep | Drop | Cancel


@dataclass(frozen=True, kw_only=True)
class ChainFigures(Tolerant):
    """What a sampler reports of a chain, here what all of them do; those with more have a table of their own that adds
    to this one. None: not reported."""

    generated: Amount | None = None
    """Tokens drawn."""
    prefilled: Amount | None = None
    """Tokens run through the model before a draw, see `Completion.prefilled`."""
    log_p: float | None = None
    """Of the answer, in nats."""
    expected_correct: dict[str, Share] | None = None
    """grader -> share of the weights in `Sample.weighted` that lies on right answers."""

    def reported(self) -> dict[str, Any]:
        """The figures that are not None, by name, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Sample(NamedTuple):
    """What a chain returns: one complete answer with its per-token statistics and its figures."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended
    chain: ChainFigures
    weighted: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Answers with weights that sum to 1, whose mean correctness estimates what the single answer's does, with less
    variance: the states a chain visited, or candidates by weight. Empty where there is nothing beside the answer."""
    alpha: float = 1.0
    """Exponent at which its tokens were drawn; inf where each is the likeliest."""

    @property
    def log_p(self) -> NDArray[np.float64]:
        """[n] log p of each token in nats, see `Completion`."""
        return self.log_z if np.isinf(self.alpha) else (self.log_q + self.log_z) / self.alpha


Steps = Generator[list[Operation], tuple[Hashable, Completion] | None, Sample]
"""The generator of a chain: yields operations; while requests are in flight it gets one (tag, completion) at a time."""


class Chain(NamedTuple):
    """A prompt and the generator that samples an answer to it."""

    prompt: Prompt
    steps: Steps
    sequences: int = 2
    """Most sequences of full length that it needs at once, the growing one included: those that it holds and those that
    its requests branch from. Completions of speculative requests, younger than the primary one, do not count. The
    engine keeps room for as many; a chain that needs more may fail."""


class SamplingContext(NamedTuple):
    """What a chain may need to know beside its prompt; each sampler takes of it what it has a use for."""

    prefetch: int = 0
    """Proposals that may run ahead, in slots that would stand idle."""
    vote: Callable[[Sequence[int]], str | None] | None = None
    """The final answer in these answer tokens, as a majority counts it: equal answers are equal strings, None is no
    answer."""
    given: tuple[tuple[int, ...], Ended] | None = None
    """The tokens of a given answer, which is replayed, and why it ended."""


class Sampler(Protocol):
    """Makes chains. A sampler is its frozen settings; all its randomness comes from the keys it is given."""

    @property
    def kind(self) -> str: ...

    @property
    def sequences(self) -> int:
        """How many sequences one of its chains needs at once; see `Chain.sequences`."""
        ...

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """The generator that samples one answer to `prompt`; `key` is that of its move 0."""
        ...


@dataclass(frozen=True)
class Grade(Tolerant):
    """Whether an answer is correct, with the extracted answer as evidence."""

    correct: bool
    answer: str | None = None
    """The extracted answer as the grader saw it; None when there is none (no answer is not the same as wrong)."""
    kind: str = "number"
    """What was extracted: `number`, `none`, and for the numeric grader also `several`, `complex` (judged symbolically),
    `undecided` (the symbolic checker could not), `open thought` or `unfinished` (no answer: the thought has no end, or
    the text was cut off before its answer was whole)."""
    version: int = 1
    """Of the grader: two versions may decide differently."""
    correct_as_it_stands: bool | None = None
    """Of a text that was cut off: the verdict on what it says so far, where that is another."""


@dataclass(frozen=True)
class MemoryReading(Tolerant):
    """Memory of one worker at one moment, in bytes; device fields are None on CPU, where `rss_bytes` counts."""

    rss_bytes: Amount | None = None
    peak_rss_bytes: Amount | None = None
    allocated_bytes: Amount | None = None
    reserved_bytes: Amount | None = None
    peak_bytes: Amount | None = None
    free_bytes: Amount | None = None
    total_bytes: Amount | None = None
