"""What lies on a device once, however many students of a process read it.

Students that are trained in one process mostly learn from the same images and the same teacher, whose arrays may take
gigabytes. They are known by the hash of their content.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from numpy.typing import NDArray
from torch import Tensor

# As long as somebody reads them.
_TENSORS: WeakValueDictionary[tuple[str, torch.device], Tensor] = WeakValueDictionary()


def shared(content: str, device: torch.device, read: Callable[[], NDArray[Any]]) -> Tensor:
    """Return an array on a device: the tensor that somebody holds already, or a new one.

    Nobody may write into it.

    Args:
        content: hash of the array, its dtype and its shape.
        device: where it goes.
        read: returns it.
    """
    tensor = _TENSORS.get((content, device))
    if tensor is None:
        tensor = torch.from_numpy(read()).to(device)
        _TENSORS[content, device] = tensor
    return tensor
