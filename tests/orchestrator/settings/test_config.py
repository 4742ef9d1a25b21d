"""What is decided for a machine, which runs a configuration has, and the fingerprint."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from evals.samplers.power import Power
from evals.samplers.registry import settings_of
from evals.samplers.single import AtTemperature, Greedy
from evals.types import Problem, UserError
from orchestrator.driver.open_runs import run_content
from orchestrator.inputs.models import ModelSource
from orchestrator.inputs.preflight import Inputs
from orchestrator.inputs.problems import DataSource
from orchestrator.machine.description import Environment
from orchestrator.settings.config import (
    Provenance,
    RunConfig,
    fingerprint,
    former_fingerprint,
    resolve,
    run_directory,
    runs_of,
)
from support.configs import configured
from support.demo_inputs import NOON
from support.places import ROOT

INPUTS = Provenance("m" * 64, "d" * 64, first_row="r" * 8)


def test_nothing_given_and_no_gpu_is_the_demo() -> None:
    config = resolve(RunConfig(), 0)
    assert (config.mode, config.model, config.data, config.num_gpus) == ("demo", "demo", "demo", 0)
    assert (config.task.max_new_tokens, config.task.num_shots, config.engine.dtype) == (160, 0, "float32")
    assert config.num_actors == 2
    assert resolve(config, 0) == config


def test_as_many_problems_at_once_as_fit() -> None:
    assert resolve(RunConfig(batch_size="auto"), 8).slots == 256
    assert resolve(RunConfig(batch_size="auto"), 0).slots == 10
    assert resolve(RunConfig(batch_size="auto", use_batched=False), 8).slots == 1


def test_nothing_given_and_gpus_is_gsm8k_on_all_of_them() -> None:
    config = resolve(RunConfig(), 8)
    assert (config.mode, config.model, config.data) == ("run", "Qwen/Qwen2.5-Math-1.5B", "openai/gsm8k")
    assert (config.num_actors, config.slots, config.engine.dtype) == (8, 10, "bfloat16")
    assert (config.task.max_new_tokens, config.sampler) == (512, Power(alpha=4, num_moves=10))
    assert resolve(RunConfig(), 8, bfloat16=False).engine.dtype == "float16"
    shipped = resolve(configured(file=ROOT / "configs/gsm8k_power.yaml"), 8)
    assert shipped.model_dump() == config.model_dump()


def test_a_preset_brings_its_data() -> None:
    given = configured("--model", "m", "--task.preset", "math500")
    assert resolve(given, 0).data == "HuggingFaceH4/MATH-500"
    alone = resolve(configured("--task.preset", "math500"), 0)
    assert (alone.mode, alone.data) == ("run", "HuggingFaceH4/MATH-500")
    platinum = resolve(configured("--task.preset", "lmeval-platinum", "--model", "m"), 0)
    assert platinum.data == platinum.task.train_data == "madrylab/gsm8k-platinum"
    assert resolve(given.model_copy(update={"data": "mine.jsonl"}), 0).data == "mine.jsonl"


@pytest.mark.parametrize("given", [{"model": "m"}, {"data": "d.jsonl"}])
def test_a_model_or_data_without_gpus_runs_on_the_cpu(given: dict[str, Any]) -> None:
    config = resolve(RunConfig(**given), 0)
    assert config.mode == "run"
    assert config.model == given.get("model", "Qwen/Qwen2.5-Math-1.5B")
    assert config.data == given.get("data", "openai/gsm8k")
    assert (config.use_gpus, config.num_actors) == (False, 2)
    assert resolve(RunConfig(**given, inline=True), 0).num_actors == 1


def test_gpus_are_counted() -> None:
    assert resolve(RunConfig(num_gpus=2), 8).num_actors == 2
    assert resolve(RunConfig(num_gpus=0), 8).mode == "demo"
    assert resolve(RunConfig(inline=True), 8).num_gpus == 1
    with pytest.raises(UserError, match=r"inline runs one worker .*\(inline, num_gpus\)"):
        resolve(RunConfig(inline=True, num_gpus=2), 8)
    with pytest.raises(UserError, match=r"num_gpus asks for 9 GPUs but this machine has 8; .* at most 8"):
        resolve(RunConfig(num_gpus=9), 8)
    with pytest.raises(UserError, match=r"asks for 2 GPUs but this machine has none .*; leave it out to run on CPUs"):
        resolve(RunConfig(num_gpus=2), 0)


def test_the_demo_refuses_what_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"model is 'x'"):
        resolve(RunConfig(mode="demo", model="x"), 0)
    with pytest.raises(UserError, match=r"task.preset math500 is of HuggingFaceH4/MATH-500"):
        resolve(configured("--mode", "demo", "--task.preset", "math500"), 0)
    with pytest.raises(UserError, match=r"cannot take sampler\.kind"):
        resolve(configured("--sampler.kind", "greedy"), 0)
    with pytest.raises(UserError, match=r"cannot take sampler\.kind; leave it out, or run one"):
        resolve(configured("--sampler.kind", "smc", "--sampler.smc-ramp", "8"), 0)
    with pytest.raises(UserError, match=r"temperature=1 is refused: kind power does not read temperature"):
        configured("--sampler.temperature", "1")
    assert resolve(configured("--sampler.kind", "power", "--sampler.blocks", "2"), 0).mode == "demo"
    one = resolve(configured("--model", "demo", "--data", "demo", "--sampler.kind", "greedy"), 0)
    assert (one.mode, one.task.max_new_tokens) == ("run", 160)


def test_the_demo_is_four_runs_that_differ_in_the_sampler() -> None:
    usual = runs_of(resolve(RunConfig(), 0))
    assert [run.run_dir for run in usual] == [Path("runs/demo") / name for name in ("greedy", "t1", "low", "power")]
    runs = runs_of(resolve(RunConfig(limit=5, sampler=Power(alpha=2, num_moves=3)), 0))
    samplers = [Greedy(), AtTemperature(1.0), AtTemperature(0.5), Power(alpha=2, num_moves=3)]
    assert [run.sampler for run in runs] == samplers
    assert {(run.mode, run.limit, run.model) for run in runs} == {("run", 5, "demo")}
    elsewhere = runs_of(resolve(RunConfig(run_dir=Path("there")), 0))
    assert elsewhere[0].run_dir == Path("there/greedy")
    one = resolve(RunConfig(model="m"), 0)
    assert runs_of(one) == [one]


def demo_root(**settings: Any) -> Path:
    (root,) = {(run.run_dir or Path()).parent for run in runs_of(resolve(RunConfig(**settings), 0))}
    return root


def test_a_demo_with_other_answers_has_a_directory_of_its_own() -> None:
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"sampler": {"alpha": 2}}, {"task": {"max_new_tokens": 100}}, {"sampler": {"alpha": 2}, "seed": 1},
        {"task": {"num_shots": 1}}, {"engine": {"dtype": "bfloat16"}},
        {"task": {"num_shots": 1, "train_data": "t.jsonl"}},
    ]  # fmt: skip
    roots = [demo_root(**settings) for settings in others]
    assert len({*roots, Path("runs/demo")}) == len(others) + 1
    assert all(re.fullmatch(r"runs/demo-[0-9a-f]{8}", str(root)) for root in roots)
    assert demo_root(limit=20, run_dir=Path("x")) == Path("x")
    for same in ({"batch_size": 3}, {"num_workers": 4}, {"sampler": {"alpha": 4}}, {"inline": True}):
        assert demo_root(**same) == Path("runs/demo")


def test_several_gpus_may_share_a_model() -> None:
    shared: Any = {"model": "m", "engine": {"gpus_per_model": 2}}
    for given, present, gpus, actors in [(None, 4, 4, 2), (None, 5, 4, 2), (2, 5, 2, 1)]:
        config = resolve(RunConfig(**shared, num_gpus=given), present)
        assert (config.num_gpus, config.num_actors) == (gpus, actors)
        assert resolve(config, present) == config
    inline = resolve(RunConfig(**shared, inline=True), 4)
    assert (inline.num_gpus, inline.num_actors) == (2, 1)
    for given, present in [(None, 1), (3, 4), (1, 4), (0, 4), (None, 0)]:
        with pytest.raises(UserError, match=r"engine\.gpus_per_model gives every worker 2 GPUs, and there are \d to"):
            resolve(RunConfig(**shared, num_gpus=given), present)


def test_the_directory_has_the_names_of_file_and_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "my run.yaml").write_text("model: m\n")
    ours, usual = resolve(configured(file=file), 0), resolve(RunConfig(model="m"), 0)
    assert run_directory(ours, INPUTS) == Path(f"runs/my-run-{fingerprint(ours, INPUTS)[:8]}")
    assert run_directory(usual, INPUTS) == Path(f"runs/gsm8k_power-{fingerprint(usual, INPUTS)[:8]}")
    assert run_directory(RunConfig(run_dir=Path("x")), INPUTS) == Path("x")
    older = Path(f"runs/gsm8k_power-{former_fingerprint(usual, INPUTS)[:8]}")
    older.mkdir(parents=True)
    assert run_directory(usual, INPUTS) == older
    Path(f"runs/gsm8k_power-{fingerprint(usual, INPUTS)[:8]}").mkdir()
    assert run_directory(usual, INPUTS) != older


def digest(inputs: Provenance = INPUTS, **changes: Any) -> str:
    return fingerprint(resolve(RunConfig(**{"model": "m", "data": "d", **changes}), 4), inputs)


def test_the_fingerprint_is_stable() -> None:
    assert digest() == "66e126b990e8949710382a40762f3121452839e88e952925eb44a37e9467b583"
    former = former_fingerprint(resolve(RunConfig(model="m", data="d"), 4), INPUTS)
    assert former == "6c8390ed5138a45868668750982525a45e2d46b5ab8a92d8428731db338d4b7d"


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 3}, {"use_batched": False}, {"num_gpus": 2}, {"num_workers": 4}, {"run_dir": Path("x")},
     {"name": "x"}, {"model": "other/name"}, {"data": "other.jsonl"}, {"dashboard": False}, {"fresh": True},
     {"inline": True}, {"task": {"train_data": "somewhere"}}, {"engine": {"dtype": "bfloat16"}},
     {"task": {"data_config": "hard"}}, {"engine": {"gpus_per_model": 2}}, {"limit": 3}, {"num_samples": 2},
     {"inputs": INPUTS._replace(data="x")}],
)  # fmt: skip
def test_what_may_change_from_one_start_to_the_next(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [{"inputs": INPUTS._replace(model="x")}, {"inputs": INPUTS._replace(first_row="x")},
     {"inputs": INPUTS._replace(train_data="x")}, {"inputs": INPUTS._replace(first_text="x")}, {"seed": 1},
     {"num_gpus": 0},
     {"engine": {"dtype": "float32"}}, {"engine": {"float32_logits": True}}, {"task": {"max_new_tokens": 100}},
     {"task": {"num_shots": 4}}, {"task": {"stop": ["x"]}}, {"sampler": {"alpha": 2.0}}, {"sampler": {"num_moves": 2}},
     {"sampler": {"replay": False}}, {"sampler": {"kind": "greedy"}}],
)  # fmt: skip
def test_what_makes_another_run(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_run_json_says_what_the_report_reads() -> None:
    config = resolve(RunConfig(model="m", data="d", run_dir=Path("x"), fresh=True), 0)
    data = DataSource([Problem(i, "q", "#### 4") for i in range(5)], "d", "2", 9)
    inputs = Inputs(config, ModelSource("m", "m", None, "1"), data, None, 100, "3", "4", NOON)
    run = json.loads(json.dumps(run_content(config, inputs, Environment({}, "c", None, "3", "run", {}))))
    assert run["num_problems"] == 5
    assert run["fingerprint"] == fingerprint(config, inputs.provenance)
    assert len(run["rows_sha256"]) == 5 * 8
    (extent,) = run["extents"]
    assert {**extent, "time": None} == {
        "limit": None, "num_samples": 1, "num_problems": 5, "rows": 9, "time": None, "answers": 0
    }  # fmt: skip
    assert datetime.fromisoformat(extent["time"]).tzinfo
    assert run["provenance"] == {
        "model": {"name": "m", "revision": None, "sha256": "1"},
        "data": {"name": "d", "sha256": "2", "rows": 9},
        "prompts_sha256": "3",
        "prompts_time": "2026-12-01T12:00:00+00:00",
        "dtype": "float32",
        "record_format": 1,
        "preset_version": "1",
        "versions": {},
        "git_commit": "c",
        "git_dirty": None,
        "python": "3",
        "command": "run",
        "hardware": {},
    }
    assert run["config"]["sampler"] == settings_of(Power())
    assert run["config"]["run_dir"] == "x"
    assert run["prompt_ids_sha256"] == "4"
    assert not {"fresh", "inline"} & run["config"].keys()
