"""The files of launch/: shell that parses, a job whose options reach the run, YAML with what KubeRay 1.7 asks for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.config import EngineConfig
from evals.types import UserError
from orchestrator.inputs.models import ModelSource, folder_on_node
from support.places import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / "speedrun_powersample.sh", ROOT / ".ci/run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def fake(directory: Path, name: str, lines: str) -> None:
    program = directory / name
    program.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    program.chmod(0o755)


def test_a_ray_job_takes_the_runs_variables_and_options_along(tmp_path: Path) -> None:
    fake(tmp_path, "python", f'if [[ $1 == -c ]]; then exec python3 "$@"; fi\nprintf "%s\\0" "$@" >>{tmp_path}/calls')
    environment = {
        "PATH": os.environ["PATH"],
        "POWERSAMPLE_PYTHON": str(tmp_path / "python"),
        "POWERSAMPLE_LIMIT": "7",
        "POWERSAMPLE_RUN_DIR": "here",
        "HOME": str(tmp_path),
    }
    command = ["bash", str(LAUNCH / "ray_job.sh"), "/shared/run", "--sampler.kind", "greedy"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    submit = (tmp_path / "calls").read_text().split("\0")
    assert submit[2:5] == ["job", "submit", "--no-wait"]
    runtime = json.loads(submit[submit.index("--runtime-env-json") + 1])
    assert runtime["env_vars"] == {"POWERSAMPLE_LIMIT": "7", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    job = submit[submit.index("--") + 1 : submit.index("-m", submit.index("--") + 5)]
    assert job[1:8] == ["-m", "orchestrator", "run", "--run-dir", "/shared/run", "--sampler.kind", "greedy"]
    refused = subprocess.run([*command[:2], "runs/mine"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "an absolute path" in refused.stderr


SRUN = 'printf "%s\\n" "$@" >srun; [[ -z $SLOW ]] || { trap "exit 143" TERM; touch up; while :; do sleep 0.1; done; }'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A submit directory with SLURM's commands imitated."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake(bin_, "ray", "exit 0")
    fake(bin_, "srun", SRUN)
    fake(bin_, "scontrol", '[[ $1 == show ]] && printf "node1\\nnode2\\n" || echo "$@" >requeued')
    return {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLOW": "",
    }


def test_slurm_runs_on_all_nodes_and_looks_for_the_report(tmp_path: Path, slurm: dict[str, str]) -> None:
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "--limit", "5"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no report in" in done.stderr
    said = (tmp_path / "srun").read_text().split("\n")
    assert "--address node1:6379 --min-nodes 2 -- env RAY_ADDRESS=node1:6379 bash" in " ".join(said)
    assert said[-3:-1] == ["--limit", "5"]
    (tmp_path / "runs/slurm-17").mkdir(parents=True)
    (tmp_path / "runs/slurm-17/report.md").touch()
    assert subprocess.run(command, env=slurm, capture_output=True, check=False).returncode == 0


def test_slurm_queues_again_when_time_is_nearly_out(tmp_path: Path, slurm: dict[str, str]) -> None:
    with subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch")], env={**slurm, "SLOW": "1"}) as job:
        while not (tmp_path / "up").exists():
            assert job.poll() is None
        os.kill(job.pid, 10)
        assert job.wait(30) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / "rayjob.yaml").read_text()))


def test_the_ray_job_of_kubernetes_has_what_its_definition_asks_for() -> None:
    claim, job = documents()
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    known = {
        "submissionMode",
        "entrypoint",
        "runtimeEnvYAML",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "activeDeadlineSeconds",
        "preRunningDeadlineSeconds",
        "rayClusterSpec",
    }
    assert spec.keys() == known
    assert spec["backoffLimit"] > 0, "the default is no second try"
    assert spec["shutdownAfterJobFinishes"] is True, "ttlSecondsAfterFinished counts from there"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), "tokens need it"
    pinned = re.search(r"^ray(?:\[\w+\])?==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["restartPolicy"] == "Never", "SidecarMode needs it"
    (workers,) = cluster["workerGroupSpecs"]
    env = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert int(env["POWERSAMPLE_NUM_GPUS"]) == workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        assert pod["shareProcessNamespace"] is True
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes.keys()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert "--run-dir /runs/" in spec["entrypoint"]
    assert env["HF_HOME"].startswith("/runs/")


def test_the_image_has_an_init_and_what_it_copies_exists() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["tini", "-g", "--"]' in lines
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[2:-1]), line
    assert lines.index("USER ray") > 0


def test_a_worker_downloads_at_the_commit_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, revision: str, patterns: list[str]) -> tuple[Path, str]:
        asked.append((name, revision))
        return tmp_path, revision

    monkeypatch.setattr("orchestrator.inputs.models.download", download)
    model = ModelSource("/driver/only", "owner/name", "abc123", "abc123")
    assert folder_on_node(model, EngineConfig()) == str(tmp_path)
    assert asked == [("owner/name", "abc123")]


def test_a_folder_of_this_node_is_taken_and_one_of_another_refused(tmp_path: Path) -> None:
    here = ModelSource(str(tmp_path), "model", None, "0")
    assert folder_on_node(here, EngineConfig()) == str(tmp_path)
    with pytest.raises(UserError, match=r"There is no model folder /elsewhere on the node \S+; put it on storage"):
        folder_on_node(here._replace(folder="/elsewhere"), EngineConfig())
