"""Measures the demo model by reference samplers in plain torch: greedy, plain, low-temperature and power sampling.

Part of the training script. Deliberately independent of the project's engine and samplers: no pages, no replay, no
early rejection, other random numbers. A model card made with it is an independent check of them. All rows of a batch
are decoded in lock step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from demo_training.problems import Row

MAX_NEW_TOKENS = 256
GOLD = re.compile(r"#### (-?[0-9.,]+)")


class Answer(NamedTuple):
    """Tokens of an answer, its end included, and log sum_v p(v | prefix)^alpha at each of them."""

    tokens: list[int]
    log_z: list[float]


class Score(NamedTuple):
    """Scores of a batch of answers."""

    accuracy: float
    stderr: float
    ended: float
    """Share of the answers that ended by themselves."""
    mean_tokens: float


class Subject(NamedTuple):
    """The model under test with its tokenizer and the generator of its random draws."""

    model: Any
    tokenizer: Any
    generator: torch.Generator

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        return self.tokenizer([f"Question: {row.question}\nAnswer:" for row in rows])["input_ids"]


@torch.inference_mode()
def draw(subject: Subject, prefixes: Sequence[list[int]], room: Sequence[int], alpha: float) -> list[Answer]:
    """Continue each prefix with at most `room` tokens of softmax(alpha * logits); alpha = inf is greedy."""
    model, eos = subject.model, subject.tokenizer.eos_token_id
    width = max(map(len, prefixes))
    rows = [[eos] * (width - len(prefix)) + prefix for prefix in prefixes]
    ids = torch.tensor(rows, device=model.device)
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=model.device)
    mask = (torch.arange(width, device=model.device) >= (width - lengths)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    left = torch.tensor(room, device=model.device)
    open_rows = left > 0
    cache = DynamicCache()
    tokens: list[Tensor] = []
    log_z: list[Tensor] = []
    while bool(open_rows.any()):
        out = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        chosen, total = choose(out.logits[:, -1].float(), alpha, subject.generator)
        tokens.append(torch.where(open_rows, chosen, -1))
        log_z.append(total)
        left = left - 1
        open_rows = open_rows & (chosen != eos) & (left > 0)
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    drawn, sums = torch.stack(tokens, 1).tolist(), torch.stack(log_z, 1).tolist()
    counts = [sum(token >= 0 for token in row) for row in drawn]
    return [Answer(row[:n], total[:n]) for row, total, n in zip(drawn, sums, counts, strict=True)]


def choose(logits: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token for each row of logits [B, V], and log Z [B] of the proposal (0 for greedy)."""
    if math.isinf(alpha):
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    tempered = alpha * logits.log_softmax(-1)
    chosen = torch.multinomial(tempered.softmax(-1), 1, generator=generator)[:, 0]
    return chosen, tempered.logsumexp(-1)


def power(subject: Subject, prompts: Sequence[list[int]], alpha: float, num_moves: int) -> tuple[list[Answer], float]:
    """Metropolis-Hastings for p^alpha over whole answers from a low-temperature start, and the share of accepted moves.

    Cuts are uniform over the L tokens; log r = sum log Z' - sum log Z + log L - log L', sums from the cut on.
    """
    states = draw(subject, prompts, [MAX_NEW_TOKENS] * len(prompts), alpha)
    accepted = 0
    for _ in range(num_moves):
        uniforms = torch.rand(2, len(states), generator=subject.generator, device=subject.model.device).tolist()
        cuts = [int(u * len(state.tokens)) for u, state in zip(uniforms[0], states, strict=True)]
        prefixes = [prompt + state.tokens[:cut] for prompt, state, cut in zip(prompts, states, cuts, strict=True)]
        drawn = draw(subject, prefixes, [MAX_NEW_TOKENS - cut for cut in cuts], alpha)
        for place, (state, suffix, cut) in enumerate(zip(states, drawn, cuts, strict=True)):
            proposal = Answer(state.tokens[:cut] + suffix.tokens, state.log_z[:cut] + suffix.log_z)
            log_r = sum(suffix.log_z) - sum(state.log_z[cut:])
            log_r += math.log(len(state.tokens)) - math.log(len(proposal.tokens))
            if math.log(max(1 - uniforms[1][place], 1e-300)) < log_r:
                states[place] = proposal
                accepted += 1
    return states, accepted / (num_moves * len(states))


def score(subject: Subject, rows: Sequence[Row], answers: Sequence[Answer]) -> Score:
    """Score answers by strict grading: right if the number after the first `####` is the problem's."""
    correct = []
    for row, answer in zip(rows, answers, strict=True):
        found = GOLD.search(subject.tokenizer.decode(answer.tokens, skip_special_tokens=True))
        gold = GOLD.search(row.answer)
        assert gold is not None
        correct.append(found is not None and found[1] == gold[1])
    n, mean = len(correct), sum(correct) / len(correct)
    ended = sum(answer.tokens[-1] == subject.tokenizer.eos_token_id for answer in answers) / n
    return Score(mean, math.sqrt(mean * (1 - mean) / (n - 1)), ended, sum(len(a.tokens) for a in answers) / n)


def measured(subject: Subject, rows: Sequence[Row], num_moves: int | None = None) -> tuple[str, float]:
    """A Markdown table of the methods' scores, with `num_moves` also of power sampling, and its share of accepted
    moves."""
    prompts, answers, accepted = subject.prompts(rows), dict[str, list[Answer]](), 0.0
    for name, alpha in (("greedy", math.inf), ("T = 1", 1.0), ("T = 0.25", 4.0)):
        answers[name] = draw(subject, prompts, [MAX_NEW_TOKENS] * len(rows), alpha)
    if num_moves is not None:
        answers[f"p^4, {num_moves} moves"], accepted = power(subject, prompts, 4.0, num_moves)
    lines = ["| method | accuracy | standard error | ended by themselves | mean tokens |", "|---|---|---|---|---|"]
    for name, found in answers.items():
        s = score(subject, rows, found)
        lines.append(f"| {name} | {s.accuracy:.3f} | {s.stderr:.3f} | {s.ended:.1%} | {s.mean_tokens:.0f} |")
    return "\n".join(lines), accepted
