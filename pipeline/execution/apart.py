"""What a node of a Ray cluster does with a job where it shares no folder with the machine of the run.

It has the project's sources in a folder of its own, and a DVC repository around them whose cache all such folders of
the node share. There the job's inputs are put into their places, its commands run as they do elsewhere, and what they
have made is hashed and pushed.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.raw import place
from pipeline.errors import StillhouseError
from pipeline.execution import locks, on_node, remote_store
from pipeline.execution.job import Job
from pipeline.execution.remote_store import Sent

# The repository of this process: the next job finds it read, and inputs in their places.
_opened: list[Any] = []


def run(root: str, folder: Path, job: Job, sent: Sent, remote: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Run a job in a folder of this node.

    Args:
        root: the project's folder on the machine of the run.
        folder: the folder that stands for it here, with the sources in it.
        job: as it is there.
        sent: what it reads.
        remote: the DVC remote's name and settings.

    Returns:
        "failure", why it has failed or None; "log", what it has printed; and "sent", what it has made.
    """
    from dvc.exceptions import DvcException

    failure: str | None = None
    here = replace(
        job,
        folder=folder / job.folder.relative_to(root),
        log=folder / "logs" / job.log.name,
        environment={**job.environment, **_own(), "DVC_ROOT": str(folder)},
        marks=(),
    )
    made: Sent = {"cached": {}, "files": {}}
    try:
        repo = repository(folder, *remote)
        remote_store.pull(repo, repo.index.outs, sent, remote[0])
        # Those of a run in a subfolder are "../dvc.yaml:NAME".
        names = {name.rpartition(":")[2] for name in job.stages}
        stages = [stage for stage in repo.index.stages if stage.addressing in names]
        for out in (out for stage in stages for out in stage.outs):
            out.remove()

        failure = on_node.run(here, None)
        if failure:  # of several in one process others may have ended well
            stages = [stage for stage in stages if len(stages) > 1 and _has_result(stage)]
        made = _kept(repo, stages, remote[0])
    except (StillhouseError, DvcException, OSError) as error:
        failure = failure or locks.text(error)
    log = here.log.read_bytes() if here.log.exists() else b""
    return {"failure": failure, "log": log, "sent": made}


def repository(folder: Path, remote: str, config: dict[str, Any]) -> Any:
    """Return the DVC repository of a folder on this node; its cache is beside the folder, and others share it."""
    from dvc.repo import Repo

    if not _opened:
        repo = Repo.init(str(folder), no_scm=True, force=True)
        with repo.config.edit() as settings:
            settings["core"] |= {"analytics": False, "remote": remote}
            settings["remote"][remote] = config
            settings["cache"] |= {
                "dir": str(folder.parents[2] / "cache"),
                "type": ["reflink", "hardlink", "copy"],
            }
        repo.close()
        _opened.append(Repo(str(folder)))
    return _opened[0]


def look(folder: str, remote: str, config: dict[str, Any], probe: str) -> str | None:
    """Return why this node cannot use the remote; None where it can."""
    os.chdir(folder)
    return remote_store.unusable(repository(Path(folder), remote, config), remote, probe)


def _own() -> dict[str, str]:
    """Return the variables of this node that hold for it alone: where raw files lie."""
    return {name: os.environ[name] for name in (place.VARIABLE,) if name in os.environ}


def _has_result(stage: Any) -> bool:
    return bool(stage.outs) and all(Path(out.fs_path).exists() for out in stage.outs)


def _kept(repo: Any, stages: list[Any], remote: str) -> Sent:
    """Hash what stages have made, put it into the cache and the remote, and return what is known of it."""
    outs = [out for stage in stages for out in stage.outs]
    for out in outs:
        out.save()
        out.commit()
    remote_store.push(repo, outs, remote)
    return remote_store.described(outs, Path(repo.root_dir))
