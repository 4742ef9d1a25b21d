"""Finds a run's model and data and checks them before anything starts.

Every problem must fit the model, its weights must be whole, and the run directory writable. Of the weights only the
headers are read, never a tensor. Every refusal is a UserError; nothing is created.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.config import EngineConfig
from evals.evaluate import prompt_ids
from evals.grading.symbolic import check_installed
from evals.record import RecordKey
from evals.samplers.single import Replay
from evals.tasks.task import Task, make_task
from evals.types import Answer, Problem, UserError
from orchestrator.console import say
from orchestrator.inputs.models import ModelSource, resolve_model
from orchestrator.inputs.problems import DIGITS, DataSource, load_problems, load_train, names_file
from orchestrator.inputs.prompts import ids_digest, prompts_digest
from orchestrator.inputs.replay_texts import load_texts, text_digests, texts_digest
from orchestrator.inputs.weight_files import check_weights, stored_tensors
from orchestrator.rundir.directory import check_writable
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.settings.config import Provenance, RunConfig, fingerprints, run_directory, runs_of
from orchestrator.settings.parser import check_text

if TYPE_CHECKING:
    from pydantic import JsonValue

    from evals.engine.tokenizer import Tokenizer


class Inputs(NamedTuple):
    """A run's configuration, model and data, found and checked."""

    config: RunConfig
    model: ModelSource
    data: DataSource
    train: DataSource | None
    """Where solved examples come from; None without examples."""
    max_length: int
    """Longest prompt plus answer, in tokens."""
    prompts_digest: str
    prompt_ids: str
    """The `ids_digest` of every problem, one behind the other."""
    time: datetime
    """What chat templates take for now."""
    asked_raw: bool = False
    """Whether the model has a chat template that its prompts do without."""
    texts: dict[RecordKey, Answer] | None = None
    """The texts that the sampler replays; None if it samples."""

    @property
    def train_problems(self) -> tuple[Problem, ...]:
        return tuple(self.train.problems) if self.train else ()

    @property
    def provenance(self) -> Provenance:
        """The digests that enter the fingerprint."""
        return provenance_of(self.model, self.data, self.train, self.texts)

    def describe(self) -> dict[str, JsonValue]:
        """The inputs as the provenance in run.json describes them."""
        model, data, texts = self.model, self.data, self.provenance.texts
        return {
            "model": model.describe(),
            **({"adapter": model.adapter.describe()} if model.adapter else {}),
            "data": {"name": data.name, "sha256": data.digest, "rows": data.num_rows},
            "prompts_sha256": self.prompts_digest,
            "prompts_time": self.time.isoformat(),
            **({"texts_sha256": texts} if texts else {}),
        }


def provenance_of(
    model: ModelSource, data: DataSource, train: DataSource | None, texts: Mapping[RecordKey, Answer] | None
) -> Provenance:
    """The digests that enter the fingerprint."""
    return Provenance(
        model.digest,
        data.digest,
        None if train is None else train.digest,
        None if texts is None else texts_digest(texts),
        model.adapter and model.adapter.digest,
        data.rows_digest[:DIGITS],
        None if texts is None else text_digests(texts)[0][:DIGITS],
    )


def resolve_inputs(config: RunConfig, now: datetime, model: ModelSource | None = None) -> Inputs:
    """Find the model, unless it is given, and the data, and check that they fit. Raises UserError.

    `now`, with its zone, is the time of the prompts, unless the run began before and its run.json keeps one.
    """
    check_tracker(config.track)
    named = [name for name in (config.data, config.task.train_data) if name]
    for what, setting, misplaced in (
        ("configuration", "task.data_config", config.task.data_config and all(map(names_file, named))),
        ("split", "data_split", config.data_split != "test" and names_file(named[0])),
    ):
        if misplaced:
            raise UserError(
                f"A {what} is of a data set on the hub or in a folder, and {named[0]} is a file; leave it out.",
                (setting,),
            )
    if config.task.name != "open":
        check_installed()
    data = load_problems(config.data or "", config.data_split, config.limit, config.task)
    texts = load_texts(config.sampler.texts, data, config.num_samples) if isinstance(config.sampler, Replay) else None
    train = load_train(config.task)
    model = model or resolve_model(config.model or "", config.model_revision, config.engine)
    check_text(f"The model folder {model.folder}", model.folder)
    time = time_of_prompts(config, provenance_of(model, data, train, texts)) or now.replace(microsecond=0)
    task = make_task(config.task, config.seed, train.problems if train else (), time)
    checked = check_model(config, model.folder, task, data.problems, texts)
    if model.adapter is not None:
        check_adapter(model.folder, model.adapter.folder, config.engine)
        say(f"The adapter {model.adapter.name} is merged into {model.name}.")
    digest = prompts_digest(task, data.problems)
    return Inputs(
        config, model, data, train, checked.max_length, digest, checked.prompt_ids, time, checked.asked_raw, texts
    )


def time_of_prompts(config: RunConfig, provenance: Provenance) -> datetime | None:
    """The time that the runs of a configuration keep for their prompts; None if it is to be a new one, and where they
    were begun by a version that kept none. Raises UserError for a damaged run.json."""
    if config.fresh:
        return None
    begun = [Manifest.begun(run_directory(one, provenance), *fingerprints(one, provenance)) for one in runs_of(config)]
    return next((run.prompts_time for run in begun if run and run.prompts_time), None)


class CheckedModel(NamedTuple):
    """What a check of a model has found of a run's prompts, see `Inputs`."""

    max_length: int
    prompt_ids: str
    asked_raw: bool


def check_model(
    config: RunConfig,
    folder: str,
    task: Task,
    problems: Sequence[Problem],
    texts: Mapping[RecordKey, Answer] | None = None,
) -> CheckedModel:
    """Check a resolved configuration against the model in `folder`.

    Where `texts` are replayed the model reads no prompt, and its context limits nothing.
    """
    for run in runs_of(config):
        check_writable(run.run_dir or Path("runs"))
    context_length, vocabulary, tokenizer = open_model(folder, config.engine)
    if not isinstance(chat := task.asked(problems[0]), str):
        tokenizer.check_chat(chat)
    prompts = measure_prompts(task, problems, tokenizer.encode)
    digests = "".join(size.digest for size in prompts.values())
    if texts is not None:
        check_lengths(task, prompts, sys.maxsize)
        return CheckedModel(context_length, digests, asked_raw=False)
    check_ids(folder, prompts, tokenizer, vocabulary)
    asked_raw = tokenizer.has_chat_template and not task.config.chat
    return CheckedModel(check_lengths(task, prompts, context_length), digests, asked_raw)


def open_model(folder: str, engine: EngineConfig) -> tuple[int, int, Tokenizer]:
    """Context length, rows of the embedding and tokenizer of the model in `folder`, of which all files are checked."""
    from evals.engine.checkpoint import skeleton
    from evals.engine.model_support import check_architecture, read_config
    from evals.engine.tensors import check_tensors
    from evals.engine.tokenizer import load_tokenizer

    context_length = check_architecture(folder, engine.trust_remote_code)
    tensors = check_weights(Path(folder), engine.allow_pickle)
    check_tensors(folder, tensors, skeleton(folder, engine.trust_remote_code))
    vocabulary = read_config(folder, engine.trust_remote_code).vocab_size
    return context_length, vocabulary, load_tokenizer(folder, engine.trust_remote_code)


class PromptSize(NamedTuple):
    """What is kept of a prompt's ids: how many there are, the highest (-1 of none), and their digest."""

    num_tokens: int
    highest: int
    digest: str


def measure_prompts(
    task: Task, problems: Iterable[Problem], encode: Callable[[Any], Sequence[int]]
) -> dict[int, PromptSize]:
    """Problem -> the size of its prompt, by `encode` (text or chat -> ids)."""
    encoded = ((problem.problem_id, prompt_ids(task, problem, encode)) for problem in problems)
    return {problem_id: PromptSize(len(ids), max(ids, default=-1), ids_digest(ids)) for problem_id, ids in encoded}


def check_ids(folder: str, prompts: Mapping[int, PromptSize], tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raises UserError for a prompt with an id that the model has no embedding for, and where the model cannot draw any
    id that ends an answer. `vocabulary`: the rows of the embedding, padding included, as the configuration says; the
    library loads no weights of another shape."""
    way_out = "use the tokenizer that the model was trained with, or save the model after `resize_token_embeddings`"
    beyond = {problem_id: size.highest for problem_id, size in prompts.items() if size.highest >= vocabulary}
    if beyond:
        problem_id, worst = next(iter(beyond.items()))
        token = f"{tokenizer.decode([worst])!r} (id {worst})"
        raise UserError(
            f"The prompt of problem {problem_id} has the token {token} but the model in {folder} has embeddings for "
            f"ids below {vocabulary} only ({len(beyond)} of {len(prompts)} prompts); {way_out}.",
            ("model",),
        )
    if tokenizer.eos_ids and not any(0 <= one < vocabulary for one in tokenizer.eos_ids):
        ids = ", ".join(map(str, sorted(tokenizer.eos_ids)))
        raise UserError(
            f"The model in {folder} can draw none of its EOS ids ({ids}), as it has ids below {vocabulary} only; "
            f"{way_out}, or name another eos_token_id in its generation_config.json.",
            ("model",),
        )


def check_adapter(folder: str, adapter: str, engine: EngineConfig) -> None:
    """Raises UserError unless the adapter in a folder can be merged into the model in `folder`, tokenizer included."""
    from evals.engine.adapter import ADAPTER_WEIGHTS, check_fit, check_tokenizer
    from evals.engine.checkpoint import skeleton

    check_fit(adapter, stored_tensors(Path(adapter) / ADAPTER_WEIGHTS), skeleton(folder, engine.trust_remote_code))
    check_tokenizer(adapter, folder)


def check_lengths(task: Task, prompts: Mapping[int, PromptSize], context_length: int) -> int:
    """The longest prompt plus the longest answer, in tokens.

    Raises UserError for a prompt without tokens, or if that is beyond the model's context.
    """
    lengths = {problem_id: size.num_tokens for problem_id, size in prompts.items()}
    empty = min(lengths, key=lengths.__getitem__)
    if not lengths[empty]:
        raise UserError(f"The prompt of problem {empty} has no tokens; check the data and the tokenizer.")
    config, max_new_tokens = task.config, task.config.max_new_tokens
    problem_id = max(lengths, key=lengths.__getitem__)
    longest = lengths[problem_id]
    if longest + max_new_tokens <= context_length:
        return longest + max_new_tokens
    num = sum(length + max_new_tokens > context_length for length in lengths.values())
    room = context_length - longest
    lower = f"lower task.max_new_tokens to {room} or less, " if room > 0 else ""
    if config.max_prompt_tokens is not None and max_new_tokens < context_length:
        lower += f"lower task.max_prompt_tokens to {context_length - max_new_tokens} or less, "
    fewer = f"use fewer than {config.num_shots} examples (task.num_shots), " if config.num_shots else ""
    raise UserError(
        f"Problem {problem_id} does not fit the model: its prompt of {longest} tokens plus task.max_new_tokens "
        f"{max_new_tokens} is more than the context of {context_length} ({num} of {len(lengths)} problems are too "
        f"long); {lower}{fewer}leave the problem out of the data, or choose a model with a longer context."
    )


def check_tracker(module: str | None) -> None:
    """Raises UserError if the tracker is not installed."""
    if module is not None and find_spec(module) is None:
        raise UserError(f"The tracker {module} is not installed; pip install {module}, or leave it out.", ("track",))
