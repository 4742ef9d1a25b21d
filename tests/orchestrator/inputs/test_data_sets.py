"""Data sets with configurations, on the hub and in folders that are laid out as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from evals.config import TaskConfig
from evals.types import UserError
from orchestrator.inputs.problems import load_problems
from support.command import DEMO, in_process
from support.configs import configured

ROWS = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()[:6]]
CONFIGS = {"main": ROWS[:3], "hard": ROWS[3:]}
SHORT = ["--model", "demo", "--inline", "--num-gpus", 0, "--sampler.kind", "greedy", "--task.max-new-tokens", 4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with two configurations, as a clone of it from the hub is."""
    root = tmp_path / "clone"
    card = ["---", "configs:"]
    for name, rows in CONFIGS.items():
        (root / name).mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / name / "test-00000-of-00001.parquet")
        card += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test-*"]
    (root / "README.md").write_text("\n".join([*card, "---", ""]))
    return root


def test_a_configuration_of_a_folder_is_run_and_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its rows are those of a file of them; nothing of it stays in a cache, and no bar of the library is shown."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    file, kept = tmp_path / "hard.jsonl", []
    file.write_text("".join(json.dumps(row) + "\n" for row in CONFIGS["hard"]))
    for number, data in enumerate((["--data", folder, "--task.data-config", "hard"], ["--data", file])):
        run = tmp_path / f"run{number}"
        assert in_process("run", *SHORT, *data, "--run-dir", run) == 0
        kept.append(json.loads((run / "run.json").read_text()))
    assert "Generating" not in capfd.readouterr().err
    assert not [*(tmp_path / "temporary").rglob("*.arrow")]
    assert kept[0]["provenance"]["data"]["sha256"] == kept[1]["provenance"]["data"]["sha256"]
    assert kept[0]["fingerprint"] == kept[1]["fingerprint"], "which rows, not where they were"
    assert [one["config"]["task"]["data_config"] for one in kept] == ["hard", None]
    (tmp_path / "run0/report.html").unlink()
    assert in_process("report", tmp_path / "run0") == 0
    asked = json.dumps(ROWS[3]["question"], ensure_ascii=False)[1:-1]
    assert asked in (tmp_path / "run0/report.html").read_text(), "a report finds the rows again"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "(Config name is missing. Please pick one among the available configs: ['main', 'hard']); choose "),
        (("--task.data-config", "easy"), "(BuilderConfig 'easy' not found. Available: ['main', 'hard']); choose "),
        (
            ("--task.data-config", "main", "--data-split", "dev"),
            "(Unknown split \"dev\". Should be one of ['test'].); ",
        ),
    ],
)
def test_what_a_data_set_has_not_is_answered_with_what_it_has(
    options: Any, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("run", *SHORT, "--data", folder, *options, "--run-dir", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert f"The data set {folder} cannot be loaded {words}" in err
    assert "choose the configuration and the split (--task.data-config or POWERSAMPLE_TASK__DATA_CONFIG, " in err
    assert (err.count("\n"), (tmp_path / "run").exists()) == (1, False)


def test_the_hub_is_answered_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']\nExample of usage:\n\t`load`")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"^The data set a/b cannot be loaded \(Config .* among: \['a', 'b'\]\); choose"
    ):
        load_problems("a/b")


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"The folder {tmp_path} is no data set as on the hub \(.*; name a file of rows"
    ):
        load_problems(str(tmp_path))
    (tmp_path / "train.jsonl").write_text('{"question": \n')
    with pytest.raises(UserError, match=r"is no data set as on the hub \(An error occurred while generating the data"):
        load_problems(str(tmp_path), "train")


def test_a_file_has_no_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "demo", "--task.data-config", "main", "--run-dir", tmp_path / "run"]
    assert in_process("run", *SHORT, *options) == 2
    assert (
        "A configuration is of a data set on the hub or in a folder, and demo is a file; leave it out (--task.data-c"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "run").exists()


def test_a_configuration_can_be_set_by_option_variable_and_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task:\n  data_config: hard\n")
    for config in (
        configured("--task.data-config", "hard"),
        configured(environ={"TASK__DATA_CONFIG": "hard"}),
        configured(file=tmp_path / "c.yaml"),
    ):
        assert config.task == TaskConfig(data_config="hard")
