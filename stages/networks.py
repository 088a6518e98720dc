"""List the networks: name, parameters, multiply-accumulates and taps for images of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stages import command


def main(
    size: Annotated[
        int, typer.Option(min=1, max=4096, help="Height and width of the images, in pixels.")
    ] = 32,
    channels: Annotated[int, typer.Option(min=1, max=4096, help="Channels of the images.")] = 3,
    classes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of classes.")] = 100,
    json: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the list as records, with every tap.")
    ] = None,
) -> None:
    """List all networks with their parameters, multiply-accumulates and taps."""
    from pipeline import plugin
    from pipeline.artifacts.publish import write_json

    records = []
    open_families = []
    for family in plugin.names("networks"):
        module = plugin.load("networks", family)
        records += [_describe(family, name, size, channels, classes) for name in module.NETWORKS]
        if getattr(module, "OPEN", False):
            open_families.append(family)
    _print(records, f"{channels}x{size}x{size} images, {classes} classes", open_families)
    if json is not None:
        write_json(json, records)


def _describe(family: str, name: str, size: int, channels: int, classes: int) -> dict[str, Any]:
    """Return what is known of one network; `reason` where it cannot read these images."""
    import torch

    with command.loading():
        from pipeline.errors import StillhouseError
        from pipeline.evaluation import cost
        from pipeline.networks import network
        from pipeline.networks.spec import NetworkSpec

    record: dict[str, Any] = {"name": name, "family": family}
    spec = NetworkSpec(family=family, network=name, size=size, channels=channels, classes=classes)
    try:
        with torch.device("meta"):  # shapes alone: nothing is drawn and nothing is computed
            built = network.build(spec, 0)
            taps = network.probe(built, size, channels)
            multiplies = cost.macs(built, size, channels)
    except StillhouseError as error:
        # It stays in the list, with the reason why it cannot read these images.
        return record | {"reason": str(error)}

    shapes = {tap: list(shape) for tap, shape in taps.items()}
    return record | {
        "params": cost.num_params(built),
        "macs": multiplies,
        "units": list(built.units),
        "taps": shapes,
    }


def _print(records: list[dict[str, Any]], title: str, open_families: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = 180

    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("network", no_wrap=True)
    table.add_column("family", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("taps")

    for before, record in zip([None, *records], records, strict=False):
        if before is not None and before["family"] != record["family"]:
            table.add_section()
        if "reason" in record:
            table.add_row(record["name"], record["family"], "", "", record["reason"], style="dim")
        else:
            numbers = (f"{record['params']:,}", f"{record['macs'] / 1e6:,.1f} M")
            table.add_row(record["name"], record["family"], *numbers, _taps(record))

    notes = ["--json tells all taps, _block1 (a stage's first block) and _pre (before an activation) too."]
    notes += [f"Family '{name}' takes any name that its library knows." for name in open_families]
    table.caption = "\n".join(notes)
    console.print(table)


def _taps(record: dict[str, Any]) -> str:
    names = [*record["units"], "final", "pooled"]
    # A hard space keeps a name and its shape on one line.
    return "  ".join(f"{name}\xa0{'x'.join(map(str, record['taps'][name]))}" for name in names)


if __name__ == "__main__":
    command.run(main)
