"""Jobs on the nodes of a Ray cluster, each a Ray task, over a folder that all nodes share.

Placement and queues are Ray's, and so are the retries of what a lost node was running: outs are published whole and a
training resumes from the checkpoint beside its output, so a retry goes on where the lost node has stopped. What a node
does with a job is in `on_node`.

Before anything runs, each node is asked whether it has the project's folder and an environment that can import it.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.artifacts.publish import read_json
from pipeline.errors import MachineError, StillhouseError
from pipeline.execution.job import Ended, Job, Progress
from pipeline.execution.local import GRACE

RETRIES = 3  # of a job whose node is lost
REACH = 5.0  # seconds that a cluster's head has to answer
PROBE = 120.0  # seconds that a node has to answer: it may import torch from a cold disk
CARRIED = (
    "STILLHOUSE_",
    "OMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
)  # beginnings of the user's variables that count
LOCAL = "local"


@dataclass(frozen=True)
class _Running:
    job: Job
    note: Path
    gpu: bool


class RayExecutor:
    """Runs jobs on a Ray cluster.

    Args:
        root: the project's folder, which all nodes share.
        folder: within it, for the run's own files.
        address: the cluster's, host:port or "auto"; without it RAY_ADDRESS, else Ray starts on this machine.
        jobs: at a time; by default as many as the cluster has cores.
        gpu_share: part of a GPU that a job takes which computes on one.
        cpu: compute on CPUs even where there are GPUs.

    Raises:
        MachineError: Ray is not installed, the cluster cannot be joined, or a node cannot run the project's stages.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        *,
        address: str | None = None,
        jobs: int | None = None,
        gpu_share: float = 1.0,
        cpu: bool = False,
    ) -> None:
        self._root, self._jobs, self._gpu_share, self._cpu = root, jobs, gpu_share, cpu
        self._running: dict[Any, _Running] = {}  # by the reference to the task's result
        self._folder = (
            folder / f"ray-{uuid4().hex[:12]}"
        )  # nobody else's: a node that sees it shares the folder
        self._ray = _join(address or os.environ.get("RAY_ADDRESS") or LOCAL, jobs)
        try:
            self._ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            self._folder.mkdir(parents=True)
            self._nodes = self._probed()
            self._count()
        except BaseException:
            self.close()
            raise

    @property
    def gpus(self) -> bool:
        """Whether jobs compute on GPUs."""
        return self._gpus > 0

    def free(self, *, gpu: bool) -> bool:
        """Tell whether a job of this kind would start at once, as far as that is Ray's choice."""
        room = len(self._running) < (self._jobs or self._cpus)
        if not gpu or not self._gpus:
            return room
        return room and sum(each.gpu for each in self._running.values()) < int(self._gpus / self._gpu_share)

    def start(self, job: Job) -> str:
        """Give a job to Ray, which chooses the node, and return "ray"."""
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        if self._cpu:
            carried["STILLHOUSE_DEVICE"] = "cpu"
        theirs = replace(job, environment={**carried, **job.environment})
        note = self._folder / f"{job.log.stem}.json"
        gpu = job.gpu and self._gpus > 0
        job.log.parent.mkdir(parents=True, exist_ok=True)

        task = self._ray.remote(_run).options(
            num_cpus=1, num_gpus=self._gpu_share if gpu else 0, max_retries=RETRIES, name=job.name
        )
        reference = task.remote(str(self._root), str(self._folder), pickle.dumps(theirs), str(note))
        self._running[reference] = _Running(job, note, gpu)
        return "ray"

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none."""
        if not self._running:
            return []
        references = list(self._running)
        ready, _ = self._ray.wait(references, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        self._count()
        return [self._ended(reference) for reference in ready]

    def progress(self, job: Job) -> Progress | None:
        """Return how far a running job is and on which node, or None where it has not started."""
        note = next(each.note for each in self._running.values() if each.job.name == job.name)
        try:
            content = read_json(note, "")
        except StillhouseError:  # it waits for a node
            return None
        title, done, total, text = content["progress"]
        node = self._nodes.get(content["node"], content["node"][:6])
        return Progress(title, done, total, f"{text} on {node}".strip())

    def stop(self) -> None:
        """Interrupt all jobs, and end those that do not end soon."""
        if not self._running:
            return
        references = list(self._running)
        for reference in references:
            self._ray.cancel(reference, force=False)
        _, left = self._ray.wait(references, num_returns=len(references), timeout=GRACE + REACH)
        for reference in left:
            self._ray.cancel(reference, force=True)
        self._ray.wait(left or references, num_returns=len(left or references), timeout=REACH)

    def close(self) -> None:
        """Stop what runs, and leave the cluster; one that was started here ends."""
        self.stop()
        self._running.clear()
        self._ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self) -> None:
        """Count the cluster's cores and GPUs: nodes come and go."""
        resources = self._ray.cluster_resources()
        self._cpus = max(1, int(resources.get("CPU", 0)))
        self._gpus = 0.0 if self._cpu else resources.get("GPU", 0.0)

    def _ended(self, reference: Any) -> Ended:
        running = self._running.pop(reference)
        try:
            failure = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            failure = "interrupted"
        except self._ray.exceptions.RayError as error:
            failure = f"Ray has given it up, after {RETRIES} retries at most: {_last_line(error)}"

        # A disk of another machine may be remembered as it was: to list a folder is to look again.
        for out in (out for mark in running.job.marks for out in mark.outs):
            if out.parent.is_dir():
                list(out.parent.iterdir())
        return Ended(running.job, failure)

    def _probed(self) -> dict[str, str]:
        """Ask each node that could run stages whether it can, and return the nodes' names by their numbers."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        names = _names(nodes)
        if not names:
            raise MachineError(
                "No node of the Ray cluster has a core to run stages on. Look with: ray status"
            )

        probe = self._ray.remote(_look)
        asked = {
            name: probe.options(num_cpus=0, max_retries=0, scheduling_strategy=At(number, soft=False)).remote(
                str(self._root), str(self._folder)
            )
            for number, name in names.items()
        }
        faults: dict[str, list[str]] = {}
        deadline = time.monotonic() + PROBE
        for name, reference in asked.items():
            try:
                fault = self._ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except self._ray.exceptions.GetTimeoutError:
                fault = f"does not answer within {PROBE:.0f} s"
            except self._ray.exceptions.RayError as error:
                fault = f"cannot run a task: {_last_line(error)}"
            if fault:
                faults.setdefault(fault, []).append(name)
        if faults:
            raise MachineError(
                "; ".join(f"Ray node {', '.join(those)} {fault}" for fault, those in faults.items())
                + f". All nodes need {self._root} from one shared disk, and an environment in which the project is "
                "installed, active where `ray start` is called. Mend or remove the node, then run the same command "
                "again."
            )
        return names


def _join(address: str, jobs: int | None) -> Any:
    """Join a cluster, or start Ray on this machine, and return the module."""
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
            f"The Ray cluster at '{address}' cannot be joined: {_last_line(error)}. Its nodes run `ray start --head` "
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


def _names(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the nodes' names for people by their numbers: the host's, with the number where a host has several."""
    hosts = [node["NodeManagerHostname"] for node in nodes]
    return {
        node["NodeID"]: host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        for node, host in zip(nodes, hosts, strict=True)
    }


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


# --- On a node. Ray takes these functions along as they are here: a node may be unable to import the project. ---


def _shared(root: str, folder: str) -> str | None:
    """Return what is wrong with a node's view of the project's folder."""
    if not Path(root).is_dir():
        return f"has no folder {root}"
    if not Path(folder).is_dir():
        return f"has another folder {root} than this machine: it is not shared"
    return None


def _look(root: str, folder: str) -> str | None:
    """Return why stages cannot run on this node; None where they can."""
    import subprocess

    fault = _shared(root, folder)
    if fault:
        return fault
    command = ["python", "-c", "import pipeline.execution.preload"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "has no `python`"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"has a `python` that cannot import the project: {reason}"
    return None


def _run(root: str, folder: str, job: bytes, note: str) -> str | None:
    """Run a job on this node, and return why it has failed."""
    fault = _shared(root, folder)
    if fault:  # a node that has come since the others were asked
        return f"the Ray node that it was given to {fault}"
    os.chdir(root)
    if sys.path[0] != root:
        sys.path.insert(0, root)  # before an installed one, as `python -m` does

    from pipeline.execution import on_node

    return on_node.run(pickle.loads(job), Path(note))
