"""Streams and events of a GPU, whose constructors torch leaves untyped."""

from __future__ import annotations

import torch


def stream(device: torch.device) -> torch.cuda.Stream:
    """Return a new stream of a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def event(*, blocking: bool = False) -> torch.cuda.Event:
    """Return a new event; who waits for a blocking one sleeps, and does not spin."""
    return torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]  # torch leaves it untyped
