"""What the measurements work on: generated data, teachers with random weights, and their extraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import seeding
from pipeline.compute.machine import Machine
from pipeline.data.layout import (
    Meta,
    fingerprinting,
    hashes_path,
    image_hashes,
    images_path,
    labels_path,
    meta_path,
)
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_space
from pipeline.features.extract import Extraction, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.views import CropFlip, ViewParams

VIEWS = CropFlip(space="crop_flip")  # CIFAR's: four pixels of padding, 162 views
CLASSES = 100
BLOCK = 4096  # samples that are generated at a time


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: in which runs take turns.
        size: height and width of the images.
        batch_size: of training.
        steps: of one timed training.
        extracted: samples of the timed extraction, each seen in two slots.
        stored: samples of 16 kB in the store that is read.
        remembered: samples of the smaller of the two data sets whose peak memory is compared.
        fitted: pixels that LDA is fitted to; K-means takes half of them.
        compiled: measure torch.compile too, which first compiles for minutes.
        photographs: as `remembered`, of JPEGs that are indexed.
        pairs: teachers and students whose steps are timed, by family and name.
        pair: the one whose steps by single methods are timed.
        channels: of the assignment that is timed.
        method_steps: of a timed training by a single method.
        images: of an epoch that is timed beside a plain loop's.
        toolkit_steps: of a timed training by a usual toolkit's loop.
        workers: of that loop; None is what toolkits start.
        seeds: of trainings whose accuracy is compared.
        epochs: of such a training.
        compared_pair: teacher and student of such trainings.
        small_job: a whole job that is timed is a part of that of params.yaml.
        job_rounds: how often it is timed.
    """

    rounds: int
    size: int
    batch_size: int
    steps: int
    extracted: int
    stored: int
    remembered: int
    fitted: int
    photographs: int
    compiled: bool = True
    pairs: tuple[tuple[str, str], ...] = (
        ("resnet.resnet32x4", "resnet.resnet8x4"),
        ("resnet.resnet56", "resnet.resnet20"),
        ("wrn.wrn_40_2", "wrn.wrn_16_2"),
    )
    pair: tuple[str, str] = ("resnet.resnet56", "resnet.resnet20")
    channels: int = 2048
    method_steps: int = 8
    images: int = 50_000
    toolkit_steps: int = 150
    workers: int | None = None
    seeds: int = 5
    epochs: int = 60
    compared_pair: tuple[str, str] = ("resnet.resnet8", "resnet.resnet8x0.25")
    small_job: bool = False
    job_rounds: int = 1

    @property
    def trained(self) -> int:
        """Number of training samples: one epoch is one timed training."""
        return self.steps * self.batch_size

    @property
    def compared(self) -> int:
        """As `trained`, by a single method."""
        return self.method_steps * self.batch_size


FULL = Scale(
    rounds=7,
    size=32,
    batch_size=64,
    steps=8,
    extracted=1024,
    stored=20_000,
    remembered=6000,
    fitted=200_000,
    photographs=1000,
)
QUICK = replace(
    FULL,
    rounds=5,
    steps=4,
    extracted=384,
    stored=5000,
    remembered=1500,
    fitted=20_000,
    photographs=60,
    method_steps=4,
    compiled=False,
    pairs=(FULL.pair,),
    small_job=True,
    job_rounds=3,
)
# A GPU takes a step in a millisecond: what is timed is hundreds of them, and then hardly varies.
FULL_GPU = replace(
    FULL,
    rounds=5,
    steps=400,
    method_steps=100,
    seeds=20,
    compared_pair=FULL.pairs[0],
)
QUICK_GPU = replace(
    FULL_GPU,
    rounds=3,
    steps=200,
    stored=QUICK.stored,
    remembered=QUICK.remembered,
    fitted=QUICK.fitted,
    photographs=QUICK.photographs,
    compiled=False,
    pairs=FULL.pairs[:1],
    small_job=QUICK.small_job,
    job_rounds=QUICK.job_rounds,
)


def scale(device: torch.device, quick: bool) -> Scale:
    """Return how much is measured on a device."""
    if device.type == "cuda":
        return QUICK_GPU if quick else FULL_GPU
    return QUICK if quick else FULL


@dataclass(frozen=True)
class Bench:
    """Where it is measured.

    Attributes:
        scale: how much.
        machine: what computes.
        folder: for what is written; the caller removes it.
        data: an image folder to train on, with `train/` and `val/` or `test/`; None where none is given.
    """

    scale: Scale
    machine: Machine
    folder: Path
    data: Path | None = None

    def prepared(self, samples: int) -> Prepared:
        """Return generated training data of so many samples."""
        folder = self.folder / f"data-{samples}"
        return Prepared.open(folder) if folder.exists() else generate(folder, samples, self.scale.size)

    def spec(self, name: str) -> NetworkSpec:
        """Return the network "family.name" for these data."""
        family, network = name.split(".", 1)  # a width may have a point of its own
        return NetworkSpec(family=family, network=network, size=self.scale.size, channels=3, classes=CLASSES)

    def teacher(self, name: str) -> Teacher:
        """Return the network "family.name" as a teacher with random weights, placed as a stage places it."""
        teacher = Teacher(self.random(name), self.machine)
        self.machine.place(teacher.network)
        return teacher

    def random(self, name: str) -> Network:
        """Return the network "family.name" with random weights that it could have learned, on the CPU."""
        return settled(build(self.spec(name), 0), self.scale.size)


def generate(folder: Path, samples: int, size: int) -> Prepared:
    """Write prepared data of random pixels, block by block, and open them."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    classes, labels = tuple(map(str, range(CLASSES))), draw.integers(0, CLASSES, samples)

    shape = (samples, 3, size, size)
    images = np.lib.format.open_memmap(images_path(folder, "train"), mode="w+", dtype=np.uint8, shape=shape)
    hashes = []
    for start in range(0, samples, BLOCK):
        block = images[start : start + BLOCK]
        block[:] = draw.integers(0, 256, block.shape, np.uint8)
        hashes.append(image_hashes(block))

    # On the disk before anything else opens the file.
    images.flush()
    del images
    np.save(labels_path(folder, "train"), labels)
    np.save(hashes_path(folder, "train"), np.concatenate(hashes))

    digest = fingerprinting(classes, shape, labels)
    digest.update(np.concatenate(hashes).data)
    meta = Meta(
        source="generated",
        classes=classes,
        channels=3,
        size=size,
        samples={"train": samples},
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        fingerprint={"train": digest.hexdigest()},
    )
    meta_path(folder).write_text(meta.sealed().model_dump_json())
    return Prepared.open(folder)


def settled(network: Network, size: int) -> Network:
    """Give the batch norms the statistics of random images: deep networks overflow float16 without them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of one batch alone
    with torch.no_grad():
        network.train()(torch.randn(16, 3, size, size, generator=seeding.generator("settled")))
    for norm in norms:
        norm.momentum = 0.1  # torch's default
    return network


def extraction(
    prepared: Prepared,
    teacher: Teacher,
    spec: NetworkSpec,
    requested: Mapping[str, tuple[int, str]],
    views: ViewParams = VIEWS,
    **options: Any,
) -> Extraction:
    """Return the extraction of `requested` from generated data.

    Args:
        prepared: the data.
        teacher: whose features.
        spec: of the teacher.
        requested: number of augmented slots and dtype, by feature name.
        views: that the slots show.
        options: of the extraction.
    """
    meta = prepared.meta
    manifest = Manifest.of(
        meta,
        views,
        spec,
        {"last": "random"},
        teacher.machine.precision,
        stored_features(requested, teacher, meta.channels, meta.size),
        teacher=spec.network,
        made_by="benchmark",
    )
    normalize = Normalize(meta.mean, meta.std, teacher.machine.device)
    space = view_space(views)
    return Extraction(manifest, {"last": teacher}, prepared.splits, space, normalize, **options)
