"""Ray itself: where it is, started on this machine or joined, which of its nodes work, and what it shows of a run.

Knows no worker. Importing this imports Ray; with cluster.py it is all that does.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read when Ray is imported: nobody without the token may give Ray work, and nothing is reported to anybody.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from evals.types import UserError, WorkersLost
from orchestrator.console import say
from orchestrator.settings.config import RunConfig

LOCAL, AUTO = "local", "auto"  # addresses of Ray's: a cluster of this process's own, and one that it looks for
CONNECT_SECONDS = 10.0
HEALTH_CHECK = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
"""Of nodes by a local Ray: a dead one is known after 3 s instead of 13 s, a frozen one after 9 s instead of 63 s."""
OBJECT_STORE_BYTES = 256 << 20  # records are small; the default, 30 % of RAM, spills out of a small /dev/shm
CHECKOUT = Path(__file__).parents[2]


def ray_address() -> str:
    """Where Ray is to be found; LOCAL for one of our own."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def check(dashboard_host: str) -> None:
    """Raises UserError if Ray cannot be joined, or would be open to others."""
    check_address()
    check_dashboard(dashboard_host)
    if ray_address() == AUTO:  # only Ray knows where it looks
        connect(AUTO)
        ray.shutdown()


def check_address() -> None:
    """Raises UserError if nothing listens at RAY_ADDRESS; Ray itself would go on trying for minutes."""
    address = ray_address()
    if address in (LOCAL, AUTO):
        return  # these name no place
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"RAY_ADDRESS={address} is no address; write it as HOST:PORT, or unset the variable.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset the variable."
        ) from error


def check_dashboard(host: str) -> None:
    """Raises UserError if the dashboard would be open to other machines, who may run code by it, without a token."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False  # a name may lead anywhere
    if not loopback and os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise UserError(
            f"The dashboard is not bound to {host} while RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: whoever reaches "
            "it can run code here; set RAY_AUTH_MODE=token, or leave dashboard_host at 127.0.0.1 and use ssh -L."
        )


def start_ray(config: RunConfig, job_name: str) -> None:
    """Join the cluster of RAY_ADDRESS or start a local one, and make sure that it has the GPUs of a resolved `config`.

    Raises UserError for what the user can mend, WorkersLost where Ray does not come up.
    """
    address = ray_address()
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))}
    if not config.use_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    check_address()
    check_dashboard(config.dashboard_host)
    local: dict[str, Any] = {}
    if address == LOCAL:  # a driver that joins a cluster must not pass these
        for name, value in HEALTH_CHECK.items():
            os.environ.setdefault(f"RAY_health_check_{name}", str(value))
        dashboard = None if config.dashboard else False  # None: if its packages are there
        local = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": dashboard}
    context = connect(
        address,
        dashboard_host=config.dashboard_host,
        job_config=JobConfig(metadata={"job_name": job_name}, runtime_env={"env_vars": environment}),
        **local,
    )
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    wanted = config.num_actors * config.engine.gpus_per_model
    if config.use_gpus and num_gpus < wanted:
        ray.shutdown()
        raise UserError(f"POWERSAMPLE_NUM_GPUS asks for {wanted} GPUs and Ray finds {num_gpus}; ask for at most these.")
    if address == LOCAL:  # Ray makes it writable for everybody
        Path(context.address_info["session_dir"]).chmod(0o700)
    if place := context.dashboard_url:
        say(invitation(place))


def invitation(place: str) -> str:
    """Where the dashboard is, how to come in and how to get there from elsewhere."""
    beside = Path(sys.executable).with_name("ray")
    command = str(beside) if beside.exists() else shutil.which("ray") or f"{sys.executable} -m ray.scripts.scripts"
    port = place.rpartition(":")[2]
    return (
        f"Ray's dashboard: http://{place} (it asks for what `{command} get-auth-token` prints; from another machine "
        f"first `ssh -L {port}:{place} THIS_HOST`, then http://127.0.0.1:{port})"
    )


def connect(address: str, **options: Any) -> Any:
    """What `ray.init` returns. Raises as `start_ray`."""
    try:
        return ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    except AuthenticationError as error:
        raise UserError(
            f"The Ray cluster at RAY_ADDRESS={address} and this process do not agree on a token; set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's, or RAY_AUTH_MODE=disabled if it has none."
        ) from error
    except ConnectionError as error:
        raise UserError(f"No Ray cluster answers at RAY_ADDRESS={address}; start it or unset the variable.") from error
    except OSError as error:
        raise UserError(
            f"Ray cannot start ({error}); it keeps its token in ~/.ray (HOME) and its sockets and logs in /tmp/ray "
            "(RAY_TMPDIR): set these variables to directories that can be written."
        ) from error
    except Exception as error:  # Ray raises bare ones where a process of its own does not come up
        raise WorkersLost(f"Ray did not start: {error}") from error


def vital_places() -> list[tuple[str, int]]:
    """Where server (GCS) and node of a local Ray listen; none for a cluster of others'."""
    if ray_address() != LOCAL:
        return []
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return [(host, int(port)), *((node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes())]


def alive_nodes(vital: Sequence[tuple[str, int]]) -> set[str]:
    """Nodes that work. Of a local Ray its `vital_places` are tried first: the server hears of a dead node after
    seconds, and where the server is dead, Ray waits 60 s for it and then ends this process."""
    try:
        for place in vital:
            socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError:
        return set()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
