"""Where Ray is, and who may reach its dashboard: checked before Ray is imported. Knows no Ray."""

from __future__ import annotations

import ipaddress
import os
import socket

from evals.types import UserError

LOCAL, AUTO = "local", "auto"  # addresses of Ray's: a cluster of this process's own, and one that it looks for
CONNECT_SECONDS = 10.0


def ray_address() -> str:
    """Where Ray is to be found; LOCAL for one of our own."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def check(dashboard_host: str) -> None:
    """Raises UserError if Ray cannot be joined, or would be open to others."""
    check_address()
    check_dashboard(dashboard_host)


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
    if is_loopback(host) or os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        return
    raise UserError(
        f"The dashboard is not bound to {host} while RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: whoever reaches it "
        "can run code here; set RAY_AUTH_MODE=token, or leave dashboard_host at 127.0.0.1 and use ssh -L."
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may lead anywhere


def listens(place: tuple[str, int]) -> bool:
    """Does a process of this machine listen there?"""
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
