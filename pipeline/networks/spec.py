"""What a network is, in the words of params.yaml: enough to build it again beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, field_validator

from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, ParamsError
from pipeline.networks.layer import LayerSpec
from pipeline.params.base import Block, validate
from pipeline.params.size import Size, shown, sides
from pipeline.params.weights import Weights

B = TypeVar("B", bound=Block)
FILE = "network.json"  # beside weights
DIGEST = "digest"  # of the metadata of a weights file, and of a network's json
LARGEST = 4096  # pixels of an image's side


class NetworkSpec(Block):
    """Everything that is needed to build a network again beside its weights.

    Attributes:
        family: a file of `pipeline/networks/families`.
        network: a name that this family knows.
        size: height and width of the images, in pixels; one number where they are square.
        channels: channels of the images.
        classes: number of classes.
        weights: where the first weights come from: "imagenet" are the library's own; or a file.
        source: hash of the network's code where that is not its family's.
        inserted: layers after taps, by tap; they stay at inference.
        classifier_width: features that the classifier reads, where a layer inserted at `final` changes them.
    """

    family: str
    network: str
    size: Size
    channels: int = Field(ge=1, le=4096)
    classes: int = Field(ge=1, le=1_000_000)
    weights: Weights = "none"
    source: str = ""
    inserted: dict[str, LayerSpec] = {}
    classifier_width: int | None = None

    @field_validator("size")
    @classmethod
    def _probed(cls, size: Size) -> Size:
        if max(sides(size)) > LARGEST:
            raise ValueError(f"Images are {shown(size)}, expected {LARGEST:,} pixels a side at most")
        return size


def read_spec(model: type[B], folder: Path) -> B:
    """Read `network.json`, without torch.

    Args:
        model: of what it holds.
        folder: of weights.

    Raises:
        MissingArtifactError: it is not there.
        DamagedArtifactError: it is not what was written, or of another form.
    """
    path = folder / FILE
    content = read_json(path, "dvc repro")
    if not isinstance(content, dict) or content.pop(DIGEST, None) != content_hash(content):
        raise DamagedArtifactError(
            f"{path} is damaged: it does not have the hash that it was written with. Delete it, then: dvc repro"
        )
    try:
        return validate(model, content, "", str(path))
    except ParamsError as error:
        raise DamagedArtifactError(f"{error} Delete it, then: dvc repro") from None
