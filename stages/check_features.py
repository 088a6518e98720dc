"""Recompute a sample of stored rows and compare; describe what the store holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The teacher's check.json, made by stages.params.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared data.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    out: Annotated[Path, typer.Option(help="Json of metrics to make.")],
    summary: Annotated[Path, typer.Option(help="Json to make: what each feature's channels look like.")],
    device: command.Device = "auto",
    rows: Annotated[int, typer.Option(help="Rows of each split to recompute.", min=1)] = 256,
) -> None:
    """Check a store against the live teacher; fail where rounding is no excuse. Say what its features see."""
    from pipeline.params.base import load_asked
    from pipeline.params.teachers import CheckBlock

    asked = load_asked(CheckBlock, block)
    if asked is None:  # of a detector nothing is stored
        from pipeline.artifacts import publish

        with publish.replacing(summary, out):
            publish.write_json(summary, None)
            publish.write_json(out, {})
        return
    hint = f"dvc repro extract_features@{asked.teacher}"

    with command.loading():
        from pipeline import progress
        from pipeline.artifacts import advice, hashing, publish
        from pipeline.artifacts.seal import sealed
        from pipeline.compute.machine import machine
        from pipeline.data.normalize import Normalize
        from pipeline.data.prepared import Prepared
        from pipeline.data.views import view_space
        from pipeline.errors import StaleArtifactError
        from pipeline.features import contents
        from pipeline.features import manifest as manifests
        from pipeline.features.check import Live, compare, summarize
        from pipeline.features.difference import worst
        from pipeline.features.loss import Loss, losses
        from pipeline.features.receptive import receptive_fields
        from pipeline.features.verification import verify
        from pipeline.networks.weights import load

    with publish.replacing(summary, out):
        prepared, where, manifest = Prepared.open(data), machine(device), manifests.read(store, hint)
        meta = prepared.meta
        networks = {checkpoint: load(weights, checkpoint)[0] for checkpoint in manifest.weights}

        contents.require(
            store,
            manifest,
            data=meta.fingerprint,
            mean=meta.mean,
            std=meta.std,
            weights={key: hashing.file_hash(weights / f"{key}.safetensors") for key in manifest.weights},
        )

        # All of it before a sample of it: what is compared and described below is what was written.
        verify(store, manifest)

        space, normalize = view_space(manifest.views), Normalize(meta.mean, meta.std, where.device)

        found, lost = [], dict[str, Loss]()
        for checkpoint, network in networks.items():
            # In the precision of the store: what another one costs would look like damage.
            live = Live.of(network, manifest.precision, where.device, normalize)
            found += compare(store, manifest, live, checkpoint, prepared.splits, space, rows=rows)
            lost |= losses(
                store,
                manifest,
                live.exact,
                normalize,
                checkpoint,
                prepared.splits,
                space,
                asked.temperatures,
                rows,
            )

        most = worst(found)
        # The share of what rounding explains; above 1 something else is wrong.
        if most.share > 1:
            raise StaleArtifactError(f"{store}: {most}. {advice.again(f'dvc repro {manifest.made_by}')}")

        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        files = sum(path.is_file() for path in store.rglob("*"))
        # One checkpoint is described: channels and fields are those of one network.
        checkpoint = next(iter(manifest.weights))
        # Codes are indices, of which a mean says nothing.
        floats = {name: kept for name, kept in manifest.features.items() if kept.dtype.startswith("float")}
        seen = receptive_fields(networks[checkpoint], floats, meta.size, meta.channels)

        features = {
            name: stored.model_dump(mode="json")
            | summarize(store, checkpoint, name)
            | ({"field": asdict(seen[name])} if name in seen else {})
            for name, stored in floats.items()
        }
        publish.write_json(
            summary,
            {
                "made_by": asked.stage,
                "bytes": size,
                "files": files,
                "weights": manifest.weights,
                "data": manifest.data,
                "features": features,
            },
        )

        errors = {one.array: one.error for one in found if one.measure == "value"}
        # An array is measured in several ways; the worst speaks for it.
        shares: dict[str, float] = {}
        for one in found:
            shares[one.array] = max(one.share, shares.get(one.array, 0.0))
        measured: dict[str, object] = {
            "precision": manifest.precision,
            "largest_share": most.share,
            "largest_error": max(errors.values()),
            "bytes": size,
            "files": files,
            "error": errors,
            "share": shares,
        }
        # Only where something is: metrics of other stores stay as they were.
        if lost:
            measured["lost"] = {array: asdict(loss) for array, loss in lost.items()}
        for array, loss in lost.items():
            progress.say(f"{array}: {loss}.")
        publish.write_json(out, sealed(measured, asked.model_dump(mode="json"), summary))


if __name__ == "__main__":
    command.run(main)
