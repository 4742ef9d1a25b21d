"""The command line: what is asked reaches the session, mistakes are one sentence and code 2, never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from evals.samplers.power import Power
from evals.types import WorkersLost
from orchestrator.cli import main
from orchestrator.commands.table import COMMANDS, RUN_EXAMPLES, make_parser
from orchestrator.machine import gpus
from orchestrator.machine.gpus import Gpu
from orchestrator.settings.config import RunConfig
from support.places import ROOT

EXAMPLE = "  powersample "  # how a line of an example begins


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("POWERSAMPLE_", "RAY_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that reach a session, which ends with code 3."""
    configs: list[RunConfig] = []
    monkeypatch.setattr("orchestrator.driver.session.run", lambda config: configs.append(config) or 3)
    return configs


def test_run_hands_over_a_resolved_configuration_and_the_exit_code(
    session: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERSAMPLE_SAMPLER__NUM_MOVES", "2")
    assert main(["run", "--config", str(ROOT / "configs/gsm8k_power.yaml"), "--sampler.alpha", "2"]) == 3
    (config,) = session
    assert (config.mode, config.num_gpus, config.engine.dtype) == ("run", 0, "float32")
    assert config.sampler == Power(2.0, 2)


def test_nothing_given_is_the_demo_without_gpus_and_gsm8k_with_them(
    session: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run"]) == 3
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(i, f"GPU-{i}", "H100", 1) for i in range(2)])
    monkeypatch.setattr(gpus, "check_torch_sees_gpus", lambda present: None)
    assert main(["run"]) == 3
    assert main(["run", "--num-gpus", "0"]) == 3
    assert [(config.mode, config.num_gpus) for config in session] == [("demo", 0), ("run", 2), ("demo", 0)]


def test_with_gpus_the_shipped_file_decides(
    session: list[RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "GPU-0", "H100", 1)])
    monkeypatch.setattr(gpus, "check_torch_sees_gpus", lambda present: None)
    (tmp_path / "edited.yaml").write_text("sampler:\n  num_moves: 77\n")
    monkeypatch.setattr("orchestrator.commands.run.GPU_DEFAULT", tmp_path / "edited.yaml")
    assert main(["run"]) == 3
    (tmp_path / "other.yaml").write_text("sampler:\n  num_moves: 5\n")
    assert main(["run", "--config", str(tmp_path / "other.yaml")]) == 3
    assert [config.sampler for config in session] == [Power(num_moves=77), Power(num_moves=5)]


def test_with_gpus_a_preset_brings_its_own_data(session: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "GPU-0", "H100", 1)])
    monkeypatch.setattr(gpus, "check_torch_sees_gpus", lambda present: None)
    assert main(["run", "--task.preset", "math500"]) == 3
    monkeypatch.setenv("POWERSAMPLE_TASK__PRESET", "math500")
    assert main(["run", "--task.max-new-tokens", "9"]) == 3
    for config in session:
        assert (config.data, config.task.name, config.task.question_key) == (
            "HuggingFaceH4/MATH-500",
            "math",
            "problem",
        )


def test_a_cluster_counts_its_own_gpus(session: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert main(["run", "--num-gpus", "16"]) == 3
    assert session[0].num_gpus == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--batch-size", "ten"], ["--batch-size=ten"]),
        (["run", "--batch-size", "0"], ["--batch-size=0"]),
        (["run", "--nope"], ["--nope"]),
        (["run", "stray"], ["stray"]),
        (["run", "--num-gpus", "1"], ["asks for 1 GPU but this machine has none", "leave it out to run on CPUs"]),
        (["run", "--mode", "demo", "--model", "x"], ["model is 'x'"]),
        (["run", "--config", "none.yaml"], ["none.yaml"]),
        (["rn"], ["rn", "did you mean run?"]),
        (["report"], ["report: the following arguments are required: RUN"]),
        (["report", "--all"], ["--all"]),
        (["report", "/no/such/run"], ["/no/such/run"]),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(
    arguments: list[str], words: list[str], session: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("powersample: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert session == []


def test_lost_workers_are_one_sentence_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(config: RunConfig) -> int:
        raise WorkersLost("no node is left")

    monkeypatch.setattr("orchestrator.driver.session.run", lose)
    assert main(["run"]) == 1
    told = capsys.readouterr().err
    assert told == "powersample: no node is left; the answers so far are kept, start again to go on.\n"


@pytest.mark.parametrize("command", ["run", "sweep --knob sampler.alpha=1,2", "generate --output_file o.jsonl"])
def test_an_unknown_variable_is_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POWERSAMPLE_BATCHSIZE", "3")
    assert main(command.split()) == 2
    assert "POWERSAMPLE_BATCHSIZE=3 (did you mean POWERSAMPLE_BATCH_SIZE?)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["report", "--help"]) == main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert "\n  report    make summary" in out
    assert "powersample report RUN" in out
    assert "--sampler.num-moves" in out
    assert main(["--version"]) == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"powersample {project['version']}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_may_stand_anywhere_and_tells_all_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ""
    for words in (["-h"], ["runs/absent", "--help"], ["--absent", "-h"]):
        assert main([command, *words]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: powersample {command} ")
    assert all(name in shown for name in make_parser(command, settings=False).options)


def test_what_a_command_does_exists() -> None:
    for name in COMMANDS:
        assert callable(getattr(import_module(f"orchestrator.commands.{name}"), name))


def test_every_example_of_the_help_is_accepted(session: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(i, f"GPU-{i}", "H100", 1) for i in range(2)])
    monkeypatch.setattr(gpus, "check_torch_sees_gpus", lambda present: None)
    runs = [shlex.split(line)[1:] for line in RUN_EXAMPLES.splitlines() if line.startswith(EXAMPLE)]
    assert len(runs) == 5
    assert [main(arguments) for arguments in runs] == [3] * len(runs)
    assert len(session) == len(runs)


def test_an_interrupt_before_the_run_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[Gpu]:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpus, "visible_gpus", interrupted)
    assert main(["run"]) == 130


def command(arguments: list[str], folder: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    """`powersample` as a process in `folder`."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | options.pop("env", {}),
        text=True,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
        **{"stdout": subprocess.PIPE, **options},
    )


def test_the_module_works_like_the_command() -> None:
    done = command(["run", "--limit", "none"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("powersample: --limit=none is refused")
    assert command(["--version"]).stdout.startswith("powersample ")


def test_another_package_called_evals_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/__init__.py").write_text("")
    done = command(["--version"], tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 2
    assert str(tmp_path / "evals") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MODEL": "/no/such/model", "DATA": "{data}"}, ["/no/such/model", "POWERSAMPLE_MODEL"]),
        ({"MODEL": "{unsupported}", "DATA": "{data}"}, ["Bert"]),
        ({"MODEL": "{cut}", "DATA": "{data}"}, ["cut/model.safetensors", "damaged or cut off"]),
        ({"MODEL": "{unsupported}", "DATA": "{malformed}"}, ["malformed.jsonl, line 2"]),
        ({"MODEL": "{unsupported}", "DATA": "{words}"}, ["words.jsonl, line 2", "'two', not a number"]),
        ({"MODEL": "{unsupported}", "DATA": "{empty}"}, ["empty.jsonl", "POWERSAMPLE_DATA"]),
        ({"MODEL": "demo", "DATA": "{data}", "RUN_DIR": "{data}/run"}, ["cannot be written", "POWERSAMPLE_RUN_DIR"]),
        (
            {"MODEL": "demo", "DATA": "{data}", "TASK__NUM_SHOTS": "2", "TASK__TRAIN_DATA": "none.jsonl"},
            ["none.jsonl cannot be read", "(--task.train-data or POWERSAMPLE_TASK__TRAIN_DATA)"],
        ),
        ({"MODEL": "demo", "DATA": "{data}", "TASK__MAX_NEW_TOKENS": "900000"}, ["context", "max_new_tokens"]),
    ],
)
def test_bad_inputs_end_before_anything_is_written(
    variables: dict[str, str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = '{"question": "How many?", "answer": "#### 2"}\n'
    texts = {"data": row, "malformed": row + "{\n", "words": row + row.replace("2", "two"), "empty": ""}
    places = {name: tmp_path / f"{name}.jsonl" for name in texts}
    for name, text in texts.items():
        places[name].write_text(text)
    kinds = {"unsupported": ("bert", "BertForMaskedLM"), "cut": ("llama", "LlamaForCausalLM")}
    for name, (kind, architecture) in kinds.items():
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
    (tmp_path / "cut/model.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    before = sorted(tmp_path.rglob("*"))
    for name, value in {"RUN_DIR": str(tmp_path / "run"), **variables}.items():
        monkeypatch.setenv(f"POWERSAMPLE_{name}", value.format(**places))
    assert main(["run"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("powersample: ")
    assert all(word in err for word in words), err
    assert sorted(tmp_path.rglob("*")) == before


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "demo", "--data", "demo", "--num-gpus", "0", "--run-dir", LONG],
        ["run", "--model", LONG, "--data", "demo", "--num-gpus", "0"],
        ["run", "--model", "demo", "--data", f"{20 * LONG}.jsonl", "--num-gpus", "0"],
        ["run", "--model", "demo", "--data", "demo", "--num-gpus", "0", "--run-dir", "loop"],
        ["report", LONG],
        ["report", "loop"],
        ["plan", "--model", LONG],
    ],
)
def test_paths_that_no_file_system_has_are_one_sentence(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("powersample: ")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@UNBUFFERED
def test_a_reader_who_leaves_ends_it_without_a_word(unbuffered: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = command(["--help"], tmp_path, stdout=writing, env={"PYTHONUNBUFFERED": unbuffered})
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@UNBUFFERED
def test_an_output_that_is_full_is_one_sentence(unbuffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = command(["--help"], tmp_path, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 2
    assert done.stderr == "powersample: standard output cannot be used: No space left on device\n"


@UNBUFFERED
def test_a_closed_output_and_a_full_error_stream_change_no_exit_code(unbuffered: str, tmp_path: Path) -> None:
    here = f"cd {tmp_path}; export PYTHONUNBUFFERED={unbuffered}; PYTHONPATH={ROOT} {sys.executable} -m orchestrator"
    for line, code in ((f"{here} --help >&-", 0), (f"{here} report nowhere 2>/dev/full", 2)):
        assert subprocess.run(["bash", "-c", line], capture_output=True, check=False).returncode == code, line


def test_a_directory_in_the_place_of_a_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    assert main(["score", str(tmp_path / "rows.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_terminal_without_our_letters_shows_others(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "ü", "text": "#### 1", "gold": "1"}', encoding="utf-8")
    done = command(["score", "rows.jsonl"], tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"id": "?", "strict": true')
