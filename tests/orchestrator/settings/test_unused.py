"""Settings that change nothing are told in one line, only those that the user made, and every setting is decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.driver import session
from orchestrator.machine import gpus
from orchestrator.machine.gpus import Gpu
from orchestrator.settings.schema import known_settings
from orchestrator.settings.unused import RULES
from support.command import in_process
from support.places import ROOT

EFFECTIVE = {
    "mode", "model", "limit", "num_samples", "num_gpus", "use_batched", "inline", "run_dir", "fresh", "track",
    "sampler.kind", "sampler.alpha", "sampler.num_effective_moves", "sampler.blocks", "sampler.temperature",
    "sampler.num_candidates", "sampler.smc_ramp", "sampler.smc_interval", "sampler.smc_threshold", "sampler.texts",
    "sampler.keep_states",
    "task.preset", "task.name", "task.num_shots", "task.max_new_tokens", "task.stop", "task.chat", "task.template",
    "task.thought_end", "task.question_key", "engine.dtype", "engine.adapter", "engine.prefill_tokens",
}  # fmt: skip
"""Change something wherever they are accepted."""
REFUSED = {"model_revision", "data_split", "task.data_config", "task.chat_template_args", "engine.gpus_per_model"}
"""Are refused where they would change nothing."""
BY_CONTENT = {"data", "task.max_prompt_tokens", "engine.trust_remote_code", "engine.allow_pickle"}
"""What they change depends on the model and the data."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One without GPUs, on which sessions end at once, in an empty directory."""
    monkeypatch.setattr(session, "run", lambda *_: 0)
    monkeypatch.setattr(gpus, "visible_gpus", list)
    monkeypatch.chdir(tmp_path)


def test_of_every_setting_it_is_decided() -> None:
    told = {name for rule in RULES for name in rule.names}
    assert told | EFFECTIVE | REFUSED | BY_CONTENT == known_settings().keys()
    assert len(told) + len(EFFECTIVE | REFUSED | BY_CONTENT) == len(known_settings())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", ""),
        ("--sampler.alpha 2 --limit 3 --num-workers 3 --batch-size 4 --engine.prefetch 2 --seed 1", ""),
        ("--inline --num-workers 3", "--num-workers (there is one per GPU, or one inline)"),
        ("--inline --num-workers 1 --no-dashboard", ""),
        (
            "--inline --dashboard --dashboard-host 0.0.0.0",
            "--dashboard (no Ray is started), --dashboard-host (no dashboard is started)",
        ),
        ("--no-dashboard --dashboard-host ::1", "--dashboard-host (no dashboard is started)"),
        ("--no-use-batched --batch-size 3", "--batch-size (use_batched is off)"),
        ("--name mine", "--name (the demo's runs have names of their own)"),
        ("--model demo --data demo --name mine", ""),
        ("--model demo --sampler.kind greedy --seed 3", "--seed (nothing is drawn)"),
        ("--model demo --sampler.kind greedy --seed 3 --task.num-shots 2", ""),
        ("--task.train-data t.jsonl", "--task.train-data (no solved example comes from it)"),
        ("--task.train-data t.jsonl --task.num-shots 2", ""),
        ("--sampler.num-effective-moves 3 --sampler.num-moves 10", "--sampler.num-moves (num_effective_moves counts)"),
        ("--sampler.entropy-power 1", "--sampler.entropy-power (cuts is uniform)"),
        ("--sampler.cuts entropy --sampler.entropy-power 1", ""),
        (
            "--sampler.num-moves 0 --sampler.replay --engine.prefetch 2",
            "--sampler.replay (there are no moves), --engine.prefetch (there are no moves)",
        ),
        (
            "--model demo --sampler.kind smc --engine.prefetch 2",
            "--engine.prefetch (the sampler makes no moves)",
        ),
        ("--model demo --sampler.kind paper --engine.prefetch 2", ""),
        ("--batch-size 1 --engine.prefetch 2", "--engine.prefetch (no slot stands idle)"),
        ("--engine.float32-logits", "--engine.float32-logits (all is in float32)"),
        ("--engine.float32-logits --engine.dtype bfloat16", ""),
        ("--engine.target-utilisation 0.5", "--engine.target-utilisation (no GPU is used)"),
        ("--engine.execution graphs", "--engine.execution (no GPU is used)"),
        ("--engine.execution eager", ""),
    ],
)
def test_what_changes_nothing_is_told_in_one_line(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("run", *options.split()) == 0
    said = capsys.readouterr().err
    assert said == (f"Without effect here: {told}.\n" if told else "")


def test_what_a_gpu_decides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "GPU-0", "H100", 1)])
    monkeypatch.setattr(gpus, "check_torch_sees_gpus", lambda present: None)
    used = ["--engine.target-utilisation", 0.5, "--engine.execution", "graphs", "--engine.float32-logits"]
    assert in_process("run", *used) == 0
    assert capsys.readouterr().err == ""
    assert in_process("run", *used, "--num-workers", 4) == 0
    assert capsys.readouterr().err == "Without effect here: --num-workers (there is one per GPU, or one inline).\n"


def test_variables_and_named_files_are_told_by_their_own_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "mine.yaml").write_text("engine: {target_utilisation: 0.5}\nmodel: demo\n")
    assert in_process("run", "--config", file, POWERSAMPLE_ENGINE__EXECUTION="compiled") == 0
    because = "(no GPU is used)"
    told = f"{file}: engine.target_utilisation {because}, POWERSAMPLE_ENGINE__EXECUTION {because}"
    assert capsys.readouterr().err == f"Without effect here: {told}.\n"
    assert in_process("run", "--dashboard-host", "127.0.0.1", RAY_ADDRESS="head:6379") == 0
    assert capsys.readouterr().err == "Without effect here: --dashboard-host (no dashboard is started).\n"
    assert in_process("run", "--config", ROOT / "configs/gsm8k_power.yaml") == 0
    assert capsys.readouterr().err == ""


def test_generate_tells_it_by_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows := tmp_path / "in.jsonl").write_text('{"input": "?"}\n')
    files = ["--model_path", "demo", "--input_file", rows, "--output_file", tmp_path / "out.jsonl"]
    assert in_process("generate", *files, "--temperature", 0, "--top_p", 0.9, "--task.answer-key", "a") == 0
    told = "--task.answer-key (nothing is graded), --top_p (the temperature is 0)"
    assert capsys.readouterr().err == f"Without effect here: {told}.\n"


@pytest.mark.parametrize("setting", ["--data-split", "--task.data-config"])
def test_a_split_or_a_configuration_of_a_file_is_refused(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "visible_gpus", list)
    assert in_process("run", "--inline", "--model", "demo", "--data", "demo", setting, "train") == 2
    assert f"is of a data set on the hub or in a folder, and demo is a file; leave it out ({setting}" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())
