"""A matching as a module: it gives teacher features the student's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.artifacts import advice
from pipeline.errors import StaleArtifactError
from pipeline.matching.consistency import range_of
from pipeline.matching.learned import SubNet
from pipeline.matching.matching import Matching
from pipeline.params.matchings import LEARNED

PREFIX = "subnet."


class Rearrangement(nn.Module):
    """The gather of a permutation, one for each range of labels, or the learned network in its place.

    Args:
        matching: what it does.
        changes: whether training finds the permutation anew; it is then saved with the module. One that stays is an
            artifact of its own.

    Raises:
        StaleArtifactError: the matching holds another network than its recipe says.
    """

    permutation: Tensor

    def __init__(self, matching: Matching, *, changes: bool = False) -> None:
        super().__init__()
        self.classes = matching.origin.classes
        self.subnet: SubNet | None = None
        strategy = matching.recipe.strategy

        if strategy in LEARNED:
            self.subnet = SubNet(strategy, matching.origin.channels, matching.width)
            weights = {
                name.removeprefix(PREFIX): torch.as_tensor(array)
                for name, array in matching.arrays.items()
                if name.startswith(PREFIX)
            }

            try:
                self.subnet.load_state_dict(weights)
            except RuntimeError:
                raise StaleArtifactError(
                    f"The matching holds another network than its strategy '{strategy}' makes. "
                    f"{advice.again(f'dvc repro {matching.origin.made_by}')}"
                ) from None

        # Empty beside a learned network; a copy, since training may find it anew.
        permutation = torch.as_tensor(matching.arrays.get("permutation", ()), dtype=torch.int64)
        self.register_buffer("permutation", permutation.clone(), persistent=changes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return (B, c_S, ...) of features (B, c_T, ...) of samples with labels int64 (B,)."""
        if self.subnet is not None:
            y: Tensor = self.subnet(x)
            return y
        if len(self.permutation) == 1:
            return x.index_select(1, self.permutation[0])
        chosen = self.permutation[range_of(label, len(self.permutation), self.classes)]  # (B, c_S)
        # Indices (B, 1) and (B, c_S): every sample takes the channels of its own range.
        return x[torch.arange(len(x), device=x.device)[:, None], chosen]
