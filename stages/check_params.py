"""Check params.yaml as it stands: the first command of every stage whose second one is made of its values.

DVC pastes names and seeds of params.yaml into commands, which a shell reads. The stage `params` has checked them,
but not when DVC is asked to run another stage alone, to go on after errors, or not to look at dependencies.
"""

from __future__ import annotations

from pathlib import Path

from stages import command


def main(params: command.Params = Path("params.yaml")) -> None:
    """Check params.yaml, except what plug-ins know, and write nothing."""
    from pipeline.params import checks
    from pipeline.params.document import read

    checks.check(read(params))


if __name__ == "__main__":
    command.run(main)
