"""A problem as the token ids of its prompt. Knows no model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from evals.types import Problem, Task, UserError


def prompt_ids(task: Task, problem: Problem, encode: Callable[[Any], Sequence[int]]) -> Sequence[int]:
    """Ids of the problem's prompt, by `encode` (text or turns of a chat -> ids).

    A prompt beyond `task.max_prompt_tokens` gets the longest beginning of its question that a bisection finds to fit:
    what a template or a chat puts after the question stays. Raises UserError where none does.
    """

    def ids(characters: int) -> Sequence[int]:
        return encode(task.prompt(problem._replace(question=problem.question[:characters])))

    whole, most = ids(len(problem.question)), task.max_prompt_tokens
    if most is None or len(whole) <= most:
        return whole
    fitting = bisect_right(range(len(problem.question)), most, key=lambda characters: len(ids(characters))) - 1
    if fitting < 1:
        raise UserError(
            f"Nothing of problem {problem.problem_id}'s question fits a prompt of task.max_prompt_tokens={most}; raise "
            "it, or shorten what the template or the examples put around the question."
        )
    return ids(fitting)
