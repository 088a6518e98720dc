"""What to run where something is wrong, true of what DVC does then.

* What is missing, `dvc repro STAGE` fetches from DVC's cache, or makes. The same holds for a file that was deleted
  because it is damaged.
* What is there and wrong, it mostly leaves as it is: a disk's fault changes neither size nor time, by which DVC knows a
  file, and of bytes that a stage has made itself the cache has the same. So the stage must be forced, and alone:
  `--force` without `--single-item` runs all stages before it as well, trainings included.
"""

from __future__ import annotations

_REPRO = "dvc repro"


def forced(hint: str) -> str:
    """Return the command that makes anew what is there.

    Args:
        hint: the command that makes it where it is missing, "dvc repro STAGE".
    """
    return hint.replace(_REPRO, f"{_REPRO} --force --single-item", 1)


def again(hint: str) -> str:
    """Return the sentence that ends the error of something that is there and wrong.

    Args:
        hint: the command that makes it where it is missing, "dvc repro STAGE"; "dvc repro" where its stage is unknown.
    """
    if hint == _REPRO:  # forced, it would make everything anew
        return f"Delete it, then: {hint}"
    return f"Make it again with: {forced(hint)}"
