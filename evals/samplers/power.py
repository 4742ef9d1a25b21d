"""Power sampling: a Metropolis-Hastings chain for p(x)^alpha over whole answers.

The kernel says what a move proposes and when it is accepted; the sampler, how many moves there are and to which
horizon; `MHChain` sends their requests and decides what arrives. A move is a function of the state and of its own key,
never of when its proposal arrives. So several proposals from one state may be in flight, each as if the moves before it
had been rejected; they are decided in the order of their moves up to the first acceptance, and the rest is thrown away.
Only slots that would stand idle are used to run ahead, and the chain is the same, token for token, as with one proposal
at a time. Source: Brockwell, Parallel Markov Chain Monte Carlo Simulation by Pre-Fetching (2006).
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from math import inf
from typing import Literal, NamedTuple, Protocol

from evals.samplers.base import EMPTY, Arrival, RandomKey, State, arrival, key, spliced
from evals.samplers.metropolis import Cuts, Kernel, Limits, Move, acceptance_probability
from evals.samplers.trace import Mixing, Trace
from evals.types import Cancel, Completion, Drop, Handle, Keep, Operation, Prompt, Request, Sample, Steps, Submit

Segment = Generator[list[Operation], Arrival | None, None]
"""A part of a chain: `yield from` it."""


class TransitionKernel(Protocol):
    """What a move proposes, what ends its proposal, and the log r that decides whether it is accepted."""

    def propose(self, state: State, seed: int, key: RandomKey) -> Move: ...
    def limits(self, state: State, move: Move) -> Limits: ...
    def log_ratio(self, state: State, proposal: State, start: int) -> float: ...


class Draws(NamedTuple):
    """What all requests of a chain have in common, and how many of them may run ahead."""

    alpha: float
    early_rejection: bool
    prefetch: int
    """Proposals that may be in flight beside the one that is decided next."""
    top_k: int = 0


class MHChain:
    """A chain's state and its requests. Moves and extensions are numbered from 0; a request has its move's number."""

    def __init__(self, draws: Draws, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> None:
        self.draws, self.prompt, self.seed, self.words = draws, prompt, seed, (problem_id, sample_index)
        self.state = EMPTY
        self.next_move = 0
        """Number of the next move, or of the next extension."""
        self.trace = Trace()
        self.mixing = self._new_stage()
        self._handle: Handle | None = None
        self._operations: list[Operation] = []
        self._in_flight = self._cancelled = 0
        self._slots = 1  # that the chain's requests may fill

    def extend(self, horizon: int) -> Segment:
        """Extend an answer that has not ended (at first the empty one) up to `horizon` tokens, by draws of q."""
        length = len(self.state.tokens)
        if self.state.ended != "length" or length >= horizon:
            return
        self._submit(self.next_move, length, None, Limits(horizon - length, -inf, "constant"))
        arrived = yield from self._arrival()
        assert arrived is not None, "no request is cancelled before a stage's last move"
        drawn = arrived[1]
        if self._handle is not None:
            self._operations.append(Keep(held(drawn)))
        self.state, self._handle = spliced(self.state, length, drawn), drawn.handle
        self.trace.add_extension(drawn)
        self.next_move += 1

    def moves(self, kernel: TransitionKernel, count: int) -> Segment:
        """Make `count` moves of one kernel."""
        self.mixing = self._new_stage()  # those before had another target
        end = self.next_move + count
        while self.next_move < end:
            yield from self._until_accepted(kernel, end)
        while self._cancelled:
            yield from self._arrival()

    def sample(self) -> Sample:
        """The present state as a sample, with the chain's diagnostics."""
        info = {"alpha": self.draws.alpha, **self.trace.summary(), **self.mixing.summary(self.state)}
        return Sample(*self.state, chain=info, weighted=self.mixing.weighted())

    def _new_stage(self) -> Mixing:
        return Mixing(self.state, self.draws.alpha, recycle=not self.draws.early_rejection)

    def _until_accepted(self, kernel: TransitionKernel, end: int) -> Segment:
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
            elif ahead < end and (
                not undecided or (undecided <= self.draws.prefetch and self._in_flight < self._slots)
            ):
                move = moves[ahead] = kernel.propose(state, self.seed, key(*self.words, ahead))
                if not move.null(state):
                    self._submit(ahead, move.start, move.exclude, kernel.limits(state, move))
                    undecided += 1
                ahead += 1
            elif arrived := (yield from self._arrival()):
                completions[arrived[0]] = arrived[1]

    def _decide(self, kernel: TransitionKernel, move: Move, completion: Completion) -> bool:
        """Accept the proposal as the new state, or drop it; returns whether it was accepted."""
        proposal = spliced(self.state, move.start, completion)
        given_up = completion.ended == "floor"
        log_ratio = -inf if given_up else kernel.log_ratio(self.state, proposal, move.start)
        accepted = log_ratio >= move.log_u
        self.trace.add(self.state, move, completion, proposal.tokens == self.state.tokens, accepted)
        self.mixing.add(self.state, proposal, None if given_up else acceptance_probability(log_ratio), accepted)
        if accepted:
            self._operations.append(Keep(held(completion)))
            self.state, self._handle = proposal, completion.handle
        else:
            self._operations.append(Drop(held(completion)))
        return accepted

    def _discard(self, numbers: list[int], completions: dict[Hashable, Completion]) -> None:
        """Throw away the proposals of these moves; those in flight still arrive, as cancelled."""
        for number in numbers:
            if number in completions:
                self.trace.discarded_tokens += len(completions[number].tokens)
                self._operations.append(Drop(held(completions[number])))
            else:
                self._operations.append(Cancel(number))
                self._cancelled += 1
                self._in_flight -= 1

    def _submit(self, number: int, start: int, exclude: int | None, limits: Limits) -> None:
        """Ask for tokens from position `start` of the answer on."""
        if not self.draws.early_rejection:
            limits = limits._replace(floor=-inf)
        request = Request(
            prefix=self.prompt.token_ids + self.state.tokens[:start],
            alpha=self.draws.alpha,
            key=key(*self.words, number),
            origin=len(self.prompt.token_ids),
            exclude=exclude,
            top_k=self.draws.top_k,
            parent=self._handle,
            **limits._asdict(),
        )
        self._operations.append(Submit(number, request))
        self._in_flight += 1

    def _arrival(self) -> Generator[list[Operation], Arrival | None, Arrival | None]:
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


class Power(NamedTuple):
    """`num_moves` moves of a kernel of metropolis.py, started at a draw of softmax(alpha * logits).

    `replay`, `early_rejection` and `prefetch` save time. Replay leaves the law as it is; the others leave every single
    decision as it is.
    """

    alpha: float
    num_moves: int
    replay: bool = True
    early_rejection: bool = True
    num_effective_moves: int | None = None
    """Instead of `num_moves`: so many moves of the kernel that never proposes the state itself."""
    blocks: int = 1
    """Stages of growing horizon, all of them with as many moves; only the last, of the whole horizon, samples p^alpha;
    the others choose where it starts."""
    cuts: Literal["uniform", "entropy"] = "uniform"
    entropy_power: float = 1.0
    prefetch: int = 0
    """Proposals in flight beside the one that is decided next, in slots that would stand idle."""

    sequences = 2  # the state and a proposal

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`: the state after the last move; see `evals.types.Sampler`."""
        chain = MHChain(Draws(self.alpha, self.early_rejection, self.prefetch), prompt, seed, problem_id, sample_index)
        for horizon in self.horizons(prompt.max_new_tokens):
            yield from chain.extend(horizon)
            yield from chain.moves(self.kernel(horizon), self.moves_per_stage)
        return chain.sample()

    @property
    def moves_per_stage(self) -> int:
        return self.num_moves if self.num_effective_moves is None else self.num_effective_moves

    def horizons(self, longest: int) -> list[int]:
        """Longest answer of every stage, in tokens: k / blocks of the whole, rounded up; no two stages alike."""
        return sorted({-(-longest * stage // self.blocks) for stage in range(1, self.blocks + 1)})

    def kernel(self, horizon: int) -> Kernel:
        """The kernel of a stage. Raises ValueError for settings that contradict each other."""
        cuts: Cuts = self.cuts
        if self.num_effective_moves is not None:
            if self.cuts != "uniform" or not self.replay:
                raise ValueError("num_effective_moves needs replay and uniform cuts")
            cuts = "nonnull"
        return Kernel(horizon, cuts, self.entropy_power, self.replay)
