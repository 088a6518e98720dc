"""Settings of a detector: what torchvision's published models fix, open to smaller images and machines."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from pipeline.params.base import Block

Norm = Literal["frozen", "batch", "group"]


class DetectorSettings(Block):
    """How a detector is built; the defaults are torchvision's, of images 800 pixels high.

    Attributes:
        norm: the backbone's normalization. "frozen" is a BN whose statistics and affine parameters stay as they were
            loaded, as in Detectron: two images a GPU are too few for statistics of their own. "batch" trains it,
            "group" is GroupNorm, which no size of batch changes. null is "frozen" where weights are loaded and
            "batch" where they are drawn, since a frozen BN that was never trained normalizes nothing.
        frozen_stages: the first so many of stem, stage1 to stage4 that are not trained. null is 2 where weights are
            loaded, as in Detectron, and 0 where they are drawn.
        pyramid_width: channels of every level of the pyramid.
        head_width: of Faster R-CNN's two hidden layers.
        smallest_anchor: side of the anchors on the finest level, in pixels; each further level doubles it.
        proposals: boxes that Faster R-CNN's first half hands to its second: in training, and half as many else.
        sampled_anchors: anchors of an image that teach Faster R-CNN's first half.
        sampled_proposals: proposals of an image that teach its second half.
        lowest_score: detections below it are dropped.
        detections: of one image, at most.
    """

    norm: Norm | None = None
    frozen_stages: int | None = Field(default=None, ge=0, le=5)
    pyramid_width: int = Field(default=256, ge=1, le=4096)
    head_width: int = Field(default=1024, ge=1, le=16384)
    smallest_anchor: int = Field(default=32, ge=2, le=1024)
    proposals: int = Field(default=2000, ge=2, le=100_000)
    sampled_anchors: int = Field(default=256, ge=2, le=100_000)
    sampled_proposals: int = Field(default=512, ge=2, le=100_000)
    lowest_score: float = Field(default=0.05, ge=0, lt=1)
    detections: int = Field(default=100, ge=1, le=10_000)

    def resolved(self, loaded: bool) -> Self:
        """Return these settings without null.

        Args:
            loaded: weights are loaded, not drawn.
        """
        norm: Norm = self.norm or ("frozen" if loaded else "batch")
        frozen = (2 if loaded else 0) if self.frozen_stages is None else self.frozen_stages
        return self.model_copy(update={"norm": norm, "frozen_stages": frozen})
