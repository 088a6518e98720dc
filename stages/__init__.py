"""The commands. A Python without the project's packages is refused here, before any command imports one."""

import sys
from importlib.util import find_spec

if find_spec("typer") is None:
    sys.exit(
        f"error: {sys.executable} is not the Python that Stillhouse is installed in. Activate its environment "
        "(. .venv/bin/activate), or install it: pip install -e ."
    )
