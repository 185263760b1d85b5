"""Starting a private Ray, bound to loopback, or joining a running one."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from prdp.cluster import ray_internals
from prdp.cluster.base import ClusterError, ClusterSetupError
from prdp.cluster.object_store import planned_bytes
from prdp.cluster.sockets import check_socket_paths
from prdp.cluster.threads import usable_cores
from prdp.support.interruption import always_last

if TYPE_CHECKING:
    from prdp.config import ClusterConfig

_log = logging.getLogger(__name__)

_KNOCK_SECONDS = 5.0
_START_ATTEMPTS = 3


def connect(config: ClusterConfig) -> bool:
    """Make Ray ready; True when this call started or joined it and so has to leave it.

    A Ray that this process is already connected to is used as it is.

    Args:
        config: the `cluster` section.

    Raises:
        ClusterSetupError: no cluster at the address, or ports that would be open to the network although `config.host`
            is a loopback address.
        ConfigError: a folder for temporary files whose name is too long for Ray.
        ClusterError: a private Ray does not start, which a machine without other work may mend.
    """
    local = config.address == "local"
    known = os.environ.get("RAY_ADDRESS")
    if local and known and known != "local":
        _log.warning(
            "RAY_ADDRESS=%s of the environment is not used: cluster.address=local starts a private Ray; "
            "cluster.address=auto joins the one at that address", known,
        )
    _set_environment(config, local)
    if ray.is_initialized():
        return False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if local:
            _start(config)
        else:
            _join(config)
    finally:
        _restore(handler)
    return True


def _start(config: ClusterConfig) -> None:
    check_socket_paths()
    always_last(end_ray)
    if config.dashboard and importlib.util.find_spec("aiohttp") is None:
        raise ClusterSetupError(
            "cluster.dashboard=true needs packages that plain Ray lacks: pip install 'prdp[dashboard]', or "
            "cluster.dashboard=false"
        )
    ray_internals.set_networked(ray_internals.NETWORKED and not _is_loopback(config.host))
    for attempt in range(_START_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=usable_cores(),
                object_store_memory=planned_bytes(config.object_store_gib),
                include_dashboard=config.dashboard,
                dashboard_host=config.host,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=ray_internals.job_without_folders(),
                **ray_internals.bound_to(None if _is_anywhere(config.host) else config.host),
            )
            break
        except Exception as error:
            # Ray waits 30 seconds for its own processes, which may be too short on a machine with other work.
            ray.shutdown()
            if attempt + 1 == _START_ATTEMPTS:
                raise ClusterError(f"no private Ray starts, in {_START_ATTEMPTS} attempts: {error}") from error
            _log.warning("a private Ray did not start and is tried again: %s", error)
    address = ray.util.get_node_ip_address()
    if _is_loopback(config.host) and not _is_loopback(address):
        ray.shutdown()
        raise ClusterSetupError(
            f"Ray bound its ports to {address}, not to cluster.host={config.host}: the network could reach them. "
            f"Set cluster.host={address} if that is wanted, or cluster=inline"
        )


def _join(config: ClusterConfig) -> None:
    try:
        _find(config.address)
        job = ray_internals.job_without_folders()
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, job_config=job)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterSetupError(
            f"cluster.address={config.address}: could not join a running Ray ({error}). Start one with "
            "`ray start --head`, give its address as host:port, or set cluster.address=local for a private one"
        ) from error


def _find(address: str) -> None:
    """Knock before Ray does, which would try for minutes, and find out whether a Ray on this machine is on loopback.

    Raises:
        OSError: nothing answers.
    """
    first = ""
    for networked in (ray_internals.NETWORKED, False):
        ray_internals.set_networked(networked)
        target = ray_internals.bootstrap_address(address)
        if target == first:
            break
        first = first or target
        host, _, port = target.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
        except OSError:
            continue
        return
    raise ConnectionError(f"nothing answers at {first}")


def end_ray() -> None:
    """Kill the processes of a private Ray of this process, and what they have started, without waiting for any."""
    for pid in _family(ray_internals.own_processes()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _family(roots: set[int]) -> set[int]:
    """Processes, and those that they have started, as far as /proc tells."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    family = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def free_resources() -> str:
    """What is unclaimed in the cluster now, for messages."""
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"


def _set_environment(config: ClusterConfig, local: bool) -> None:
    """What Ray reads when it starts and hands on to its processes; values the user has set stand."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not local:
        return
    # Ray would start a worker for every core, and no actor takes one: all have environment variables of their own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if _is_loopback(config.host):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if not config.dashboard and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        # Ray asks for a token by default; one of its own keeps other users of the machine out and, unlike the file that
        # Ray would write, needs no home folder.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _restore(handler: Any) -> None:
    """Ray's SIGTERM handler, which exits in order, is better than the default but no better than the program's own."""
    custom = handler not in (signal.SIG_DFL, signal.SIG_IGN, None)
    if custom and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_anywhere(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")
