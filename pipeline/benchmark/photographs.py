"""An image folder that is indexed: peak memory at two sizes, and how fast its images are decoded.

Were all images of the larger set held, even as the views that a network sees, the peaks would grow by more than
their target.

Run as a module it does one task and prints its peak: `python -m pipeline.benchmark.photographs TASK SAMPLES FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline import plugin, progress
from pipeline.benchmark.material import Bench, extraction
from pipeline.benchmark.memory import CPU, FACTOR, apart, peak
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, timed
from pipeline.data.images import DecodedImages, stream_images, views
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_space
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, Unit
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Phase, Recipe
from pipeline.params.views import RandomResizedCrop
from pipeline.training.alone import CrossEntropy
from pipeline.training.loop import Training
from pipeline.training.setting import Setting

SIZE, RESIZE = 224, 256
CLASSES = 4
DISTINCT = 60  # files that are written; the others are links to them
TESTED = 8  # files of val/
BATCH = 32
WIDTH = 8
VIEWS = RandomResizedCrop(space="random_resized_crop")
REQUESTED = {"stage1": (1, "float16"), "logits": (1, "float32")}
THREADS = (1, 2)


def photographs(bench: Bench) -> list[Record]:
    """Compare the peaks at N and 4 N JPEGs, and time decoding with one and two threads."""
    small, folder = bench.scale.photographs, bench.folder
    records, sizes = [], (small, FACTOR * small)
    shoot(folder / "shot")
    for samples in sizes:
        link(folder / "shot", folder / f"raw-{samples}", samples)

    with progress.bar("photographs", len(sizes) * len(TASKS)) as advance:
        for task in TASKS:
            peaks = []
            for samples in sizes:
                peaks.append(apart(task, samples, folder, "photographs"))
                advance(1, note=task)
            growth = 100 * (peaks[1] / peaks[0] - 1)
            note = f"{peaks[0]:.0f} MB, {peaks[1] - peaks[0]:+.1f} MB for {FACTOR} times {small:,} JPEGs"
            records.append(record(f"photographs/{task}", growth, "% growth", at_most=5, note=note))
    return records + _decoding(bench)


def _decoding(bench: Bench) -> list[Record]:
    """Time the views of an epoch with nothing beside them."""
    samples = bench.scale.photographs
    data = prepared(bench.folder, samples)
    files = stream_images(data.split("train"), view_space(VIEWS), CPU.device)
    assert isinstance(files, DecodedImages)

    def epoch(threads: int) -> Callable[[], None]:
        images = DecodedImages(files.files, files.space, CPU.device, threads)
        # Slot 0 is the plain view, which is not what training reads.
        slots = count(1)

        def work() -> None:
            for _ in views(images, next(slots), torch.split(torch.arange(samples), BATCH)):
                pass

        return work

    runs = {str(threads): timed(epoch(threads), samples) for threads in THREADS}
    rates = interleaved("decoding", runs, bench.scale.rounds, warm=False)
    one, two = map(str, THREADS)
    return [
        record("photographs/decode/1", rates.median(one), "images/s", note=f"to {SIZE}x{SIZE}, one thread"),
        record("photographs/decode/2", rates.median(two), "images/s", note="two threads"),
        record("photographs/decode/speed_up", rates.ratio(two, to=one), "2 threads / 1"),
    ]


def shoot(folder: Path) -> None:
    """Write JPEGs of varied sizes."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(DISTINCT):
        width, height = draw.integers(240, 560, 2).tolist()
        # Enlarged noise is smooth, and so compresses more like a photograph.
        small = Image.fromarray(draw.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        image = small.resize((width, height), Image.Resampling.BILINEAR)
        image.save(folder / f"{number}.JPEG", quality=90)


def link(folder: Path, root: Path, samples: int) -> None:
    """Make an image folder of so many training samples out of links."""
    for split, total in (("train", samples), ("val", TESTED)):
        for number in range(total):
            path = root / split / str(number % CLASSES) / f"{number:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(folder / f"{number % DISTINCT}.JPEG")


def prepared(folder: Path, samples: int) -> Prepared:
    """Open what `extract` prepared."""
    return Prepared.open(folder / f"indexed-{samples}")


def extract(folder: Path, samples: int) -> None:
    """Index the files, the normalization measured, and fill a store: plain views and a slot of crops."""
    root, out = folder / f"raw-{samples}", folder / f"indexed-{samples}"
    plug = plugin.load("datasets", "image_folder")
    # The files are links to one photograph.
    config = plug.Config(path=root, size=SIZE, resize=RESIZE, storage="indexed", links="anywhere")
    prepare(plug.open_source(config), "image_folder", config, out)

    network = _network()
    spec = NetworkSpec(family="none", network="one", size=SIZE, channels=3, classes=CLASSES)
    teacher = Teacher(network, CPU)
    work = extraction(prepared(folder, samples), teacher, spec, REQUESTED, VIEWS, batch_size=BATCH)
    work.run(folder / f"photographs-{samples}.zarr", lambda units=1, note="": None)


def train(folder: Path, samples: int) -> None:
    """Train for one epoch and evaluate."""
    data, network = prepared(folder, samples), _network()
    setting, recipe = Setting.of(data, VIEWS, CPU), Recipe(epochs=1, batch_size=BATCH)
    training = Training(
        modules={"student": network},
        objective=CrossEntropy(network, CPU),
        batches=setting.batches(recipe, 0, None),
        phases=(Phase("main", recipe),),
        evaluate=setting.evaluation(network),
        save=lambda name: None,
        scratch=folder,
        identity="photographs",
        title="training",
    )
    training.run()


def _network() -> Network:
    """Return one convolution: what is looked at is what is kept, not what is computed."""
    return Network({"stage1": Unit(nn.Conv2d(3, WIDTH, 16, stride=16))}, WIDTH, CLASSES)


TASKS: dict[str, Callable[[Path, int], None]] = {"extract": extract, "train": train}

if __name__ == "__main__":
    name, number, place = sys.argv[1:]
    TASKS[name](Path(place), int(number))
    print(peak())
