"""Outs between DVC's cache of this machine and a DVC remote: what both a run and its nodes do with it.

A store raises whatever its library does, be it DVC's own, fsspec's or boto's: all of it is told in a line.

`Sent` is made of Python's own types: a node gets it before it can import the project.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.artifacts.publish import writing
from pipeline.errors import MachineError
from pipeline.execution import locks

Sent = dict[str, dict[str, Any]]  # "cached": hash and size by path; "files": content by path


def unusable(repo: Any, remote: str, probe: str) -> str | None:
    """Return why a remote cannot be read, where another machine has written a probe, or written to; None if it can."""
    doing = "read"
    try:
        store = store_of(repo, remote)
        store.fs.cat_file(probe)
        doing = "write to"
        removed(store, written(store))
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
        left = copied(store_of(repo, remote), repo.cache.local)
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


def store_of(repo: Any, remote: str) -> Any:
    """Return what reads and writes the files of a remote."""
    return repo.cloud.get_remote_odb(remote, "push")


def written(store: Any) -> str:
    """Write a file of this call's own into a store, and return its path there."""
    path: str = store.fs.join(store.path, f"stillhouse-{uuid.uuid4().hex}")
    store.fs.makedirs(store.path, exist_ok=True)
    store.fs.pipe_file(path, b"stillhouse")
    return path


def removed(store: Any, path: str) -> None:
    """Take such a file away again, if the store lets it."""
    with suppress(Exception):  # a store may keep all that it has: DVC passes over what is not its own
        store.fs.remove(path)


def _name(out: Any, root: Path) -> str:
    return Path(out.fs_path).relative_to(root).as_posix()
