"""Power sampling: a Metropolis-Hastings chain for p(x)^alpha over whole answers.

The kernel says what a move proposes and when it is accepted; the sampler, how many moves there are and to which
horizon; `MHChain` sends their requests and decides what arrives. A move is a function of the state and of its own key,
never of when its proposal arrives. So several proposals from one state may be in flight, each as if the moves before it
had been rejected; they are decided in the order of their moves up to the first acceptance, and the rest is thrown away.
Only slots that would stand idle are used to run ahead, and the chain is the same, token for token, as with one proposal
at a time. Source: Brockwell, Parallel Markov Chain Monte Carlo Simulation by Pre-Fetching (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import inf
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from evals import types
from evals.rng import RandomKey
from evals.samplers.base import EMPTY, Alpha, Arrival, Coins, EarlyRejection, NumMoves, Part, State, arrival, spliced
from evals.samplers.metropolis import Cuts, Kernel, Move, acceptance_probability
from evals.samplers.trace import Mixing, MoveFigures, Trace
from evals.settings import CONFIG, conflict
from evals.types import Completion, Handle, Operation, Prompt, Sample, SamplingContext, Steps, Watch


class TransitionKernel(Protocol):
    """What a move proposes, what ends its proposal (tokens of the answer, and the watch that the engine asks), and the
    log r that decides whether it is accepted."""

    def propose(self, state: State, key: RandomKey) -> Move: ...
    def longest(self, state: State) -> int: ...
    def give_up(self, state: State, move: Move) -> Callable[[], Watch]: ...
    def log_ratio(self, state: State, proposal: State, start: int) -> float: ...


class MHChain:
    """A chain's state and its requests. Moves and extensions are numbered from 0; a request has its move's number."""

    def __init__(
        self, prompt: Prompt, key: RandomKey, alpha: float, early_rejection: bool, prefetch: int, top_k: int = 0
    ) -> None:
        """`prefetch` proposals may be in flight beside the one that is decided next."""
        self.prompt, self.key, self.alpha, self.top_k = prompt, key, alpha, top_k
        self.early_rejection, self.prefetch = early_rejection, prefetch
        self.state = EMPTY
        self.next_move = 0
        """Number of the next move, or of the next extension."""
        self.states: list[tuple[int, int, tuple[int, ...]]] = []
        """Those of the present stage, as `MoveFigures` has them."""
        self.trace = Trace()
        self.mixing = self._new_stage()
        self._handle: Handle | None = None
        self._operations: list[Operation] = []
        self._in_flight = self._cancelled = 0
        self._slots = 1  # that the chain's requests may fill

    def extend(self, horizon: int) -> Part[None]:
        """Extend an answer that has not ended (at first the empty one) up to `horizon` tokens, by draws of q."""
        length = len(self.state.tokens)
        if self.state.ended != "length" or length >= horizon:
            return
        self._submit(self.next_move, length, horizon)
        arrived = yield from self._arrival()
        assert arrived is not None, "no request is cancelled before a stage's last move"
        drawn = arrived[1]
        if self._handle is not None:
            self._operations.append(types.Keep(held(drawn)))
        self.state, self._handle = spliced(self.state, length, drawn), drawn.handle
        self.trace.add_extension(drawn)
        self.next_move += 1

    def moves(self, kernel: TransitionKernel, count: int) -> Part[None]:
        """Make `count` moves of one kernel."""
        self.mixing = self._new_stage()  # those before had another target
        self._first_move, self.states = self.next_move, [(0, 0, self.state.tokens)]
        end = self.next_move + count
        while self.next_move < end:
            yield from self._until_accepted(kernel, end)
        while self._cancelled:
            yield from self._arrival()

    def sample(self, keep_states: bool = False) -> Sample:
        """The present state as a sample, with the chain's figures."""
        figures = self.trace.figures() | self.mixing.figures(self.state)
        figures["states"] = tuple(self.states) if keep_states else None
        return Sample(*self.state, MoveFigures(alpha=self.alpha, **figures), self.mixing.weighted(), self.alpha)

    def _new_stage(self) -> Mixing:
        return Mixing(self.state, self.alpha, recycle=not self.early_rejection)

    def _until_accepted(self, kernel: TransitionKernel, end: int) -> Part[None]:
        """Make moves from the present state, in order, up to the first that is accepted; at most to `end`."""
        state = self.state
        moves: dict[int, Move] = {}
        completions: dict[Hashable, Completion] = {}
        ahead, undecided = self.next_move, 0  # the next move to be proposed; proposals asked for and not decided
        while self.next_move < end:
            move = moves.get(self.next_move)
            if move is not None and move.null(state):
                self.trace.add_null(state, move)
                self.mixing.add(state, state, 1.0, accepted=False)
                self.next_move += 1
            elif move is not None and self.next_move in completions:
                accepted = self._decide(kernel, move, completions.pop(self.next_move))
                self.next_move += 1
                undecided -= 1
                if accepted:
                    self._discard([n for n in range(self.next_move, ahead) if not moves[n].null(state)], completions)
                    return
            elif ahead < end and (not undecided or (undecided <= self.prefetch and self._in_flight < self._slots)):
                move = moves[ahead] = kernel.propose(state, self.key.of(ahead))
                if not move.null(state):
                    give_up = kernel.give_up(state, move) if self.early_rejection else None
                    self._submit(ahead, move.start, kernel.longest(state), move.exclude, give_up)
                    undecided += 1
                ahead += 1
            elif arrived := (yield from self._arrival()):
                completions[arrived[0]] = arrived[1]

    def _decide(self, kernel: TransitionKernel, move: Move, completion: Completion) -> bool:
        """Accept the proposal as the new state, or drop it; returns whether it was accepted."""
        proposal = spliced(self.state, move.start, completion)
        given_up = completion.ended == "given_up"
        log_ratio = -inf if given_up else kernel.log_ratio(self.state, proposal, move.start)
        accepted, null = log_ratio >= move.log_u, proposal.tokens == self.state.tokens
        self.trace.add(self.state, move, completion, null, accepted)
        self.mixing.add(self.state, proposal, None if given_up else acceptance_probability(log_ratio), accepted)
        if accepted:
            if not null:
                self.states.append((self.next_move - self._first_move + 1, move.start, completion.tokens))
            self._operations.append(types.Keep(held(completion)))
            self.state, self._handle = proposal, completion.handle
        else:
            self._operations.append(types.Drop(held(completion)))
        return accepted

    def _discard(self, numbers: list[int], completions: dict[Hashable, Completion]) -> None:
        """Throw away the proposals of these moves; those in flight still arrive, as cancelled."""
        for number in numbers:
            if number in completions:
                self.trace.discarded_tokens += len(completions[number].tokens)
                self._operations.append(types.Drop(held(completions[number])))
            else:
                self._operations.append(types.Cancel(number))
                self._cancelled += 1
                self._in_flight -= 1

    def _submit(
        self,
        number: int,
        start: int,
        longest: int,
        exclude: int | None = None,
        give_up: Callable[[], Watch] | None = None,
    ) -> None:
        """Ask for tokens from position `start` of the answer on, until it has `longest`."""
        request = types.Request(
            prefix=self.prompt.token_ids + self.state.tokens[:start],
            max_new=longest - start,
            alpha=self.alpha,
            key=self.key.of(number),
            origin=len(self.prompt.token_ids),
            exclude=exclude,
            give_up=give_up,
            top_k=self.top_k,
            parent=self._handle,
        )
        self._operations.append(types.Submit(number, request))
        self._in_flight += 1

    def _arrival(self) -> Part[Arrival | None]:
        """Wait for the next completion; None for a cancelled one, which is counted. Its number may be in use again."""
        operations, self._operations = self._operations, []
        arrived = yield from arrival(operations)
        if arrived[1].ended == "cancelled":
            self._cancelled -= 1
            self.trace.discarded_tokens += len(arrived[1].tokens)
            return None
        self._in_flight -= 1
        self._slots = self._in_flight + arrived[1].idle  # idle slots include the one that it leaves
        return arrived


def held(completion: Completion) -> Handle:
    """The handle of a completion that was not cancelled."""
    assert completion.handle is not None, "only a cancelled request has no handle"
    return completion.handle


@dataclass(frozen=True, config=CONFIG)
class Power:
    """`num_moves` moves of a kernel of metropolis.py, started at a draw of softmax(alpha * logits).

    `replay`, `early_rejection` and prefetching save time. Replay leaves the law as it is; the others leave every single
    decision as it is.
    """

    alpha: Alpha = 4.0
    num_moves: NumMoves = 10
    replay: Coins = True
    early_rejection: EarlyRejection = True
    num_effective_moves: Annotated[
        Annotated[int, Field(ge=0, le=100_000)] | None,
        Field(description="instead of num_moves: moves of the kernel that never proposes the state itself"),
    ] = None
    blocks: Annotated[
        int,
        Field(ge=1, le=1000, description="stages of growing length that lead up to the last one, num_moves moves each"),
    ] = 1
    cuts: Annotated[
        Literal["uniform", "entropy"],
        Field(description="where a move cuts: uniform, or entropy (more often where the model is unsure)"),
    ] = "uniform"
    entropy_power: Annotated[
        float, Field(ge=0, le=10, description="exponent of the entropy in the weight of a cut (cuts = entropy)")
    ] = 1.0
    keep_states: Annotated[
        bool, Field(description="records have every state of their chain, for `export --to chains`; changes no answer")
    ] = False
    kind: Literal["power"] = Field(default="power", description="exact Metropolis-Hastings for p^alpha")

    sequences = 2  # the state and a proposal

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_effective_moves is not None:
            if self.num_moves != Power.num_moves:
                raise conflict("they exclude each other; set one", "num_moves", "num_effective_moves")
            if not self.replay:
                reason = "whether a move is null is known by the coins of replay; leave one out"
                raise conflict(reason, "num_effective_moves", "replay")
            if self.cuts != "uniform":
                raise conflict("num_effective_moves needs cuts = uniform", "num_effective_moves", "cuts")
        if self.entropy_power != Power.entropy_power and self.cuts != "entropy":
            raise conflict("entropy_power needs cuts = entropy", "entropy_power", "cuts")
        return self

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`: the state after the last move; see `evals.types.Sampler`."""
        chain = MHChain(prompt, key, self.alpha, self.early_rejection, context.prefetch)
        for horizon in self.horizons(prompt.max_new_tokens):
            yield from chain.extend(horizon)
            yield from chain.moves(self.kernel(horizon), self.moves_per_stage)
        return chain.sample(self.keep_states)

    @property
    def moves_per_stage(self) -> int:
        return self.num_moves if self.num_effective_moves is None else self.num_effective_moves

    def horizons(self, longest: int) -> list[int]:
        """Longest answer of every stage, in tokens: k / blocks of the whole, rounded up; no two stages alike."""
        return sorted({-(-longest * stage // self.blocks) for stage in range(1, self.blocks + 1)})

    def kernel(self, horizon: int) -> Kernel:
        """The kernel of a stage."""
        cuts: Cuts = self.cuts if self.num_effective_moves is None else "nonnull"
        return Kernel(horizon, cuts, self.entropy_power, self.replay)
