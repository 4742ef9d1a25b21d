"""The built wheel: what is in it, and that it works where there is no checkout."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from orchestrator.installation import version
from support.command import clean
from support.places import ROOT

pytest.importorskip("build", reason="build is not installed; make setup installs it")
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def place(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment `env` that has the wheel, and of this one's packages all but the checkout."""
    place = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "env")], check=True)
    [wheel] = built.glob("*.whl")
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(place / "env")]
    subprocess.run([sys.executable, *install, str(wheel)], check=True)
    [packages] = (place / "env/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # whose own .pth files nobody reads
    return place


def called(place: Path, program: str, *arguments: str) -> str:
    """What a program of the environment prints, called beside it with nothing set."""
    env = {name: value for name, value in clean().items() if name != "PYTHONPATH"}
    command = [str(place / "env/bin" / program), *arguments]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(*folders: str) -> set[str]:
    """All that lies in these folders of the checkout, bytecode aside."""
    found = (Path(base, name) for folder in folders for base, _, names in os.walk(ROOT / folder, followlinks=True)
             for name in names)  # fmt: skip
    return {str(path.relative_to(ROOT)) for path in found if path.suffix != ".pyc"}


def test_it_holds_the_packages_with_their_files_and_may_not_be_published(built: Path) -> None:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        ours = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        told = email.message_from_bytes(wheel.read(metadata))
        assert wheel.read("powersample/configs/gsm8k_power.yaml") == (ROOT / "configs/gsm8k_power.yaml").read_bytes()
    assert ours == files("powersample", "orchestrator", "evals")
    assert {f"powersample/{path}" for path in files("configs")} < ours
    assert {"powersample/metrics/grafana.json", "orchestrator/report/page.html", "evals/demo/problems.jsonl"} < ours
    assert told.get_all("Classifier") == ["Private :: Do Not Upload"]
    assert {*told.get_all("Provides-Extra", ())} == {"adapters", "lm-eval", "inspect", "dev"}
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        assert {"constraints.txt", "speedrun_powersample.sh"} < {Path(name).name for name in source.getnames()}


def test_it_runs_and_reports_without_a_checkout(place: Path) -> None:
    assert called(place, "powersample", "--version") == f"powersample {version()}\n"
    options = ["--model", "demo", "--data", "demo", "--limit", "4", "--num-gpus", "0", "--num-workers", "1"]
    options += ["--sampler.kind", "greedy", "--task.max-new-tokens", "32"]
    assert "4 of 4" in called(place, "powersample", "run", *options, "--run-dir", "run")
    provenance = json.loads((place / "run/run.json").read_text())["provenance"]
    assert (provenance["git_commit"], provenance["versions"]["powersample"]) == (None, version())
    (place / "run/report.html").unlink()
    called(place, "powersample", "report", "run")
    assert "<script" in (place / "run/report.html").read_text()


CONFIGURATIONS = """
import powersample, sys
from orchestrator.commands.generate import defaults
from orchestrator.commands.run import GPU_DEFAULT
from argparse import Namespace
assert GPU_DEFAULT.read_text() and defaults(Namespace(), {}).read_text() and powersample.UserError
ours = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in OURS]
print(all(file.startswith(sys.prefix) for file in [str(GPU_DEFAULT), *ours]))
"""


def test_its_modules_and_configurations_are_its_own(place: Path) -> None:
    code = f"OURS = {('powersample', 'orchestrator', 'evals')}\n{CONFIGURATIONS}"
    assert called(place, "python", "-c", code) == "True\n"
