"""What is checked before anything starts: the model can be run, every problem fits it, results can be written.

Reads the model's configuration and tokenizer, never its weights. Every refusal is a UserError; nothing is created.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from evals.types import Problem, Task, UserError
from orchestrator.config import RunConfig, plan


def check(config: RunConfig, folder: str, problems: Sequence[Problem], train_problems: Sequence[Problem] = ()) -> int:
    """Check a resolved configuration against the model in `folder`; returns the longest prompt + answer in tokens."""
    from evals.engine.model import check_architecture, load_tokenizer
    from evals.tasks.gsm8k import make_task

    for run in plan(config):
        if run.run_dir is not None:
            check_writable(run.run_dir)
    if config.run_dir is None:
        check_writable(Path("runs"))
    limits = check_architecture(folder, config.engine.trust_remote_code)
    tokenizer = load_tokenizer(folder, config.engine.trust_remote_code)
    task = make_task(config.task, config.seed, train_problems)
    lengths = prompt_lengths(task, problems, tokenizer.encode)
    return check_lengths(lengths, config.task.max_new_tokens, limits.context_length)


def prompt_lengths(task: Task, problems: Iterable[Problem], encode: Callable[[str], Sequence[int]]) -> dict[int, int]:
    """problem_id -> tokens of its prompt. Raises UserError for a prompt without tokens."""
    lengths = {problem.problem_id: len(encode(task.prompt(problem))) for problem in problems}
    for problem_id, length in lengths.items():
        if length == 0:
            raise UserError(f"The prompt of problem {problem_id} has no tokens; check the data and the tokenizer.")
    return lengths


def check_lengths(lengths: dict[int, int], max_new_tokens: int, context_length: int) -> int:
    """The longest prompt plus `max_new_tokens`. Raises UserError if that is beyond the model's context."""
    problem_id = max(lengths, key=lambda key: lengths[key])
    longest = lengths[problem_id]
    if longest + max_new_tokens > context_length:
        num = sum(length + max_new_tokens > context_length for length in lengths.values())
        room = context_length - longest
        lower = f"lower task.max_new_tokens to {room} or less, " if room > 0 else ""
        raise UserError(
            f"Problem {problem_id} does not fit the model: its prompt of {longest} tokens plus task.max_new_tokens "
            f"{max_new_tokens} is more than the context of {context_length} ({num} of {len(lengths)} problems do not "
            f"fit); {lower}use fewer task.num_shots, or choose a model with a longer context."
        )
    return longest + max_new_tokens


def check_writable(directory: Path) -> None:
    """Raises UserError unless `directory`, or the nearest parent that exists, is a directory that can be written."""
    nearest = directory.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    reason = None
    if not nearest.is_dir():
        reason = f"{nearest} is not a directory"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"no permission to write in {nearest}"
    if reason is not None:
        raise UserError(
            f"The run directory {directory} cannot be written ({reason}); choose another by POWERSAMPLE_RUN_DIR or "
            "--run-dir."
        )
