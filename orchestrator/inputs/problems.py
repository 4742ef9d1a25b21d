"""Loads the problems of a data set by its name, with the digest that identifies them.

Data that cannot be had, and a row that is no problem, raises a UserError that names the setting or the line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from tempfile import TemporaryDirectory
from textwrap import shorten
from types import MappingProxyType
from typing import Any, NamedTuple

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.types import Problem, UserError
from orchestrator.inputs.batch import BatchRow, kind_of
from orchestrator.inputs.files import SUFFIXES, numbered, read_lines
from orchestrator.inputs.models import HUB_SECONDS, hub, is_local
from orchestrator.inputs.rows import InputRow, check_gold, read_row
from orchestrator.installation import DEMO_FOLDER
from orchestrator.settings.config import DEFAULT_DATA, DEMO
from orchestrator.settings.parser import local_path

DEMO_PROBLEMS = "problems.jsonl"  # in DEMO_FOLDER
GSM8K_REVISION = "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
GSM8K_SHA256 = "65ae5a5b62654eafdde08f5e2adbf6d2cec66052a60b196aa354d9ea8fe4b9bd"
"""`DataSource.digest` of its test split."""
PLATINUM = "madrylab/gsm8k-platinum"  # has a test split alone, from which its solved examples come, too
GSM8K_FORMAT = TaskConfig()
DIGITS = 8
"""Of the digest of a row, a text or a prompt: a run of 100,000 problems keeps 800 kB of each."""
WAY_OUT = "name a file of rows (JSONL, JSON, CSV, Parquet) or another data set"


class DataSource(NamedTuple):
    """The problems of a data set, in its order, and what identifies them."""

    problems: list[Problem]
    """Within the limit."""
    name: str
    digest: str
    """sha256 of all rows, the same for a file and the hub, whatever the limit."""
    num_rows: int
    """Rows of the whole data set."""
    refused: Mapping[int, str] = MappingProxyType({})
    """Row -> why it is no problem; empty where answers are graded, since a score is of all rows."""
    inputs: Mapping[int, InputRow] = MappingProxyType({})
    """Row -> all its fields, where nothing is graded: the output has them, too."""

    @property
    def num_problems(self) -> int:
        """Rows within the limit, refused ones included."""
        return len(self.problems) + len(self.refused)

    @property
    def rows_digest(self) -> str:
        """The `short_digest` of every row within the limit, one behind the other."""
        rows = {one.problem_id: identity(one) for one in self.problems} | {row: [row] for row in self.refused}
        return "".join(short_digest(json.dumps(rows[row], ensure_ascii=False).encode()) for row in sorted(rows))


def short_digest(content: bytes) -> str:
    """The first DIGITS hexadecimal digits of a sha256."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def load_problems(
    data: str,
    split: str = "test",
    limit: int | None = None,
    task: TaskConfig = GSM8K_FORMAT,
    setting: str = "data",
) -> DataSource:
    """The problems of `demo`, a file, or a data set on the hub or in a folder, in the format of `task`.

    A problem_id is the row. Raises UserError if the data cannot be had (naming `setting`, by which it was chosen), is
    empty, or has a row that is no problem (naming its place); where nothing is graded such a row is only put into
    `refused`.
    """
    if names_file(data):
        path = DEMO_FOLDER / DEMO_PROBLEMS if data == DEMO else local_path(data)
        if path.is_fifo():
            raise UserError(
                f"The data {path} is a pipe, and is read again for a report; save it as a file.", (setting,)
            )
        rows = read_lines(path, WAY_OUT, setting)
        empty = f"The data file {path} has no problems in it; {WAY_OUT}."
    else:
        read = folder_rows if is_local(data) else hub_rows
        rows = read(data, task.data_config, split, setting)
        empty = f"The data set {data} has no rows in split {split}; name another."
    problems, refused, inputs, rows = [], {}, {}, list(rows)
    kind = kind_of(rows, task)
    for number, (where, line) in enumerate(rows):
        try:
            row = read_row(line, where, kind)
            problem = check_gold(row.problem(number), FORMATS[task.name].golds, where, kind)
            if problem.turns and not task.chat:
                raise UserError(
                    f"{where}: turns stand before the question, and only a chat holds them; ask in one.", ("task.chat",)
                )
            problems.append(problem)
            if isinstance(row, InputRow):
                inputs[number] = row
        except UserError as error:
            if task.name != "open" or kind is BatchRow:
                raise
            refused[number] = str(error)
    if not problems and not refused:
        raise UserError(empty, (setting,))
    digest, num_rows = data_digest(problems, refused), len(problems) + len(refused)
    within = num_rows if limit is None else limit
    problems = [problem for problem in problems if problem.problem_id < within]
    if not problems:
        raise UserError(f"No row of {data} within the limit can be used; the first: {next(iter(refused.values()))}")
    refused = {row: reason for row, reason in refused.items() if row < within}
    return DataSource(problems, data, digest, num_rows, refused, inputs)


def names_file(data: str) -> bool:
    """Whether `data` means a file, that is neither a folder nor on the hub."""
    return data == DEMO or data.endswith(SUFFIXES) or (is_local(data) and not local_path(data).is_dir())


def data_digest(problems: Iterable[Problem], refused: Iterable[int] = ()) -> str:
    """Hex sha256 of the `identity` of problems, and of the numbers of refused rows."""
    content = json.dumps([*map(identity, problems), *([row] for row in refused)], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def identity(problem: Problem) -> list[Any]:
    """What tells a problem from another, whatever the shape of its file."""
    return [problem.question, problem.solution, *([problem.turns] if problem.turns else [])]


def load_train(task: TaskConfig) -> DataSource | None:
    """Where solved examples come from; None without them. Raises UserError as `load_problems` does."""
    if not task.num_shots or task.train_data is None:
        return None
    train = load_problems(task.train_data, "train", None, task, "task.train_data")
    if turns := next((one for one in train.problems if one.turns), None):
        raise UserError(
            f"Row {turns.problem_id} of {task.train_data} has turns before its question, and a solved example has a "
            "question and an answer alone; name other data, or set task.num_shots to 0.",
            ("task.train_data", "task.num_shots"),
        )
    return train


def hub_rows(name: str, configuration: str | None, split: str, setting: str) -> Iterator[tuple[str, bytes]]:
    """Rows of a data set from the hub as lines of JSON, each with its place.

    With HF_HUB_OFFLINE=1 they come from the cache on this machine only. The hub is asked first by one short call:
    `load_dataset` alone retries for half a minute when offline.
    """
    from huggingface_hub import HfApi, constants

    revision = GSM8K_REVISION if name == DEFAULT_DATA else None
    if name in (DEFAULT_DATA, PLATINUM):
        configuration = configuration or "main"
    if name == PLATINUM and setting == "task.train_data":
        split = "test"
    with hub(f"data set {name!r} (split {split}) is no file", WAY_OUT, setting):
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS)
        rows = load_dataset(name, configuration, split=split, revision=revision)
    return ((f"{name}, {place}", row) for place, row in numbered(rows))


def folder_rows(name: str, configuration: str | None, split: str, setting: str) -> Iterator[tuple[str, bytes]]:
    """Rows of a data set in a folder that is laid out as on the hub; what `datasets` makes of it is not kept."""
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    with TemporaryDirectory() as cache:
        try:
            rows = load_dataset(str(local_path(name)), configuration, split=split, cache_dir=cache)
        except (OSError, DatasetsError) as error:
            reason = shorten(f"{error}. {error.__cause__ or ''}", 200, placeholder=" …")
            raise UserError(
                f"The folder {name} is no data set as on the hub ({reason}); {WAY_OUT}.", (setting,)
            ) from error
        yield from ((f"{name}, {place}", row) for place, row in numbered(rows))


def load_dataset(name: str, configuration: str | None, **options: Any) -> Iterable[Any]:
    """What the library of that name loads. Raises UserError with its list of configurations or splits for another."""
    import datasets

    try:
        return datasets.load_dataset(name, configuration, **options)
    except ValueError as error:
        reason = shorten(str(error).partition("Example of usage")[0], 400, placeholder=" …")
        raise UserError(
            f"The data set {name} cannot be loaded ({reason}); choose the configuration and the split.",
            ("task.data_config", "data_split"),
        ) from error
