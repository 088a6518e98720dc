"""Where a report comes from: commit, dvc.lock, versions, machine and time.

It is gathered when the report is made, and stands in `index.html` and `provenance.json` alone. No stage reads these
two, so a new date reruns nothing, and the report's numbers are the same bytes whenever they are made.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifacts.hashing import content_hash

# Versions that can change a number of the report, by name of the distribution.
PACKAGES = (
    "stillhouse",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "zarr",
    "tensorstore",
    "dvc",
)
OPTIONAL = ("pycocotools",)  # of extras: listed where they are installed
LOCK = "dvc.lock"
# What the pipeline itself writes while it runs: it says nothing of the code.
WRITTEN = (LOCK, "artifacts", "data")
ABSENT = "not installed"
REPORT = "report"  # the stage whose own entry of dvc.lock is only written when it has ended


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from.

    Attributes:
        made: the time, ISO 8601 in UTC.
        commit: the commit's hash; empty where there is none.
        changed: paths that differ from the commit or are new, except what the pipeline writes.
        git: why there is no commit; empty where there is one.
        lock: hash of dvc.lock without the report's own entry; empty where there is none.
        versions: of Python and the packages, by name; "not installed" where one is missing.
        machine: what the report was made on, by name.
    """

    made: str
    commit: str
    changed: tuple[str, ...]
    git: str
    lock: str
    versions: dict[str, str]
    machine: dict[str, str]

    @property
    def line(self) -> str:
        """Commit and versions in short, for the top of the page."""
        source = f"commit {self.commit[:10]}" if self.commit else self.git
        if self.changed:
            source += ", with uncommitted changes"
        packages = ", ".join(f"{name} {self.versions[name]}" for name in ("stillhouse", "torch"))
        return f"{source}; {packages}."


def gather(folder: Path) -> Provenance:
    """Gather the provenance of a report that is made now.

    Args:
        folder: of the project: dvc.lock lies in it, and it may be in a git repository.
    """
    commit, changed, reason = _git(folder)
    return Provenance(
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit,
        changed=changed,
        git=reason,
        lock=_lock(folder / LOCK),
        versions={"Python": platform.python_version()} | _versions(),
        machine=_machine(),
    )


def _git(folder: Path) -> tuple[str, tuple[str, ...], str]:
    """Return the commit, the changed paths, and the reason where there is no commit."""
    code, commit = _run(folder, "rev-parse", "HEAD")
    if code != 0:
        inside, _ = _run(folder, "rev-parse", "--is-inside-work-tree")
        return "", (), "no commit yet" if inside == 0 else "not in a git repository"

    # Without renames a line is two letters, a blank and one path; with -z no path is quoted.
    left_out = [f":(exclude){path}" for path in WRITTEN]
    _, status = _run(folder, "status", "--porcelain", "-z", "--no-renames", "--", ".", *left_out)
    return commit.strip(), tuple(sorted(line[3:] for line in status.split("\0") if line)), ""


def _run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run git without its optional locks, since DVC may be using the repository too."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:  # git is not on this machine
        return 1, ""
    return done.returncode, done.stdout


def _lock(path: Path) -> str:
    """Return the hash of dvc.lock without the report's entry: so it is the same before and after the report is made."""
    try:
        content = YAML(typ="safe").load(path.read_text())
        stages = {name: stage for name, stage in content["stages"].items() if name != REPORT}
    except (OSError, YAMLError, KeyError, TypeError, AttributeError):
        return ""  # there is none, or it is not DVC's: the report's numbers do not depend on it
    return content_hash(stages)


def _versions() -> dict[str, str]:
    optional = {name: version for name in OPTIONAL if (version := _version(name)) != ABSENT}
    return {name: _version(name) for name in PACKAGES} | optional


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


def _machine() -> dict[str, str]:
    """Return what this machine is, as far as it says so; no name of a host or a person."""
    kind = {"system": f"{platform.system()} {platform.release()}", "architecture": platform.machine()}
    return kind | {"CPU": _cpu(), "cores": str(os.cpu_count() or "unknown"), "memory": _memory()}


def _cpu() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # only Linux has the file
        model = None
    return model[1] if model else platform.processor() or "unknown"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system may lack these names
        return "unknown"
    return f"{size / 2**30:.0f} GiB"
