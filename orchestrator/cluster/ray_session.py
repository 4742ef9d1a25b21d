"""Starts Ray on this machine or joins a cluster, checks that it is protected, and says which nodes are alive.

The environment variables that Ray reads when it is imported are set here: import this module before Ray.
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
from orchestrator.installation import ROOT
from orchestrator.rundir.directory import try_writing
from orchestrator.settings.config import RunConfig
from orchestrator.settings.parser import readable

LOCAL, AUTO = "local", "auto"  # Ray's addresses for a cluster of this process's own, and for one that Ray looks for
CONNECT_SECONDS = 10.0
HEALTH_CHECK = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
"""How a local Ray checks its nodes: it notices a dead one after 3 s instead of 13 s, a frozen one after 9 instead of
63 s."""
OBJECT_STORE_BYTES = 256 << 20  # records are small; the default, 30 % of RAM, spills out of a small /dev/shm
TMP = "/tmp"
LONGEST_SOCKET = 107
"""Bytes that the path of a socket can have on Linux."""


def ray_address() -> str:
    """The address of the Ray cluster to join; LOCAL where this process starts its own."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def check_ray_access(dashboard_host: str) -> None:
    """Check before a session that Ray can be joined. Raises UserError if not, or if it would be open to others."""
    check_address()
    check_dashboard(dashboard_host)
    choose_folder()
    if ray_address() == AUTO:  # only Ray knows where it looks
        connect(AUTO)
        ray.shutdown()


def check_address() -> None:
    """Raise UserError if nothing listens at RAY_ADDRESS; Ray itself would go on trying for minutes."""
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


def choose_folder() -> None:
    """Set RAY_TMPDIR to where a local Ray keeps its sockets and logs: as it is set, else TMPDIR, or /tmp where Ray
    cannot use TMPDIR, which a line says. Raises UserError for a RAY_TMPDIR that Ray cannot use."""
    if ray_address() != LOCAL:
        return
    if named := os.environ.get("RAY_TMPDIR"):
        if reason := unusable(named):
            raise UserError(f"RAY_TMPDIR={readable(named)} {reason}; set it to another directory, such as {TMP}.")
    elif (named := os.environ.get("TMPDIR") or TMP) != TMP and (reason := unusable(named)):
        say(f"TMPDIR={readable(named)} {reason}, so Ray's sockets and logs are in {TMP}/ray (RAY_TMPDIR).")
        named = TMP
    os.environ["RAY_TMPDIR"] = str(Path(named).absolute())


def unusable(folder: str) -> str:
    """Why Ray cannot keep its sockets in this folder, as the end of a sentence; empty where it can."""
    place = Path(folder).absolute()
    session = f"session_2000-01-01_00-00-00_000000_{os.getpid()}"  # as Ray names it
    if (length := len(os.fsencode(place / "ray" / session / "sockets/plasma_store"))) > LONGEST_SOCKET:
        return f"is too long for Ray's sockets, whose paths would have {length} of at most {LONGEST_SOCKET} bytes"
    try:
        str(place).encode()
        try_writing(place / "ray")
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    except UnicodeEncodeError:
        return "is not UTF-8"
    return ""


def check_dashboard(host: str) -> None:
    """Raise UserError if other machines could reach the dashboard, which can run code, without a token."""
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
    """Join the cluster of RAY_ADDRESS or start a local one, and check that it has the GPUs of a resolved `config`.

    Raises UserError for what the user can mend, WorkersLost where Ray does not start.
    """
    address = ray_address()
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    if not config.use_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    check_address()
    check_dashboard(config.dashboard_host)
    choose_folder()
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
        raise UserError(f"{wanted} GPUs are asked for and Ray finds {num_gpus}; take at most these.", ("num_gpus",))
    if address == LOCAL:  # Ray makes it writable for everybody
        Path(context.address_info["session_dir"]).chmod(0o700)
    if place := context.dashboard_url:
        say(dashboard_line(place))


def dashboard_line(place: str) -> str:
    """The line that tells the user where the dashboard is, how to log in, and how to reach it from elsewhere."""
    installed = Path(sys.executable).with_name("ray")
    fallback = shutil.which("ray") or f"{sys.executable} -m ray.scripts.scripts"
    command = str(installed) if installed.exists() else fallback
    port = place.rpartition(":")[2]
    return (
        f"Ray's dashboard: http://{place} (it asks for what `{command} get-auth-token` prints; from another machine "
        f"first `ssh -L {port}:{place} THIS_HOST`, then http://127.0.0.1:{port})"
    )


def connect(address: str, **options: Any) -> Any:
    """Call `ray.init` and return what it returns. Raises as `start_ray`."""
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


def vital_addresses() -> list[tuple[str, int]]:
    """Host and port of the server (GCS) and of the nodes of a local Ray; none for a cluster that was joined."""
    if ray_address() != LOCAL:
        return []
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return [(host, int(port)), *((node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes())]


def alive_nodes(vital: Sequence[tuple[str, int]]) -> set[str]:
    """The ids of the nodes that are alive.

    The `vital_addresses` of a local Ray are tried first: the server notices a dead node after seconds, and where the
    server is dead, Ray waits 60 s for it and then ends this process.
    """
    try:
        for place in vital:
            socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError:
        return set()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
