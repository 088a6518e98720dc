"""The nodes of a Ray cluster: how a run joins them, and whether each can run the project's stages.

The functions of the last part run on a node. Ray takes them along as they are here, so that a node that cannot import
the project can say so.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import MachineError

REACH = 5.0  # seconds that a cluster's head has to answer
CACHE = "STILLHOUSE_NODE_CACHE"  # variable of a node: the folder in which one without the project's works
PROBE = 120.0  # seconds that a node has to answer: it may import torch from a cold disk
LOCAL = "local"


def join(address: str, jobs: int | None) -> Any:
    """Join a cluster, or start Ray on this machine, and return the module.

    Args:
        address: the cluster's, "auto", or `LOCAL` for one that starts here and ends with this process.
        jobs: cores of one that starts here; None takes all.

    Raises:
        MachineError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise MachineError(
            '--executor ray needs Ray, which is not installed. Install it with: pip install -e ".[ray]"'
        ) from None

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == LOCAL else {}
    if address not in (LOCAL, "auto"):
        _reach(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray has no class of its own for this
        raise MachineError(
            f"The Ray cluster at '{address}' cannot be joined: {last_line(error)}. Its nodes run `ray start --head` "
            "or `ray start --address HOST:PORT`; call stages.run on one of them."
        ) from None
    return ray


def _reach(address: str) -> None:
    """Refuse an address where nothing is: Ray itself would try for a minute, and end the process."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():  # ray:// is for drivers outside of the cluster
        raise MachineError(
            f"--address '{address}' is no address of a cluster's head. Give HOST:PORT, or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"No Ray cluster answers at '{address}' ({error}). Start one with `ray start --head`, or give the address "
            "that it has printed."
        ) from None


def probed(
    ray: Any, look: Callable[..., str | None], arguments: Sequence[object], needs: str
) -> dict[str, str]:
    """Ask each node that could run stages whether it can, and return the nodes' names by their numbers.

    Args:
        ray: the module, joined to the cluster.
        look: runs on a node, and returns why it cannot.
        arguments: of `look`.
        needs: what all nodes must have, for people.

    Raises:
        MachineError: a node cannot, or there is none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    names = _names(nodes)
    if not names:
        raise MachineError("No node of the Ray cluster has a core to run stages on. Look with: ray status")

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node may be unable to import it
    probe = ray.remote(look)
    asked = {
        name: probe.options(num_cpus=0, max_retries=0, scheduling_strategy=At(number, soft=False)).remote(
            *arguments
        )
        for number, name in names.items()
    }
    faults: dict[str, list[str]] = {}
    deadline = time.monotonic() + PROBE
    for name, reference in asked.items():
        try:
            fault = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            fault = f"does not answer within {PROBE:.0f} s"
        except ray.exceptions.RayError as error:
            fault = f"cannot run a task: {last_line(error)}"
        if fault:
            faults.setdefault(fault, []).append(name)
    if faults:
        raise MachineError(
            "; ".join(f"Ray node {', '.join(those)} {fault}" for fault, those in faults.items())
            + f". All nodes need {needs}, and an environment in which the project is installed, active where "
            "`ray start` is called. Mend or remove the node, then run the same command again."
        )
    return names


def _names(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the nodes' names for people by their numbers: the host's, with the number where a host has several."""
    hosts = [node["NodeManagerHostname"] for node in nodes]
    return {
        node["NodeID"]: host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        for node, host in zip(nodes, hosts, strict=True)
    }


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text: Ray's begin with the traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


# --- On a node ---


def _shared(root: str, folder: str) -> str | None:
    """Return what is wrong with a node's view of the project's folder."""
    if not Path(root).is_dir():
        return f"has no folder {root}"
    if not Path(folder).is_dir():
        return f"has another folder {root} than this machine: it is not shared"
    return None


def look(root: str, folder: str) -> str | None:
    """Return why stages cannot run in the project's folder on this node; None where they can."""
    return _shared(root, folder) or _imports(root, "import pipeline.execution.preload")


def look_apart(archive: bytes, remote: str, config: dict[str, Any], probe: str) -> str | None:
    """Return why stages cannot run on this node in a folder of its own; None where they can."""
    folder = workspace(archive)
    fault = _imports(folder, "import pipeline.execution.preload, dvc.repo")
    if fault:
        return fault
    _enter(folder)

    from pipeline.execution import apart

    return apart.look(folder, remote, config, probe)


def workspace(archive: bytes) -> str:
    """Return this process's folder of the project's sources, after it has taken away those of processes that ended.

    Its name holds the process, since each works alone; the host, since several may share a home; and the sources, since
    another process may have had this number before, with others.
    """
    import hashlib
    import io
    import tarfile

    base = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "stillhouse") / "work"
    mine = base / socket.gethostname()
    folder = mine / f"{os.getpid()}-{hashlib.sha256(archive).hexdigest()[:12]}"
    if not folder.exists():
        mine.mkdir(parents=True, exist_ok=True)
        for old in mine.iterdir():
            process = old.name.partition("-")[0]
            if process.isdigit() and (int(process) == os.getpid() or not _lives(int(process))):
                shutil.rmtree(old, ignore_errors=True)
        part = folder.with_suffix(".part")
        part.mkdir(mode=0o700)  # it will hold the remote's settings, of which some are secrets
        with tarfile.open(fileobj=io.BytesIO(archive)) as content:
            content.extractall(part, filter="data")
        part.rename(folder)
    return str(folder)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _imports(root: str, program: str) -> str | None:
    """Return why a program of imports does not run on this node; None where it does."""
    import subprocess

    command = ["python", "-c", program]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "has no `python`"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"has a `python` that cannot import the project: {reason}"
    return None


def run(root: str, folder: str, job: str, note: str) -> str | None:
    """Run a job on this node, and return why it has failed."""
    fault = _shared(root, folder)
    if fault:  # a node that has come since the others were asked
        return f"the Ray node that it was given to {fault}"
    _enter(root)

    from pipeline.execution import on_node
    from pipeline.execution.job import from_json

    return on_node.run(from_json(job), Path(note))


def run_apart(
    root: str, archive: bytes, job: str, sent: dict[str, Any], remote: tuple[str, dict[str, Any]]
) -> dict[str, Any]:
    """Run a job on this node in a folder of its own, and return why it has failed, its log, and what it has made."""
    folder = workspace(archive)
    _enter(folder)

    from pipeline.execution import apart
    from pipeline.execution.job import from_json

    return apart.run(root, Path(folder), from_json(job), sent, remote)


def _enter(root: str) -> None:
    os.chdir(root)
    if sys.path[0] != root:
        sys.path.insert(0, root)  # before an installed one, as `python -m` does
