"""The import rule: one arrow between packages, and one file for every heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONLY = {
    "ray": [f"orchestrator/{name}.py" for name in ("join", "cluster")],
    "transformers": ["evals/engine/"],
    "torch": ["evals/engine/"],
}
SIBLINGS = ["evals/tasks/", "evals/samplers/", "evals/engine/"]


def files() -> list[str]:
    paths = [*ROOT.glob("evals/**/*.py"), *ROOT.glob("orchestrator/**/*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imports(name: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", files())
def test_import_rule(name: str) -> None:
    used = imports(name)
    if name.startswith("evals/"):
        assert not {u for u in used if u.split(".")[0] == "orchestrator"}, "evals never imports orchestrator"
    assert not {u for u in used if u.split(".")[0] in ("demo", "benchmarks", "tests")}, "these are not installed"
    for library, allowed in ONLY.items():
        if not name.startswith(tuple(allowed)):
            assert not {u for u in used if u.split(".")[0] == library}, f"{library} belongs to {allowed}"
    for sibling in SIBLINGS:
        others = {s.rstrip("/").replace("/", ".") for s in SIBLINGS if s != sibling}
        if name.startswith(sibling):
            assert not {u for u in used for other in others if (u + ".").startswith(other + ".")}, "siblings"


@pytest.mark.parametrize("package", ["evals", "orchestrator"])
def test_package_inits_are_empty(package: str) -> None:
    assert all(not path.read_text().strip() for path in (ROOT / package).rglob("__init__.py"))


@pytest.mark.parametrize("module", ["orchestrator.cli", "orchestrator.config", "evals.samplers.make", "evals.types"])
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'transformers', 'datasets'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
