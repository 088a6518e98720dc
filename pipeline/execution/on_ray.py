"""Jobs on the nodes of a Ray cluster, each a Ray task, over a folder that all nodes share.

Placement and queues are Ray's, and so are the retries of what a lost node was running: outs are published whole and a
training resumes from the checkpoint beside its output, so a retry goes on where the lost node has stopped. What a node
does with a job is in `on_node`.

Before anything runs, each node is asked whether it has the project's folder and an environment that can import it
(`nodes`). Where nodes share no folder, sources go to them as they are and data through a DVC remote (`transfer`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.artifacts.publish import read_json
from pipeline.errors import MachineError, StillhouseError
from pipeline.execution import nodes
from pipeline.execution.job import Ended, Job, Progress, to_json
from pipeline.execution.local import GRACE
from pipeline.execution.transfer import Transfer

RETRIES = 3  # of a job whose node is lost
# Beginnings of the user's variables that count.
CARRIED = ("STILLHOUSE_", "OMP_", "GOMP_", "MKL_", "OPENBLAS_")


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
        transfer: what sends data to nodes that do not share the folder, and gets it from there.

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
        transfer: Transfer | None = None,
    ) -> None:
        self._root, self._jobs, self._gpu_share, self._cpu = root, jobs, gpu_share, cpu
        self._transfer = transfer
        self._running: dict[Any, _Running] = {}  # by the reference to the task's result
        # Nobody else's: a node that sees it shares the project's folder.
        self._folder = folder / f"ray-{uuid4().hex[:12]}"
        self._ray = nodes.join(address or os.environ.get("RAY_ADDRESS") or nodes.LOCAL, jobs)
        try:
            self._folder.mkdir(parents=True)
            self._archive = transfer and self._ray.put(transfer.archive())
            self._nodes = self._probed()
            self._count()
        except BaseException:
            self.close()
            raise

    @property
    def gpus(self) -> bool:
        """Whether jobs compute on GPUs."""
        return self._gpus > 0

    @property
    def places(self) -> int:
        """How many students compute at a time at most."""
        return int(self._gpus / self._gpu_share) or self._jobs or self._cpus

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
        elif carried.get("STILLHOUSE_DEVICE", "").startswith("cuda:"):
            # The only one that the task sees, whatever number it has here.
            carried["STILLHOUSE_DEVICE"] = "cuda"
        theirs = replace(job, environment={**carried, **job.environment})
        note = self._folder / f"{job.log.stem}.json"
        gpu = job.gpu and self._gpus > 0
        job.log.parent.mkdir(parents=True, exist_ok=True)

        options = {
            "num_cpus": 1, "num_gpus": self._gpu_share if gpu else 0, "max_retries": RETRIES, "name": job.name
        }  # fmt: skip
        root, text = str(self._root), to_json(theirs)
        if self._transfer is None:
            task = self._ray.remote(nodes.run).options(**options)
            reference = task.remote(root, str(self._folder), text, str(note))
        else:
            task = self._ray.remote(nodes.run_apart).options(**options)
            remote = (self._transfer.remote, self._transfer.config)
            reference = task.remote(root, self._archive, text, self._transfer.send(job), remote)
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
        _, left = self._ray.wait(references, num_returns=len(references), timeout=GRACE + nodes.REACH)
        for reference in left:
            self._ray.cancel(reference, force=True)
        self._ray.wait(left or references, num_returns=len(left or references), timeout=nodes.REACH)

    def close(self) -> None:
        """Stop what runs, and leave the cluster; one that was started here ends."""
        self.stop()
        self._running.clear()
        self._ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _probed(self) -> dict[str, str]:
        if self._transfer is None:
            arguments: tuple[object, ...] = (str(self._root), str(self._folder))
            needs = f"{self._root} from one shared disk, or --through a DVC remote"
            return nodes.probed(self._ray, nodes.look, arguments, needs)
        with self._transfer.probe() as probe:
            arguments = (self._archive, self._transfer.remote, self._transfer.config, probe)
            return nodes.probed(
                self._ray, nodes.look_apart, arguments, "a DVC remote that they can read and write"
            )

    def _count(self) -> None:
        """Count the cluster's cores and GPUs: nodes come and go."""
        resources = self._ray.cluster_resources()
        self._cpus = max(1, int(resources.get("CPU", 0)))
        self._gpus = 0.0 if self._cpu else resources.get("GPU", 0.0)

    def _ended(self, reference: Any) -> Ended:
        running = self._running.pop(reference)
        try:
            result = self._ray.get(reference)
            failure = (
                result if self._transfer is None else self._received(running.job, result, self._transfer)
            )
        except self._ray.exceptions.TaskCancelledError:
            failure = "interrupted"
        except self._ray.exceptions.RayError as error:
            failure = f"Ray has given it up, after {RETRIES} retries at most: {nodes.last_line(error)}"

        # A disk of another machine may be remembered as it was: to list a folder is to look again.
        for out in (out for mark in running.job.marks for out in mark.outs):
            if out.parent.is_dir():
                list(out.parent.iterdir())
        return Ended(running.job, failure)

    def _received(self, job: Job, result: dict[str, Any], transfer: Transfer) -> str | None:
        """Put what a node has made into its place here, and return why the job has failed."""
        job.log.write_bytes(result["log"])
        failure: str | None = result["failure"]
        try:
            transfer.receive(job, result["sent"])
        except MachineError as error:
            return failure or str(error)
        if failure:
            return failure
        for mark in job.marks:
            mark.leave()
        return None
