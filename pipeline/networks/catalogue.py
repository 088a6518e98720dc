"""The names of all networks: in which family of `pipeline/networks/families/` a network stands.

A name of one of our own families is enough, since no two families share one. "FAMILY/NAME" names the family too, which
an open family such as timm needs: it knows more names than it lists. "package.module:function" is an import path.
"""

from __future__ import annotations

import difflib
from types import ModuleType

from pipeline import plugin
from pipeline.errors import UnknownNameError, foreign, unknown_name

IMPORTED = "imported"  # the family of import paths
_SHOWN = 2  # names of a family in an error: all families share a line


def family_of(name: str) -> tuple[str, str]:
    """Return the family of a network and its name there: "resnet8x4" -> ("resnet", "resnet8x4").

    With the family in the name, "timm/convnext_tiny", no other one is imported.

    Args:
        name: NAME, FAMILY/NAME or package.module:function.

    Raises:
        UnknownNameError: no such family, or none that has the network.
    """
    families = plugin.names("networks")
    family, slash, network = name.partition("/")
    if ":" in family:
        return IMPORTED, name
    if slash:
        if family not in families:
            raise unknown_name("network family", family, families)
        if not _has(plugin.load("networks", family), network):
            raise _unknown(name, [family])
        return family, network

    # The family that the name begins with is the likely one: torchvision's take two seconds to import.
    for family in sorted(families, key=lambda family: not name.startswith(family)):
        if name in plugin.load("networks", family).NETWORKS:
            return family, name
    raise _unknown(name, families)


def source_of(family: str, network: str) -> str:
    """Return the hash of a network's code where that is not the family's own, "" where it is.

    Raises:
        ParamsError: its code cannot be found.
    """
    source: str = plugin.load("networks", family).source(network) if family == IMPORTED else ""
    return source


def _has(family: ModuleType, network: str) -> bool:
    return network in family.NETWORKS or (bool(network) and getattr(family, "OPEN", False))


def _unknown(name: str, families: list[str]) -> UnknownNameError:
    """Return the error for a network that none of `families` has: near names first, then some of each family."""
    known = {family: plugin.load("networks", family) for family in families}
    names = [network for module in known.values() for network in module.NETWORKS]
    near = difflib.get_close_matches(name.rpartition("/")[2], names, n=3)
    guess = f" Did you mean {' or '.join(repr(network) for network in near)}?" if near else ""
    listed = ", ".join(_listed(family, module) for family, module in known.items())
    return UnknownNameError(f"Unknown network '{name}'.{foreign(name)}{guess} Known, by family: {listed}.")


def _listed(family: str, module: ModuleType) -> str:
    if getattr(module, "OPEN", False):
        form = getattr(module, "FORM", None)
        return f"{family} ('{form}')" if form else f"{family} ('{family}/NAME' for any NAME that it has)"
    first, more = list(module.NETWORKS)[:_SHOWN], len(module.NETWORKS) - _SHOWN
    return f"{family} ({' '.join(first)}{f' and {more} more' if more > 0 else ''})"
