"""What stages read and make, sent through a DVC remote: for nodes that share no folder with this machine.

What DVC caches goes by its hash, from one cache into the remote and out of it into the other; a remote that has it
already gets nothing. What git keeps instead, such as metrics, is small and goes along with the job. The sources go to
a node as a whole. `remote_store` has the part that nodes do, too.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts.closure import PACKAGES
from pipeline.errors import MachineError, ParamsError
from pipeline.execution import locks, remote_store
from pipeline.execution.job import Job
from pipeline.execution.remote_store import Sent

FILES = ("dvc.yaml", "params.yaml", ".dvcignore")
DEFAULT = "default"  # stands for the remote that `dvc push` takes


class Transfer:
    """Sends what jobs read, and gets what they have made.

    Args:
        repo: a `dvc.repo.Repo`.
        stages: its stages, by name.
        graph: of all stages, in which those that a stage depends on are its successors.
        remote: the DVC remote's name, or "default" for the one that is DVC's default.

    Raises:
        ParamsError: there is no such remote.
    """

    def __init__(self, repo: Any, stages: Mapping[str, Any], graph: Any, remote: str) -> None:
        self._repo, self._stages, self._graph = repo, stages, graph
        self._there: set[Any] = set()  # hashes of what this run knows to be in the remote: to ask takes time
        known = repo.config["remote"]
        if remote == DEFAULT and remote not in known:
            remote = repo.config["core"].get("remote", remote)
        if remote not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ParamsError(
                f"DVC has no remote '{remote}'; there is {names}. Add it with: dvc remote add {remote} ADDRESS"
            )
        self.remote = remote
        # DVC's strings are of types of its own.
        self.config = {
            name: str(value) if isinstance(value, str) else value for name, value in known[remote].items()
        }

    def archive(self) -> bytes:
        """Return what a node needs of the project to run its stages, as a tar file."""
        root, content = Path(self._repo.root_dir), io.BytesIO()
        sources = [path for package in PACKAGES for path in (root / package).rglob("*") if _is_source(path)]
        with tarfile.open(fileobj=content, mode="w:gz", dereference=True) as archive:
            for path in [*sources, *(root / name for name in FILES if (root / name).is_file())]:
                archive.add(path, path.relative_to(root).as_posix())
        return content.getvalue()

    def send(self, job: Job) -> Sent:
        """Send what a job's stages may read, and return what a node must know to get it.

        That is what all stages before them have made: their own dependencies are often a json that says what to read.

        Raises:
            MachineError: a stage is of another dvc.yaml, DVC does not know an out's hash, or the remote takes nothing.
        """
        own = Path(self._repo.root_dir) / FILES[0]
        foreign = [name for name in job.stages if Path(self._stages[name].path) != own]
        if foreign:
            raise MachineError(
                f"{foreign[0]} is no stage of {own}, and nodes get no other file of stages. Run it on this machine: "
                f"python -m stages.run {foreign[0]}"
            )
        outs = [out for stage in self._before(job) for out in stage.outs]
        remote_store.push(self._repo, [out for out in outs if out.hash_info not in self._there], self.remote)
        self._there |= {out.hash_info for out in outs if out.use_cache}
        return remote_store.described(outs, Path(self._repo.root_dir))

    def receive(self, job: Job, sent: Sent) -> None:
        """Put what a job's stages have made on a node where they would have made it here.

        Raises:
            MachineError: the remote does not have it.
        """
        outs = [out for name in job.stages for out in self._stages[name].outs]
        self._there |= remote_store.pull(self._repo, outs, sent, self.remote)

    @contextmanager
    def probe(self) -> Iterator[str]:
        """Have a file in the remote within the block, and give its path there: nodes look whether they can read it.

        Raises:
            MachineError: nothing can be written there.
        """
        try:
            store = remote_store.store_of(self._repo, self.remote)
            path = remote_store.written(store)
        except Exception as error:  # what the store's own library raises
            raise MachineError(
                f"Nothing can be written to the DVC remote '{self.remote}': {locks.text(error)}. Look with: "
                "dvc remote list"
            ) from None
        try:
            yield path
        finally:
            remote_store.removed(store, path)

    def _before(self, job: Job) -> list[Any]:
        """Return all stages that a job's stages depend on, directly or not."""
        waiting, seen = [self._stages[name] for name in job.stages], dict[str, Any]()
        while waiting:
            for stage in self._graph.successors(waiting.pop()):
                if stage.addressing not in seen:
                    seen[stage.addressing] = stage
                    waiting.append(stage)
        return list(seen.values())


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts
