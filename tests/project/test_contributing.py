"""The examples of CONTRIBUTING.md, put where they say into a copy of the package, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from itertools import product
from math import exp, fsum, prod
from pathlib import Path
from runpy import run_path

import pytest

from evals.rng import RandomKey
from evals.types import Grade
from support.law import TOYS, chi_square
from support.places import ROOT
from support.toy import ToyEngine

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
PLACE = re.compile(r"^# (\S+\.py)(?:, in (\w+))?\n", re.M)


def code(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip() and not line.startswith("# ")]


def put(root: Path, block: str) -> None:
    """A block's parts into their files: a new one, the end of an old one, or the start of a table; imports on top."""
    _, *parts = PLACE.split(block)
    for name, table, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        path = root / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if table:
            imports = "".join(re.findall(r"^from .*\n", text, re.M))
            head, start, rest = re.split(rf"(^{table}\b.*= \{{\n|^{table} = (?=\w))", old, flags=re.M)
            head, entry = head.replace("annotations\n", f"annotations\n{imports}", 1), text.removeprefix(imports)
            path.write_text(
                head + start + (entry if start.endswith("\n") else entry.strip() + " ") + rest, encoding="utf-8"
            )
        else:
            path.write_text(f"{old}\n{text}", encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code with all examples in it."""
    copy = tmp_path_factory.mktemp("contributed")
    for name in ("evals", "orchestrator"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "model"))
    (copy / "evals/demo/model").symlink_to(ROOT / "evals/demo/model")
    (copy / "tests/support").mkdir(parents=True)
    shutil.copy(ROOT / "tests/support/twins.py", copy / "tests/support")
    for block in BLOCKS:
        put(copy, block)
    return copy


def python(root: Path, *arguments: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_short() -> None:
    assert [len(code(block)) < 20 for block in BLOCKS] == [True] * 4


MAIN = """
import json, sys
from orchestrator.cli import main
sys.exit(max(main(arguments) for arguments in json.loads(sys.argv[1])))
"""


def test_task_grader_and_sampler_are_found_by_their_names(root: Path) -> None:
    rows = [{"question": f"Is {n} even? (A) yes (B) no", "answer": "AB"[n % 2]} for n in range(4)]
    (root / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = "--task.preset riddles --sampler.kind shortest --sampler.num-candidates 3 --data riddles.jsonl --model demo"
    run = ["run", *flags.split(), "--num-gpus", "0", "--inline", "--run-dir", "run"]
    shown = python(root, "-c", MAIN, json.dumps([run, ["regrade", "run"], ["run", "--help"]]))
    records = [json.loads(line) for line in (root / "run/records.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        found = re.findall(r"\b[A-E]\b", record["text"])
        score = record["scores"]["numeric"]
        assert score["answer"] == (found[-1] if found else None)
        assert score["correct"] == (score["answer"] == "AB"[record["problem_id"] % 2])
        assert record["tokens"]["generated"] >= 3 * record["tokens"]["answer"]  # none of the three is shorter
    config = json.loads((root / "run/run.json").read_text())["config"]
    assert (config["task"]["name"], config["task"]["max_new_tokens"]) == ("choice", 64)
    assert config["sampler"] == {"kind": "shortest", "num_candidates": 3}
    scores = [record["scores"] for record in records]
    assert [json.loads(line)["scores"] for line in (root / "run/scores.jsonl").read_text().splitlines()] == scores
    assert "shortest (the shortest of several)" in " ".join(shown.split())
    assert re.search(r"^ +shortest +num_candidates$", shown, re.M)


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("So it is B.", "B", (True, "B", "letter")),
        ("A? No: (C)", "A", (False, "C", "letter")),
        ("A Bee", "A", (True, "A", "letter")),
        ("none of them", "A", (False, None, "none")),
    ],
)
def test_the_grader(root: Path, text: str, gold: str, expected: tuple[bool, str | None, str]) -> None:
    assert run_path(str(root / "evals/grading/choice.py"))["choice"](text, gold) == Grade(*expected)


def test_the_samplers_law(root: Path) -> None:
    """The law of the shortest of three, the first of equals, by enumeration; that of two is another."""
    model, shortest = TOYS["eos"], run_path(str(root / "evals/samplers/shortest.py"))["Shortest"]
    p = {x: exp(fsum(model.statistics(x, 1.0)[0])) for x in model.complete()}

    def answers(engine: ToyEngine, count: int) -> list[tuple[int, ...]]:
        return [engine.run(shortest(3).chain(model.prompt(), RandomKey(7, i, 0))).tokens for i in range(count)]

    seen = answers(ToyEngine(model, 7), 2000)
    assert answers(ToyEngine(model, 7, slots=4, order=1), 100) == seen[:100]
    p_values = []
    for count in (3, 2):
        law: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for drawn in product(p, repeat=count):
            law[min(drawn, key=len)] += prod(p[x] for x in drawn)
        p_values.append(chi_square(law, Counter(seen)))
    assert p_values[0] > 0.01
    assert p_values[1] < 1e-6


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_against_its_twin(root: Path) -> None:
    """In a process of its own, because Triton decides when it is imported whether it interprets."""
    compare = """
import sys, torch
sys.path.append("tests")
from support import twins
from evals.engine.kernels.forbid import forbid
logits = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
tokens = torch.tensor([0, 69, -1, 7, 33])
theirs, ours = logits.clone(), logits.clone()
twins.forbid(theirs, tokens)
forbid(ours, tokens)
assert torch.equal(ours, theirs) and ours.isinf().sum() == 4
print("equal")
"""
    assert python(root, "-c", compare, TRITON_INTERPRET="1") == "equal\n"
