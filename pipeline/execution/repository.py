"""The DVC side of `stages.run`: which stages there are, which are out of date, and how one that has run is recorded.

`Repository` divides what `dvc repro` does with a stage into `begin` and `record`, so that others can begin in between;
what lies between is the command, which is run elsewhere. The result is the same: outs are removed before the command,
the run cache is looked up and written, dvc.lock holds what DVC would write. DVC's own lock is held within each of the
two and not in between, as `dvc repro` does, and what a running stage reads and writes is held in DVC's file of read and
write locks, so a `dvc repro` beside this one waits or refuses as it would beside another.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from pipeline.artifacts import rwlock
from pipeline.artifacts.hashing import content_hash
from pipeline.errors import MachineError, ParamsError
from pipeline.execution import locks
from pipeline.execution.done import Mark
from pipeline.execution.records import Records
from pipeline.execution.stage import Stage, Verdict, described, file_name, outs
from pipeline.execution.transfer import Transfer

FOLDER = "stillhouse"  # in .dvc/tmp, which git does not see: logs, marks, and a copy of dvc.lock while it is written


class Repository:
    """The DVC repository of the working folder, and the stages that were planned in it.

    It is a context: no other `stages.run` of the same project is within one.
    """

    def __init__(self) -> None:
        self._repo: Any = None
        self._graph: Any = None
        self._stages: dict[str, Any] = {}
        self._before: dict[str, list[Any]] = {}  # stages by name, whose outs a stage reads
        self._held: dict[str, ExitStack] = {}
        self._marks: dict[str, Mark] = {}
        self._within = ExitStack()

    def __enter__(self) -> Self:
        """Open the repository, and mend what a kill has left of DVC's own files.

        Raises:
            MachineError: there is none, another run is in it, or DVC cannot read its files.
        """
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # it names dvc.lock whenever it is written
        try:
            self._repo = self._within.enter_context(Repo())
        except NotDvcRepoError:
            raise MachineError(
                f"{Path.cwd()} is in no DVC repository. Go to the folder of dvc.yaml; in a new project: git init && "
                "dvc init."
            ) from None
        except DvcException as error:
            raise _refused(error) from None

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._alone()
            self._records = Records(self.root, self.folder)
            with locks.locked(self._repo):
                if (removed := rwlock.mend(self._repo)) is not None:
                    print(f"{removed} was cut short when DVC was killed, and is removed.", file=sys.stderr)
                self._records.mend()
            self._within.enter_context(self._repo.scm_context(quiet=True))
        except BaseException:
            self._within.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Write what is not in dvc.lock yet, and give back every lock."""
        try:
            with locks.locked(self._repo, None):
                self._write(now=True)
                for held in self._held.values():
                    held.close()
        finally:
            self._within.close()

    @property
    def root(self) -> Path:
        """The repository's folder."""
        return Path(self._repo.root_dir)

    @property
    def folder(self) -> Path:
        """A folder of the run's own files."""
        return Path(self._repo.tmp_dir) / FOLDER

    def plan(self, targets: Sequence[str], *, downstream: bool = False, single: bool = False) -> list[Stage]:
        """Return the stages that `dvc repro` would look at, in its order.

        Args:
            targets: stages, groups of stages or dvc.yaml files; none is all of the working folder's dvc.yaml.
            downstream: from the targets on, instead of up to them.
            single: the targets alone.

        Raises:
            ParamsError: a target that is not there.
            MachineError: DVC cannot read its files.
        """
        from dvc.exceptions import DvcException
        from dvc.repo.reproduce import get_active_graph, plan_repro
        from dvc.stage.exceptions import StageFileDoesNotExistError, StageNotFound

        with locks.locked(self._repo):
            try:
                wanted = self._wanted(targets)
                graph = get_active_graph(self._repo.index.graph)
                steps = wanted if single else plan_repro(graph, wanted, downstream=downstream)
            except (StageNotFound, StageFileDoesNotExistError) as error:
                raise ParamsError(f"{locks.text(error)}. List what there is: dvc stage list --all") from None
            except DvcException as error:
                raise _refused(error) from None

        self._graph = graph
        self._stages = {stage.addressing: stage for stage in steps}
        self._before = {name: list(graph.successors(stage)) for name, stage in self._stages.items()}
        return [
            described(stage, [one.addressing for one in self._before[name]], self._stages)
            for name, stage in self._stages.items()
        ]

    def outdated(self, name: str) -> bool:
        """Tell whether a stage is out of date as things stand."""
        with locks.locked(self._repo):
            return bool(self._stages[name].changed(upstream=self._before[name]))

    def begin(self, name: str, *, force: bool = False) -> Verdict:
        """Make a stage ready to run, unless it is up to date or what it makes can be had from the run cache.

        Args:
            name: a planned stage, whose upstream stages are up to date.
            force: run it in any case.

        It waits for DVC's lock as long as that takes: others run meanwhile.

        Raises:
            MachineError: a file of the stage is busy, or DVC refuses, for instance because a dependency is missing.
        """
        from dvc.exceptions import DvcException

        with locks.locked(self._repo, None):
            try:
                return self._begin(name, force)
            except DvcException as error:
                raise MachineError(f"{name}: {locks.text(error)}") from None

    def record(self, names: Sequence[str]) -> dict[str, str]:
        """Record stages that have run: hash what they made, put it into the caches, and write dvc.lock soon.

        It waits for DVC's lock as long as that takes: what has been made must not be lost.

        Args:
            names: stages that were begun.

        Returns:
            Why a stage could not be recorded, in a line, by its name.
        """
        from dvc.exceptions import DvcException

        refused: dict[str, str] = {}
        with locks.locked(self._repo, None):
            for name in names:
                self._held.pop(name).close()
                try:
                    self._save(self._stages[name])
                except (DvcException, OSError) as error:
                    refused[name] = f"DVC cannot record it: {locks.text(error)}"
            self._write()
        return refused

    def mark(self, name: str) -> Mark:
        """Return what is to be left when a begun stage has run."""
        return self._marks[name]

    def release(self, name: str) -> None:
        """Give back what a stage that has failed was holding."""
        with locks.locked(self._repo, None):
            self._held.pop(name).close()

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables that DVC gives to a stage's commands."""
        from dvc.env import DVC_ROOT, DVC_STAGE

        return {DVC_ROOT: os.environ.get(DVC_ROOT, self._repo.root_dir), DVC_STAGE: name}

    def working_folder(self, name: str) -> Path:
        """Return the folder that a stage's commands run in."""
        return Path(self._stages[name].wdir)

    def transfer(self, remote: str) -> Transfer:
        """Return what sends the planned stages' outs through a DVC remote.

        Raises:
            ParamsError: there is no such remote.
        """
        return Transfer(self._repo, self._stages, self._graph, remote)

    # --- How ---

    def _wanted(self, targets: Sequence[str]) -> list[Any]:
        """Return the stages that targets name, in DVC's order."""
        from dvc.repo.reproduce import collect_stages

        if not targets:
            # DVC would read dvc.yaml and dvc.lock once for the stages and once for the graph, which is needed anyway.
            file = str(Path.cwd() / "dvc.yaml")
            if stages := [stage for stage in self._repo.index.stages if stage.path == file]:
                return stages
        return list(collect_stages(self._repo, targets or ["dvc.yaml"]))

    def _begin(self, name: str, force: bool) -> Verdict:
        stage, before = self._stages[name], self._before[name]
        if stage.frozen or not stage.cmd:  # imports and files that were added: all of it is DVC's
            if stage.reproduce(force=force, upstream=before) is None:
                return Verdict.UNCHANGED
            self._records.add(stage)
            return Verdict.RESTORED

        if not force:
            if not stage.changed(upstream=before):
                return Verdict.UNCHANGED
            if self._made(stage):
                self._save(stage)
                return Verdict.ADOPTED

        stage.remove_outs(ignore_remove=False, force=False)
        if not force and self._restored(stage):
            self._save(stage)
            return Verdict.RESTORED

        stage.save_deps()
        self._marks[name] = Mark(self._mark_file(name), _key(stage), outs(stage))
        held = self._held[name] = ExitStack()
        held.enter_context(locks.holding(self._repo, stage))
        return Verdict.TO_RUN

    def _made(self, stage: Any) -> bool:
        """Tell whether a run that was killed has left a stage's outs, made from what it would be made from now."""
        file = self._mark_file(stage.addressing)
        if not file.exists():
            return False
        stage.save_deps(allow_missing=True)
        return Mark(file, _key(stage), outs(stage)).holds()

    def _restored(self, stage: Any) -> bool:
        """Get what a stage makes out of the run cache, if it is there."""
        from dvc.stage.cache import RunCacheNotFoundError

        try:
            self._repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            return False
        return True

    def _save(self, stage: Any) -> None:
        """Do what DVC does once a command has ended well (`Stage.run`), but for dvc.lock, which waits its turn."""
        # Metrics and plots that git keeps may be out of DVC's cache; with others the run cache would restore a part.
        part = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not part)
        stage.commit()
        self._records.add(stage)

    def _write(self, *, now: bool = False) -> None:
        for stage in self._records.write(now=now):
            self._mark_file(stage.addressing).unlink(missing_ok=True)

    def _mark_file(self, name: str) -> Path:
        return self.folder / "done" / f"{file_name(name)}.json"

    def _alone(self) -> None:
        mine = FileLock(self.folder / "run.lock")
        try:
            self._within.enter_context(mine.acquire(blocking=False))
        except Timeout:
            raise MachineError(
                f"Another stages.run works in {self.root}. Wait for it, or stop it, then run the same command again."
            ) from None


def _key(stage: Any) -> str:
    """Return a hash of a stage's commands and of what it reads; its dependencies have been saved."""
    deps = sorted((str(dep), str(dep.hash_info)) for dep in stage.deps)
    return content_hash([stage.cmd, deps])


def _refused(error: BaseException) -> MachineError:
    text = locks.text(error)
    # A kill of `dvc repro` cuts this file short too, and git may know a newer one: it is not ours to remove.
    cure = "rm dvc.lock, then run the same command again" if "dvc.lock'" in text else "dvc status"
    return MachineError(f"DVC cannot read the project: {text}. Look with: {cure}")
