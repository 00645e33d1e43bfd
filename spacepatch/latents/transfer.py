"""Clips on their way to where a model computes, and what it made on its way back: once each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch


def to_device(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """A whole clip where the model is, as it is: ``(T, H, W, 3)`` uint8 is a quarter of float32.

    To a CUDA device it goes from pinned memory, and nothing waits for it: what is computed of it
    is queued behind it. On the CPU it is the same memory, which nobody may change then.
    """
    there = torch.from_numpy(np.ascontiguousarray(frames))
    if device.type == "cuda":
        # Where no more memory may be pinned it takes the slow way. PyTorch keeps the pinned copy
        # until the device has read it.
        with suppress(RuntimeError):
            there = there.pin_memory()
    return there.to(device, non_blocking=True)


def to_host(parts: Sequence[torch.Tensor], num: int | None = None) -> np.ndarray:
    """The first `num` of what a model made in parts, one after the other, in one transfer.

    It waits for all that was queued; nothing before it does.
    """
    made = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return made[:num].contiguous().cpu().numpy()
