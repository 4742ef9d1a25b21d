"""The command line as a user types it, on the embedded model: the same answers however the work is cut up."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from support.command import DEMO, answers, in_process, kill_after, named, python, run
from support.shared_data import GSM8K_MODEL, GSM8K_TEST, SHARED, needs_shared


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight problems, power sampling, one slot, without Ray."""
    directory = tmp_path_factory.mktemp("reference") / "run"
    assert in_process("run", "--inline", "--run-dir", directory, "--batch-size", 1, **named(POWER_RUN)) == 0
    return directory


DEMO_RUN = {"MODEL": DEMO / "model", "DATA": DEMO / "problems.jsonl", "LIMIT": 8}
POWER_RUN = DEMO_RUN | {"TASK__MAX_NEW_TOKENS": 48, "SAMPLER__NUM_MOVES": 3}  # five answers end, three are cut


@pytest.mark.parametrize(
    "shape",
    [
        ["--inline", "--batch-size", 3],
        ["--inline", "--no-use-batched", "--limit", 3],
        pytest.param(["--num-workers", 2, "--batch-size", 3], marks=pytest.mark.ray),
        pytest.param(["--num-workers", 4, "--batch-size", 3], marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
    ids=lambda shape: " ".join(map(str, shape)),
)
def test_answers_do_not_depend_on_slots_and_workers(reference: Path, shape: list[object], tmp_path: Path) -> None:
    if "--inline" in shape:
        assert in_process("run", "--run-dir", tmp_path / "run", *shape, **named(POWER_RUN)) == 0
    else:
        done = run("--run-dir", tmp_path / "run", *shape, **POWER_RUN)
        assert done.returncode == 0, done.stderr
    found = answers(tmp_path / "run")
    assert len(found) == (3 if "--limit" in shape else 8)
    assert found == {key: tokens for key, tokens in answers(reference).items() if key in found}


@pytest.mark.serial
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_to_the_same_answers(
    reference: Path, sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    flags = "--inline", "--batch-size", 2
    assert kill_after(3, tmp_path / "run", sent, *flags, **POWER_RUN) == code
    before = (tmp_path / "run/records.jsonl").read_bytes()
    assert 3 <= before.count(b"\n") < 8
    (tmp_path / "run/records.jsonl").write_bytes(before + b'{"problem_id": 1')
    assert in_process("run", *flags, "--run-dir", tmp_path / "run", **named(POWER_RUN)) == 0
    assert (tmp_path / "run/records.jsonl").read_bytes().startswith(before)
    assert answers(tmp_path / "run") == answers(reference)


METHODS: dict[str, dict[str, object]] = {
    "blocks": {"num_moves": 2, "blocks": 2},
    "effective": {"num_effective_moves": 3},
    "entropy": {"num_moves": 4, "cuts": "entropy"},
    "smc": {"kind": "smc", "num_candidates": 3, "smc_ramp": 8, "smc_interval": 8, "smc_threshold": 0.9},
    "best_of": {"kind": "best_of", "num_candidates": 3},
    "snis": {"kind": "snis", "num_candidates": 3},
}
SEVERAL = """
import json, os, signal, sys
from evals.samplers.registry import sampler_of
from orchestrator.driver import open_runs
from orchestrator.cli import main
from orchestrator.rundir.writing.run_store import RunStore

kill, methods = sys.argv[1] == "kill", json.loads(sys.argv[2])

def runs_of(config):
    places = {name: {"name": name, "run_dir": config.run_dir / name} for name in methods}
    samplers = {name: sampler_of(settings) for name, settings in methods.items()}
    return [config.model_copy(update={**places[name], "sampler": samplers[name]}) for name in methods]

append = RunStore.append
def append_and_kill(store, record):
    added = append(store, record)
    if kill and len(store.records) == 2:
        os.kill(os.getpid() if store.directory.name == "blocks" else record.worker.pid, signal.SIGKILL)
    return added

open_runs.runs_of, RunStore.append = runs_of, append_and_kill
sys.exit(main(["run", *sys.argv[3:]]))
"""


@pytest.fixture(scope="session")
def every_method(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six problems by every method: in one slot without Ray; on two actors, of which one is killed in every method, or
    the driver in the first; on one actor."""
    root = tmp_path_factory.mktemp("methods")
    sampler = "--sampler.kind", "smc", "--sampler.num-candidates", 3  # the one that needs most room
    shapes: dict[str, tuple[object, ...]] = {
        "calm": ("--inline", "--batch-size", 1, "--engine.prefetch", 0),
        "kill": ("--num-workers", 2, "--batch-size", 3, "--engine.prefetch", 4),
        "one": ("--num-workers", 1, "--batch-size", 8, "--engine.prefetch", 1),
    }
    variables = named(DEMO_RUN | {"LIMIT": 6, "TASK__MAX_NEW_TOKENS": 40})
    for name, shape in shapes.items():
        flags = [name, json.dumps(METHODS), "--run-dir", root / name, "--no-dashboard", *sampler, *shape]
        codes = []
        while codes[-1:] != [0]:
            done = python("-c", SEVERAL, *flags, **variables)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            codes.append(done.returncode)
        assert codes == ([-signal.SIGKILL] if name == "kill" else []) + [0]
    return {name: root / name for name in shapes}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_the_same_in_any_shape_and_after_any_kill(
    every_method: dict[str, Path], method: str
) -> None:
    calm, killed, one = (every_method[name] / method for name in ("calm", "kill", "one"))
    assert len(answers(calm)) == 6
    assert answers(killed) == answers(calm)
    assert answers(one) == answers(calm)
    rows = [json.loads(line) for line in (killed / "telemetry.jsonl").read_text().splitlines()]
    dead = [row["event"] for row in rows if row["kind"] == "event" and row["event"] in ("start", "death")]
    assert dead == (["start"] * 2 if method == "blocks" else ["start"] * 2 + ["death"])


def test_summary_has_the_promised_keys(reference: Path) -> None:
    summary = json.loads((reference / "summary.json").read_text())
    promised = {"num_problems", "num_records", "accuracy", "no_answer_rate", "truncated_rate", "timings", "tokens"}
    assert promised | {"throughput", "chain", "memory"} <= set(summary)
    assert summary["num_problems"] == summary["num_records"] == 8
    assert set(summary["accuracy"]) == {"strict", "flexible", "numeric"}
    assert {"mean", "stderr", "ci95"} <= set(summary["accuracy"]["numeric"])
    assert {"acceptance", "moves", "forwards_per_move"} <= set(summary["chain"])


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.ray
@needs_shared(GSM8K_TEST, GSM8K_MODEL, claim="The same answers of a model trained on GSM8K after an interruption")
def test_killed_half_way_on_real_gsm8k(tmp_path: Path) -> None:
    """64 real problems on two actors, killed with -9 half-way, against an undisturbed run of another shape."""
    variables = {"MODEL": SHARED / GSM8K_MODEL, "DATA": SHARED / GSM8K_TEST, "LIMIT": 64}
    assert kill_after(32, tmp_path / "killed", signal.SIGKILL, **variables) == -9
    done = run("--run-dir", tmp_path / "killed", **variables)
    assert done.returncode == 0, done.stderr
    undisturbed = run("--inline", "--run-dir", tmp_path / "whole", "--batch-size", 24, **variables)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert len(answers(tmp_path / "killed")) == 64
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")
