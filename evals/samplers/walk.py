"""A chain's way through its moves: requests out, completions in, decisions in between. Knows no slot and no device.

Which moves are proposed and when they are accepted is the kernel's; how many there are and where they end, the
sampler's. A move is a function of the state and of its own keys, never of when its draft arrives. So several drafts of
one state may be in flight, each as if the moves before it had been rejected; they are decided in the order of their
moves up to the first acceptance, and the rest is thrown away. This runs ahead only in slots that would stand idle, and
gives the same chain, token for token, as one draft at a time. Source: Brockwell, Parallel Markov Chain Monte Carlo
Simulation by Pre-Fetching (2006).
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from math import inf
from typing import NamedTuple, Protocol

import numpy as np

from evals.samplers.base import Key, key
from evals.samplers.metropolis import Limits, Plan, State, chance, spliced
from evals.samplers.trace import Mixing, Trace
from evals.types import Cancel, Completion, Drop, Handle, Keep, Operation, Prompt, Request, Sample, Submit

Arrival = tuple[Hashable, Completion]
Segment = Generator[list[Operation], Arrival | None, None]
"""A part of a chain: `yield from` it."""

EMPTY = State((), np.zeros(0), np.zeros(0), "length")


class Rule(Protocol):
    """A kernel: what a move proposes, what its draft has to obey, and how its acceptance is decided."""

    def plan(self, state: State, seed: int, key: Key) -> Plan: ...
    def limits(self, state: State, plan: Plan) -> Limits: ...
    def log_ratio(self, state: State, draft: State, start: int) -> float: ...


class Draws(NamedTuple):
    """What a chain's draws have in common, and how its requests are scheduled."""

    alpha: float
    early_rejection: bool = True
    prefetch: int = 0
    """Drafts that may be in flight beside the one that is decided next."""
    top_k: int = 0


class Walk:
    """The state of a chain and its requests; every request and every move has a number, counted from 0."""

    def __init__(self, draws: Draws, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> None:
        self.draws, self.prompt, self.seed = draws, prompt, seed
        self.problem_id, self.sample_index = problem_id, sample_index
        self.state = EMPTY
        self.move = 0
        """Number of the next move, or of the next extension."""
        self.trace = Trace()
        self.mixing = self._new_stage()
        self._handle: Handle | None = None
        self._operations: list[Operation] = []
        self._flying = self._cancelled = 0
        self._room = 1

    def extend(self, horizon: int) -> Segment:
        """Go on from an answer that has not ended (at first from none) up to `horizon` tokens, by draws of q."""
        length = len(self.state.tokens)
        if self.state.ended != "length" or length >= horizon:
            return
        self._submit(self.move, length, None, Limits(horizon - length, -inf, "constant"))
        _, drawn = yield from self._arrival()
        if self._handle is not None:
            self._operations.append(Keep(held(drawn)))
        self.state, self._handle = spliced(self.state, length, drawn), drawn.handle
        self.trace.add_extension(drawn)
        self.move += 1

    def moves(self, rule: Rule, count: int) -> Segment:
        """`count` moves of one kernel."""
        self.mixing = self._new_stage()  # those before had another target
        end = self.move + count
        while self.move < end:
            yield from self._until_accepted(rule, end)
        while self._cancelled:
            self._settle((yield self._taken()))

    def sample(self) -> Sample:
        """The state as it is now, with the chain's diagnostics."""
        info = {"alpha": self.draws.alpha, **self.trace.summary(), **self.mixing.summary(self.state)}
        return Sample(*self.state, chain=info, weighted=self.mixing.weighted())

    def _new_stage(self) -> Mixing:
        return Mixing(self.state, self.draws.alpha, recycle=not self.draws.early_rejection)

    def _until_accepted(self, rule: Rule, end: int) -> Segment:
        """Moves from the present state, in order, up to the first that is accepted; at most to `end`."""
        state = self.state
        plans: dict[int, Plan] = {}
        drafts: dict[Hashable, Completion] = {}
        ahead, undecided = self.move, 0  # the next move to be planned; drafts asked for and not decided
        while self.move < end:
            plan = plans.get(self.move)
            if plan is not None and plan.null(state):
                self.trace.add_null(state, plan)
                self.mixing.add(state, state, 1.0, accepted=False)
                self.move += 1
            elif plan is not None and self.move in drafts:
                accepted = self._decide(rule, plan, drafts.pop(self.move))
                self.move += 1
                undecided -= 1
                if accepted:
                    self._discard([n for n in range(self.move, ahead) if not plans[n].null(state)], drafts)
                    return
            elif ahead < end and (not undecided or (undecided <= self.draws.prefetch and self._flying < self._room)):
                plan = plans[ahead] = rule.plan(state, self.seed, self._key(ahead))
                if not plan.null(state):
                    self._submit(ahead, plan.start, plan.exclude, rule.limits(state, plan))
                    undecided += 1
                ahead += 1
            else:
                number, draft = yield from self._arrival()
                drafts[number] = draft

    def _decide(self, rule: Rule, plan: Plan, completion: Completion) -> bool:
        """Accept the draft as the new state, or drop it."""
        draft = spliced(self.state, plan.start, completion)
        given_up = completion.ended == "floor"
        log_ratio = -inf if given_up else rule.log_ratio(self.state, draft, plan.start)
        accepted = log_ratio >= plan.log_u
        self.trace.add(self.state, plan, completion, draft.tokens == self.state.tokens, accepted)
        self.mixing.add(self.state, draft, None if given_up else chance(log_ratio), accepted)
        if accepted:
            self._operations.append(Keep(held(completion)))
            self.state, self._handle = draft, completion.handle
        else:
            self._operations.append(Drop(held(completion)))
        return accepted

    def _discard(self, numbers: list[int], drafts: dict[Hashable, Completion]) -> None:
        """Throw away the drafts of these moves; those in flight still arrive, as cancelled."""
        for number in numbers:
            if number in drafts:
                self.trace.discarded_tokens += len(drafts[number].tokens)
                self._operations.append(Drop(held(drafts[number])))
            else:
                self._operations.append(Cancel(number))
                self._cancelled += 1
                self._flying -= 1

    def _submit(self, number: int, start: int, exclude: int | None, limits: Limits) -> None:
        """Ask for tokens from position `start` of the answer on."""
        request = Request(
            prefix=self.prompt.token_ids + self.state.tokens[:start],
            max_new=limits.max_new,
            alpha=self.draws.alpha,
            key=self._key(number),
            origin=len(self.prompt.token_ids),
            exclude=exclude,
            floor=limits.floor if self.draws.early_rejection else -inf,
            bound=limits.bound,
            top_k=self.draws.top_k,
            parent=self._handle,
            carry=limits.carry,
        )
        self._operations.append(Submit(number, request))
        self._flying += 1

    def _arrival(self) -> Generator[list[Operation], Arrival | None, Arrival]:
        """The next completion of a request that has not been cancelled."""
        while True:
            arrival = self._settle((yield self._taken()))
            if arrival is not None:
                self._flying -= 1
                self._room = self._flying + arrival[1].idle  # the slot that it leaves stands idle
                return arrival

    def _settle(self, arrival: Arrival | None) -> Arrival | None:
        """Count a cancelled request's tokens; what else arrives is given back. Their numbers may be in use again."""
        if arrival is None:
            raise RuntimeError("the engine resumed a chain that waits for a completion without one")
        if arrival[1].ended != "cancelled":
            return arrival
        self._cancelled -= 1
        self.trace.discarded_tokens += len(arrival[1].tokens)
        return None

    def _taken(self) -> list[Operation]:
        operations, self._operations = self._operations, []
        return operations

    def _key(self, number: int) -> Key:
        return key(self.problem_id, self.sample_index, number)


def held(completion: Completion) -> Handle:
    assert completion.handle is not None, "only a cancelled request has no handle"
    return completion.handle
