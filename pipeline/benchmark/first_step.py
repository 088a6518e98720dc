"""What a process does before it trains, timed part by part.

Run as a module it does it and prints the moments as json: `python -m pipeline.benchmark.first_step DEVICE SAMPLES`.
"""

from __future__ import annotations

import gc
import json
import sys
import time

MOMENTS = ("python", "imports", "context", "data", "network", "step", "second_step")  # each the end of a part
SIZE, CLASSES, BATCH = 32, 100, 64


def main(name: str, samples: int, *, alone: bool = False) -> dict[str, float]:
    """Start as a distillation does, on generated images, and return when each part ended, in seconds since 1970.

    Args:
        name: torch's name of the device.
        samples: number of images.
        alone: the process does nothing else, so what it has imported stays out of garbage collection.
    """
    moments = {"python": time.time()}

    gc.disable()  # as stages do, see `command.loading`

    import torch

    import pipeline.training.distill  # noqa: F401  # imported to be timed, as a stage imports it
    from pipeline.benchmark.timing import synchronize
    from pipeline.compute.machine import machine
    from pipeline.networks.network import build
    from pipeline.networks.spec import NetworkSpec
    from pipeline.params.recipe import Recipe
    from pipeline.training.optimizer import recipe_optimizer

    gc.enable()
    if alone:
        gc.freeze()
    moments["imports"] = time.time()

    where = machine(name)
    torch.zeros(1, device=where.device).add_(1)
    synchronize(where.device)
    moments["context"] = time.time()

    images = torch.zeros(samples, 3, SIZE, SIZE, dtype=torch.uint8).to(where.device)
    synchronize(where.device)
    moments["data"] = time.time()

    spec = NetworkSpec(family="resnet", network="resnet8x4", size=SIZE, channels=3, classes=CLASSES)
    network = build(spec, 0).train()
    where.place(network)
    optimizer = recipe_optimizer(list(network.parameters()), Recipe(), fused=where.fused)
    synchronize(where.device)
    moments["network"] = time.time()

    for moment in ("step", "second_step"):
        with where.autocast():
            logits = network(images[:BATCH].float())
        optimizer.zero_grad(set_to_none=True)
        logits.float().logsumexp(dim=1).mean().backward()
        optimizer.step()
        synchronize(where.device)
        moments[moment] = time.time()
    return moments


if __name__ == "__main__":
    device, number = sys.argv[1:]
    print(json.dumps(main(device, int(number), alone=True)))
