"""How a program asks for answers: one sampler with its settings, how many, how long, and what ends them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from evals.types import UserError
from orchestrator.settings.merge import Given, greedy_for_zero, validated
from orchestrator.settings.parser import suggestion
from orchestrator.settings.schema import members


class Sampling:
    """Exact power sampling with alpha 4 and 10 moves, or any other sampler of `powersample run`, by its settings.

    `Sampling(alpha=2, num_moves=40)`, `Sampling(kind="best_of", num_candidates=8)`, `Sampling(temperature=0.7)`;
    temperature 0 is greedy. `docs/library.md` lists the kinds.
    """

    def __init__(
        self,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        **sampler: Any,
    ) -> None:
        """`n` answers per prompt of at most `max_tokens` (None: 512, or what the prompt leaves of the model's longest
        sequence if that is less), ended by the strings `stop` as well. `seed` takes the place of the model's; with
        `logprobs` answers say log p of each token. Raises UserError for a setting that is unknown or out of range.
        """
        stops = [stop] if isinstance(stop, str) else [*stop] if isinstance(stop, Iterable) else stop
        own = {"n": n, "max_tokens": max_tokens, "stop": stops, "seed": seed}
        names = dict(zip(own, ("num_samples", "task.max_new_tokens", "task.stop", "seed"), strict=True))
        names |= {name: f"sampler.{name}" for name in members("sampler") if name != "texts"}
        if sampler.get("kind") == "replay":
            raise UserError("Sampling does not replay texts; choose another kind.")
        if "temperature" in sampler and "alpha" not in sampler:
            sampler = {"kind": "temperature", **sampler}
        given = {name: value for name, value in own.items() if value is not None} | sampler
        config = validated(greedy_for_zero(spelt("Sampling", given, names)))
        self.sampler, self.n, self.logprobs = config.sampler, config.num_samples, bool(logprobs)
        self.seed = None if seed is None else config.seed
        self.stop = config.task.stop if stops else ()
        self.max_tokens = None if max_tokens is None else config.task.max_new_tokens
        self._given = {"n": n, "stop": self.stop, "logprobs": self.logprobs} | given

    def __repr__(self) -> str:
        return f"Sampling({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"


def spelt(owner: str, given: dict[str, Any], names: dict[str, str]) -> dict[str, Given]:
    """Setting -> its value as given under the spelling in `names`. Raises UserError for one that `owner` lacks."""
    for name in given:
        if name not in names:
            near = suggestion(name, names)
            raise UserError(f"{owner} has no setting {name}{near}; it has {', '.join(sorted(names))}.")
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    return {names[name]: Given(name, value) for name, value in values.items()}
