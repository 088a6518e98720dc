"""Methods that run a classifier on the last map themselves (SDD, SimKD): it must read the mean of this map."""

from __future__ import annotations

from pipeline.errors import ParamsError
from pipeline.networks.architecture import Architecture


def require_mean(method: str, role: str, network: Architecture) -> None:
    """Refuse a network whose classifier does not read the mean of its last map.

    Raises:
        ParamsError: it reads something else.
    """
    if not network.averages:
        raise ParamsError(
            f"{method} reads 'final' by the {role}'s classifier, which does not read the mean of this map. Choose a "
            f"{role} of another family, in params.yaml."
        )
