"""Images with boxes in COCO's format: a folder of images and a json of instances for training and for testing.

By default as COCO 2017 is unpacked: `train2017/`, `val2017/` and `annotations/instances_*2017.json`. Images may be of
any size; prepared data list their files, with the hash of each, and keep their boxes. Categories become classes in the
order of their ids. Images without boxes stay, and regions of crowds are marked as such. Images are taken as they are
stored, whatever their EXIF data say of an orientation: so are COCO's boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import field_validator

from pipeline import progress
from pipeline.data.annotated import AnnotatedConfig, AnnotatedSource, AnnotatedSplit, Expected
from pipeline.data.raw import coco_json, image_files, place, regular
from pipeline.data.raw.coco_json import Faulty, Instances
from pipeline.data.raw.listing import Links, Listed, Listing
from pipeline.errors import DataError
from pipeline.params.base import Block

TASK = "detection"
_SHOWN = 80  # letters of a name that cannot be, in an error
# COCO 2017 by its own jsons. The sizes are common ones and no statistics: most images are wider than high.
_COCO = Expected(
    classes=80,
    samples={"train": 118_287, "test": 5_000},
    boxes={"train": 860_001, "test": 36_781},
    sizes=((480, 640), (427, 640), (480, 640), (427, 640), (480, 640), (427, 640), (640, 480), (640, 427)),
)


class Split(Block):
    """Where a split lies.

    Attributes:
        images: folder of its images, below `path`.
        instances: json of its boxes, below `path`.
    """

    images: str
    instances: str

    @field_validator("images", "instances")
    @classmethod
    def _below(cls, name: str) -> str:
        if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError("Expected a path below that of the data set")
        return name


class Config(AnnotatedConfig):
    """Settings of a data set in COCO's format.

    Attributes:
        path: the folder that all files lie in.
        train: `images` and `instances` of the training split: a folder and a json below `path`.
        test: the same of the images for evaluation.
        faulty: boxes of no area, or that leave their image by more than a pixel: "refuse" stops at them, "clip" cuts
            them off at the edges, and leaves out those of which nothing remains.
        links: "inside" follows links that stay within the folder of the data set and refuses others; "anywhere" follows
            all.
    """

    path: Path
    train: Split = Split(images="train2017", instances="annotations/instances_train2017.json")
    test: Split = Split(images="val2017", instances="annotations/instances_val2017.json")
    faulty: Faulty = "refuse"
    links: Links = "inside"


@dataclass(frozen=True)
class Photographs:
    """The images of a split, in their files; see `annotated.Pictures`."""

    root: Path
    names: tuple[str, ...]

    def content(self, row: int) -> bytes:
        """Return the content of an image's file."""
        return image_files.read(self.place(row))

    def place(self, row: int) -> str:
        """Return where the file is."""
        return str(self.root / self.names[row])


def open_source(config: Config) -> AnnotatedSource:
    """Read both jsons and look for every image that they list; none is decoded yet.

    Raises:
        DataError: a folder, a json or an image is missing, an entry of a json cannot be right, or the two splits do
            not have the same categories.
    """
    listing = Listing(config.path, config.links)
    listing.folder(listing.root, "the images and annotations of the data set. Put the data there")
    splits = [_read(config, listing, split) for split in (config.train, config.test)]
    (train, known), (test, tested) = splits
    if known.categories != tested.categories:
        raise DataError(
            f"{listing.root / config.test.instances} has other categories than {config.train.instances}: "
            f"{_difference(known, tested)}. Give both the same ones, then: dvc repro"
        )
    return AnnotatedSource(
        tuple(known.categories.values()),
        train,
        test,
        root=str(config.path),
        listed=listing.done(skip_damaged=False),
    )


def listed(config: Config) -> Listed | None:
    """Return the files as they lie there now."""
    return open_source(config).listed


def expected(config: Config) -> Expected | None:
    """Return what COCO 2017 holds where the settings name its files; None of others."""
    named = Config(path=config.path)
    return _COCO if (config.train, config.test) == (named.train, named.test) else None


def _read(config: Config, listing: Listing, split: Split) -> tuple[AnnotatedSplit, Instances]:
    path = listing.root / split.instances
    try:
        listing.add(path)
        content = regular.read(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, expected the json of the boxes. Put it there, or name it as 'instances' of the "
            f"source in params.yaml, then: dvc repro.{place.hint(config.path)}"
        ) from None
    listing.note(path, content)
    instances = coco_json.parse(path, content, config.faulty)
    if instances.left_out:
        progress.say(
            f"{path}: {instances.left_out} boxes lie outside of their images, or have no area, and are left out."
        )

    folder = listing.folder(listing.root / split.images, f"the images that {path} lists. Put them there")
    for name in instances.files:
        try:
            listing.add(folder / name)
        except FileNotFoundError:
            raise DataError(
                f"{folder / name} does not exist, but {path} lists it. Put the file there, or remove the entry, then: "
                "dvc repro"
            ) from None
        except OSError as error:  # a name that is too long, or that goes on below a file
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
            raise DataError(
                f"{folder / shown} cannot be read ({error.strerror}), but {path} lists it. Put the file there, or "
                "remove the entry, then: dvc repro"
            ) from None

    paths = tuple(str(PurePosixPath(split.images, name)) for name in instances.files)
    images = Photographs(listing.root, paths)
    return AnnotatedSplit(images, instances.sizes, instances.annotations, str(path)), instances


def _difference(known: Instances, tested: Instances) -> str:
    """Return the first category, by its id, in which two splits differ."""
    key = min(
        key
        for key in {*known.categories, *tested.categories}
        if known.categories.get(key) != tested.categories.get(key)
    )
    here, there = (one.categories.get(key) for one in (tested, known))
    return (
        f"id {key} is {here!a}, and {there!a} in training"
        if here and there
        else f"id {key} is in one of them alone"
    )
