"""What stages read and make, sent through a DVC remote: for nodes that share no folder with this machine.

What DVC caches goes by its hash, from one cache into the remote and out of it into the other; a remote that has it
already gets nothing. What git keeps instead, such as metrics, is small and goes along with the job. The sources go to
a node as a whole.

`Sent` is made of Python's own types: a node gets it before it can import the project.
"""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.artifacts.closure import PACKAGES
from pipeline.artifacts.publish import writing
from pipeline.errors import MachineError, ParamsError
from pipeline.execution import locks
from pipeline.execution.job import Job

FILES = ("dvc.yaml", "params.yaml", ".dvcignore")
DEFAULT = "default"  # stands for the remote that `dvc push` takes
Sent = dict[str, dict[str, Any]]  # "cached": hash and size by path; "files": content by path


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
            MachineError: DVC does not know an out's hash, or the remote takes nothing.
        """
        outs = [out for stage in self._before(job) for out in stage.outs]
        push(self._repo, [out for out in outs if out.hash_info not in self._there], self.remote)
        self._there |= {out.hash_info for out in outs if out.use_cache}
        return described(outs, Path(self._repo.root_dir))

    def receive(self, job: Job, sent: Sent) -> None:
        """Put what a job's stages have made on a node where they would have made it here.

        Raises:
            MachineError: the remote does not have it.
        """
        outs = [out for name in job.stages for out in self._stages[name].outs]
        self._there |= pull(self._repo, outs, sent, self.remote)

    @contextmanager
    def probe(self) -> Iterator[str]:
        """Have a file in the remote within the block, and give its path there: nodes look whether they can read it.

        Raises:
            MachineError: nothing can be written there.
        """
        try:
            store = _store(self._repo, self.remote)
            path = _written(store)
        except Exception as error:  # what the store's own library raises
            raise MachineError(
                f"Nothing can be written to the DVC remote '{self.remote}': {locks.text(error)}. Look with: "
                "dvc remote list"
            ) from None
        try:
            yield path
        finally:
            _removed(store, path)

    def _before(self, job: Job) -> list[Any]:
        """Return all stages that a job's stages depend on, directly or not."""
        waiting, seen = [self._stages[name] for name in job.stages], dict[str, Any]()
        while waiting:
            for stage in self._graph.successors(waiting.pop()):
                if stage.addressing not in seen:
                    seen[stage.addressing] = stage
                    waiting.append(stage)
        return list(seen.values())


def unusable(repo: Any, remote: str, probe: str) -> str | None:
    """Return why a remote cannot be read, where another machine has written a probe, or written to; None if it can."""
    doing = "read"
    try:
        store = _store(repo, remote)
        store.fs.cat_file(probe)
        doing = "write to"
        _removed(store, _written(store))
    except Exception as error:  # what the store's own library raises
        return f"cannot {doing} the DVC remote '{remote}': {locks.text(error)}"
    return None


def push(repo: Any, outs: Iterable[Any], remote: str) -> None:
    """Put outs that are in DVC's cache into a remote, unless it has them.

    Raises:
        MachineError: one of them is not there, or the remote takes nothing.
    """
    cached = [out for out in outs if out.use_cache]
    unknown = [out for out in cached if not out.hash_info]
    if unknown:
        raise MachineError(
            f"DVC does not know what {unknown[0]} holds. Make it with: dvc repro {unknown[0].stage.addressing}"
        )
    digests = {out.hash_info for out in cached}
    _move(repo, remote, "pushed to", lambda store, cache: _copied(cache, store, digests, cache))


def pull(repo: Any, outs: Iterable[Any], sent: Sent, remote: str) -> set[Any]:
    """Get outs out of a remote, put all that was sent into its place, and return the outs' hashes.

    Args:
        repo: a `dvc.repo.Repo`.
        outs: those of its outs that may have been sent.
        sent: what was.
        remote: the DVC remote's name.

    Raises:
        MachineError: the remote does not have it.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    root = Path(repo.root_dir)
    cached = [out for out in outs if _name(out, root) in sent["cached"]]
    for out in cached:
        digest, meta = sent["cached"][_name(out, root)]
        out.hash_info, out.meta, out.obj = HashInfo.from_dict(digest), Meta.from_dict(meta), None
    digests = {out.hash_info for out in cached}

    def copied(store: Any, cache: Any) -> set[Any]:
        # First the lists of folders, then what they list.
        return _copied(store, cache, digests, cache, shallow=True) or _copied(store, cache, digests, cache)

    _move(repo, remote, "pulled from", copied)
    for out in cached:
        _checked_out(out)

    for name, content in sent["files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with writing(root / name) as part:
            part.write_bytes(content)
    return digests


def described(outs: Iterable[Any], root: Path) -> Sent:
    """Return the hashes of outs that DVC caches, and what is in the others."""
    sent: Sent = {"cached": {}, "files": {}}
    for out in outs:
        if out.use_cache:
            sent["cached"][_name(out, root)] = (out.hash_info.to_dict(), out.meta.to_dict())
            continue
        path = Path(out.fs_path)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                sent["files"][file.relative_to(root).as_posix()] = file.read_bytes()
    return sent


def _move(repo: Any, remote: str, what: str, copied: Callable[[Any, Any], set[Any]]) -> None:
    """Copy between a remote and the cache, by a function of both that returns what it could not copy."""
    try:
        left = copied(_store(repo, remote), repo.cache.local)
    except Exception as error:  # what the store's own library raises
        reason = locks.text(error)
    else:
        if not left:
            return
        reason = f"{len(left)} of its files are missing or were refused"
    raise MachineError(
        f"Outs cannot be {what} the DVC remote '{remote}': {reason}. See that it is there and may be written, then run "
        "the same command again."
    )


def _copied(source: Any, target: Any, digests: set[Any], cache: Any, *, shallow: bool = False) -> set[Any]:
    """Copy what the target lacks, and return what could not be copied.

    Args:
        source: has the files.
        target: gets them.
        digests: of files, and of folders, whose files are meant, too.
        cache: of the two the one on this machine, which has the lists of folders.
        shallow: copy the lists of folders alone.
    """
    from dvc_data.hashfile.transfer import transfer

    missing: set[Any] = set()
    result = transfer(
        source, target, digests,
        cache_odb=cache, shallow=shallow, validate_status=lambda status: missing.update(status.missing),
    )  # fmt: skip
    return missing | result.failed


def _checked_out(out: Any) -> None:
    from dvc.exceptions import DvcException

    try:
        out.checkout(force=True)
    except DvcException as error:  # it would list every file
        raise MachineError(
            f"{out} cannot be put into its place out of DVC's cache ({type(error).__name__}). See that the disk has "
            "room, then run the same command again."
        ) from None


def _store(repo: Any, remote: str) -> Any:
    return repo.cloud.get_remote_odb(remote, "push")


def _written(store: Any) -> str:
    """Write a file of this call's own into a store, and return its path there."""
    path: str = store.fs.join(store.path, f"stillhouse-{uuid.uuid4().hex}")
    store.fs.makedirs(store.path, exist_ok=True)
    store.fs.pipe_file(path, b"stillhouse")
    return path


def _removed(store: Any, path: str) -> None:
    with suppress(Exception):  # a store may keep all that it has: DVC passes over what is not its own
        store.fs.remove(path)


def _name(out: Any, root: Path) -> str:
    return Path(out.fs_path).relative_to(root).as_posix()


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts
