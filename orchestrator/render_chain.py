"""The paragraphs of a run's report on its chains, as text. Says nothing of what was not reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.layout import figure, percent

Chain = Mapping[str, Any]
SHOWN_MOVES = (0, 1, 2, 5, 10, 20, 40, 100, 200, 400, 1000)


def chain_lines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence or more a line; lines about what no answer reports are empty."""
    chain = summary["chain"]
    return [moves(chain), savings(chain), log_p(chain), weights(chain), endings(chain), drift(chain)]


def moves(chain: Chain) -> str:
    if not chain["moves"]:
        return ""
    text = f"Chain: {chain['moves']:,} moves"
    if chain["null"] is not None:
        text += f", {percent(chain['null_rate'])} % of them null (they proposed the answer they started from)"
    if chain["acceptance"] is not None:
        text += f"; acceptance {percent(chain['acceptance'])} % of the others"
    if chain["forwards_per_move"] is not None:
        text += f"; {figure(chain['forwards_per_move'])} tokens generated per move"
    if chain["naive_per_move"] is not None:
        least = "at least " if chain["rejected_early"] else ""
        text += f", by the kernel without replay and early rejection {least}{figure(chain['naive_per_move'])}"
    if chain["forwards_to_naive"] is not None:
        text += f" ({'at most ' if chain['rejected_early'] else ''}{percent(chain['forwards_to_naive'])} % of that)"
    if chain["mean_cut"] is not None:
        text += f"; cut at {percent(chain['mean_cut'])} % of the answer on average"
    if chain["mean_divergence"] is not None:
        text += f", first difference at {percent(chain['mean_divergence'])} %"
    if chain["mean_distinct"] is not None:
        text += f"; {figure(chain['mean_distinct'])} distinct answers visited per chain"
    return text + "."


def savings(chain: Chain) -> str:
    """What replay and early rejection saved, and what prefetching threw away."""
    said = []
    if chain["replayed_tokens"] is not None:
        said.append(f"{chain['replayed_tokens']:,} tokens by replay")
    if chain["rejected_early"]:
        said.append(f"the ends of {chain['rejected_early']:,} drafts by early rejection")
    text = f"Saved: {', '.join(said)}." if said else ""
    if chain["discarded_tokens"]:
        text += f"{' ' if text else ''}Drawn ahead and thrown away: {chain['discarded_tokens']:,} tokens."
    return text


def log_p(chain: Chain) -> str:
    """Log p at the start, by move and at the end, its last rise and its autocorrelation."""
    if chain["mean_log_p"] is None:
        return ""
    if chain["mean_log_p_first"] is None:
        return f"Mean log p of the answers: {figure(chain['mean_log_p'])}."
    text = f"Mean log p: {figure(chain['mean_log_p_first'])} at the start, {figure(chain['mean_log_p'])} at the end"
    curve = chain["log_p_by_move"]
    shown = [f"{move}: {figure(value)}" for move, value in curve if move in SHOWN_MOVES or [move, value] == curve[-1]]
    if shown:
        text += f"; after move {', '.join(shown)}"
    if rise := chain["log_p_rise"]:
        error = f" ± {rise['stderr']:.2f}" if rise["stderr"] is not None else ""
        text += f"; change over the last {rise['moves']} moves {rise['mean']:+.2f}{error}"
    lags = [f"{value:.2f} (lag {lag})" for lag, value in chain["log_p_autocorrelation"].items() if value is not None]
    if lags:
        text += f"; autocorrelation {', '.join(lags)}, which so few moves bias downwards"
    if chain["log_z_sum_first_sd"] is not None:
        text += f"; sum of log Z of a problem's first answers varies by {figure(chain['log_z_sum_first_sd'])} (SD)"
    return text + "."


def weights(chain: Chain) -> str:
    """Effective sample size of candidates or particles."""
    many = [f"{figure(chain[f'mean_{what}'])} {what}" for what in ("candidates", "particles") if chain[f"mean_{what}"]]
    if not many:
        return ""
    text = f"Weights: {' and '.join(many)} per answer"
    if chain["ess"] is not None:
        share = f" ({percent(chain['ess_share'])} %)" if chain["ess_share"] is not None else ""
        text += f", effective sample size {figure(chain['ess'])}{share}"
    if chain["mean_resampled"] is not None:
        text += f", resampled {figure(chain['mean_resampled'])} times"
    if chain["mean_log_z_hat"] is not None:
        text += f"; estimated log of the sum of p^alpha {figure(chain['mean_log_z_hat'])}"
    if chain["vote_share"] is not None:
        text += f"; {percent(chain['vote_share'])} % of them gave the winning answer"
        text += f", {percent(chain['silent_share'])} % none"
    return text + "."


def endings(chain: Chain) -> str:
    names = {"eos": "EOS", "stop": "a stop string", "length": "the token limit"}
    said = [f"{percent(share)} % by {names[how]}" for how, share in chain["ended"].items() if share]
    return f"Ended: {', '.join(said)}." if said else ""


def drift(chain: Chain) -> str:
    """How far recomputed statistics of tokens were from the stored ones that decide a replay."""
    if chain["max_drift"] is None:
        return ""
    mean = "" if chain["mean_drift"] is None else f", {chain['mean_drift']:.2g} on average"
    return f"Drift of recomputed against stored log probabilities: at most {chain['max_drift']:.2g} nats{mean}."
