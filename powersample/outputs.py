"""What a program gets for a prompt, in the names that vLLM has made usual."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from evals.record import LogProbs, Record


class Chain(NamedTuple):
    """How an answer was come to; log p in nats."""

    moves: int
    """Metropolis-Hastings moves; 0 where the sampler makes none."""
    accepted: int
    log_p_by_move: tuple[float, ...]
    """log p of the answer at its start and after every move; where there are no moves that of the answer alone."""
    generated: int
    """Tokens drawn for it, whatever became of them."""
    log_probs: LogProbs | None
    """log p of each token, by the model (`raw`) and as it was drawn, at alpha (`tempered`); see `Sampling.logprobs`."""
    figures: dict[str, Any]
    """All figures that the sampler reports, as records.jsonl has them."""


class CompletionOutput(NamedTuple):
    """One answer."""

    index: int
    text: str
    """Without what ended it."""
    token_ids: list[int]
    """With the EOS token, or the tokens of the stop string, that ended it."""
    cumulative_logprob: float
    """log p of the whole answer by the model, in nats."""
    finish_reason: Literal["stop", "length"]
    chain: Chain
    key: tuple[int, int, int]
    """What its random numbers are keyed by: seed, problem and sample; see `LLM.generate`."""

    @classmethod
    def of(cls, index: int, record: Record, seed: int) -> CompletionOutput:
        """The answer of a record."""
        chain, figures = record.chain, record.chain.reported()
        log_p = chain.log_p or 0.0
        by_move = figures.get("log_p_trace", (log_p,))
        counts = figures.get("moves", 0), figures.get("accepted", 0)
        made = Chain(*counts, tuple(by_move), chain.generated or 0, record.log_probs, figures)
        reason = "length" if record.ended == "length" else "stop"
        return cls(index, record.text, record.token_ids, log_p, reason, made, (seed, *record.key))


class RequestOutput(NamedTuple):
    """The answers to one prompt."""

    prompt: str | None
    """The text that was asked, a chat's as its template has it; None where ids were given."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
