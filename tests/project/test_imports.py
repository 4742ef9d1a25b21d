"""Import rules: wings import from those below them, no circles, and one wing for every heavy library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from support.places import ROOT

WINGS = {
    "evals": (
        "rng",
        "types",
        "settings",
        "statistics",
        "stopping",
        "thoughts",
        "grading",
        "tasks.presets",
        "samplers",
        "record",
        "config",
        "sizing",
        "engine",
        "tasks",
        "evaluate",
    ),
    "orchestrator": (
        "installation",
        "console",
        "wording",
        "machine",
        "settings",
        "rundir",
        "rundir.reading",
        "rundir.writing",
        "inputs",
        "analysis",
        "report",
        "export",
        "live",
        "workers",
        "batch_search",
        "cluster",
        "driver",
        "commands",
        "cli",
        "__main__",
    ),
    "powersample": ("sampling", "outputs", "llm"),
}
"""The wings from the lowest up: a module imports from its own and from lower ones; orchestrator is above evals, and
powersample, which is what others import, above both."""
ONLY = {
    "ray": "orchestrator.cluster",
    "transformers": "evals.engine",
    "torch": "evals.engine",
    "matplotlib": "orchestrator.report",
}
"""The one wing that may import a heavy library."""
APART = {
    "evals.tasks": ("evals.samplers", "evals.engine"),
    "evals.samplers": ("evals.tasks", "evals.engine"),
    "evals.engine": ("evals.tasks", "evals.samplers"),
    "orchestrator.inputs": ("orchestrator.rundir.writing",),
    "orchestrator.analysis": ("orchestrator.rundir.writing",),
    "orchestrator.report": ("orchestrator.rundir.writing",),
    "orchestrator.export": ("orchestrator.rundir.writing",),
    "orchestrator.live": ("orchestrator.rundir.writing",),
}
"""Wings above these that must not import them: tasks, samplers and engine meet in `evals.evaluate` alone, and what
reads a run never writes to it."""
NOT_INSTALLED = {"demo_training", "benchmarks", "tests"}


def modules() -> dict[str, str]:
    """Module -> its source."""
    paths = [path for package in WINGS for path in (ROOT / package).rglob("*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths}
    return {names[path].removesuffix(".__init__"): path.read_text(encoding="utf-8") for path in sorted(paths)}


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere in it, of ours the very files."""
    known, used_by = modules(), {}
    for module, source in known.items():
        used = used_by[module] = set[str]()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= (inner & known.keys()) | ({node.module or ""} if inner - known.keys() else set())
    return used_by


def floor(module: str) -> tuple[int, int]:
    """The height of a module of ours: of its package, and of its wing within it, above which the package itself is."""
    package, _, rest = module.partition(".")
    names = [name for name in WINGS[package] if f"{rest}.".startswith(f"{name}.")]
    assert names or not rest, f"{module} stands in no wing"
    return list(WINGS).index(package), WINGS[package].index(max(names, key=len)) if names else len(WINGS[package])


@pytest.mark.parametrize("module", modules())
def test_imports_run_downwards(module: str) -> None:
    """A wing imports from wings below it, a heavy library is imported in one wing alone, and all of it is installed."""
    upward = [used for used in imports()[module] if used.split(".")[0] in WINGS and floor(used) > floor(module)]
    assert not upward
    for library, wing in ONLY.items():
        if not f"{module}.".startswith(f"{wing}."):
            assert not {used for used in imports()[module] if used.split(".")[0] == library}, f"only in {wing}"
    apart = {other for wing, others in APART.items() if f"{module}.".startswith(f"{wing}.") for other in others}
    assert not {used for used in imports()[module] for other in apart if f"{used}.".startswith(f"{other}.")}
    assert not NOT_INSTALLED & {used.split(".")[0] for used in imports()[module]}


def test_there_are_no_circles() -> None:
    ours = {module: used & imports().keys() for module, used in imports().items()}
    assert sum(map(len, ours.values())) > 300, "they were found"
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_names_in_prose_are_there() -> None:
    """A `module.name` in a docstring or comment names what that module has, a `name.py` a file that there is."""
    known = modules()
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    words = {module.rpartition(".")[2]: set[str]() for module in known}
    for module, source in known.items():
        words[module.rpartition(".")[2]] |= set(re.findall(r"\w+", source))
    others = {"engine", "sampler", "task", "run", "jsonl"}  # settings and files that are called as modules are
    wrong = [
        f"{module}: {text}"
        for module, source in known.items()
        for text, name, member in re.findall(r"(`(?:\w+\.)*(\w+)\.(\w+)(?:\(.*?\))?`)", source)
        if name in words and name not in others and member not in words[name] | {"py"}
    ]
    wrong += [
        f"{module}: {name}"
        for module, source in known.items()
        for name in re.findall(r"\w+\.py\b", source)
        if name not in files
    ]
    assert wrong == []


def test_every_wing_is_there() -> None:
    for package, wings in WINGS.items():
        for wing in wings:
            assert any(f"{name}.".startswith(f"{package}.{wing}.") for name in modules()), f"{package}.{wing} is gone"


@pytest.mark.parametrize("package", ["evals", "orchestrator"])
def test_package_inits_are_empty(package: str) -> None:
    assert all(not path.read_text().strip() for path in (ROOT / package).rglob("__init__.py"))


LIGHT = [
    "orchestrator.cli", "orchestrator.settings.config", "orchestrator.report.make", "evals.samplers.registry",
    "evals.types",
]  # fmt: skip
HEAVY = {"torch", "ray", "transformers", "datasets", "matplotlib", "scipy.stats", "pebble"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
