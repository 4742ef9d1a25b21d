"""What others on the machine can see and do: files, tokens, the dashboard's place, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.types import UserError
from orchestrator.cluster.ray_session import check_dashboard
from support.command import powersample, python
from support.places import ROOT

SECRETS = {"HF_TOKEN": "hf_kept0to0myself", "RAY_AUTH_TOKEN": "5ec2e7" * 11, "WANDB_API_KEY": "also0kept0to0myself"}


def test_a_run_is_readable_by_its_owner_alone_and_holds_no_secret(tmp_path: Path) -> None:
    flags = ["--model", "demo", "--data", "demo", "--limit", 2, "--num-gpus", 0, "--inline", "--sampler.kind", "greedy"]
    done = powersample("run", *flags, "--run-dir", tmp_path / "run", umask=0o022, **SECRETS)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    written = "".join(path.read_text(encoding="utf-8") for path in files) + done.stdout + done.stderr
    assert not [name for name, secret in SECRETS.items() if secret in written]


RAY = """
import os, sys
from pathlib import Path
from orchestrator.cli import main
main(["--version"])
from orchestrator.settings.config import RunConfig
from orchestrator.cluster.ray_session import start_ray
start_ray(RunConfig(num_gpus=0, dashboard=False), "test")
import ray
token, session = Path.home() / ".ray/auth_token", Path(ray._private.worker._global_node.get_session_dir_path())
ray.shutdown()
print(oct(token.stat().st_mode & 0o777), oct(session.stat().st_mode & 0o777))
"""


@pytest.mark.ray
def test_rays_token_and_logs_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    done = python("-c", RAY, umask=0o022, HOME=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["0o600", "0o700"]


def test_the_start_script_makes_private_files() -> None:
    lines = (ROOT / "speedrun_powersample.sh").read_text().splitlines()
    mask = next(i for i, line in enumerate(lines) if line.startswith("umask 077"))
    assert mask < next(i for i, line in enumerate(lines) if "-m orchestrator run" in line)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "node7"])
def test_a_dashboard_without_a_token_stays_on_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_dashboard(host)  # with the token that is the default
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(
        UserError, match=f"The dashboard is not bound to {host} while RAY_AUTH_MODE=disabled: .*run code"
    ):
        check_dashboard(host)
    for loopback in ("127.0.0.1", "::1", "localhost"):
        check_dashboard(loopback)


def test_an_open_dashboard_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    flags = ["--model", "demo", "--data", "demo", "--limit", 2, "--num-gpus", 0, "--run-dir", tmp_path / "run"]
    refused = powersample("run", *flags, "--dashboard-host", "0.0.0.0", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2
    assert refused.stderr.startswith("powersample: The dashboard is not bound to 0.0.0.0 while RAY_AUTH_MODE=disabled")
    assert not (tmp_path / "run").exists()
