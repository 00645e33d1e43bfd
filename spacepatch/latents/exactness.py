"""Where a model computes, and in what: nothing faster and coarser than was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from spacepatch.errors import ConfigError, SourceError

T = TypeVar("T")


def find_device(word: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(word)
    except RuntimeError:
        raise ConfigError(f"--device {word!r}: is none: cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {word}: encoders run on cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {word}: this machine has {torch.cuda.device_count()} CUDA devices "
            f"that torch {torch.__version__} can use; give --device cpu"
        )
    return device


_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|bad_alloc|can't start new thread|ALLOC_FAILED"
    "|could not (create|execute) a primitive(?! desc)|could not create a memory"
)
"""What a RuntimeError says where memory is short: of torch's allocator of the CPU (Linux, Windows),
of C++, of Python, of cuDNN and cuBLAS, and of oneDNN, which does not say why (but what it does not
support at all fails as a primitive descriptor). That of the CUDA allocator has its own type."""


def compute(
    run: Callable[[], T], *, name: str, device: torch.device, batch: int | None, tiles: bool = False
) -> T:
    """Run a model without gradients, autocast or TF32, by kernels that always sum alike.

    On the CPU that takes one thread: for another number of them some kernels (1 x 1 convolutions of
    many channels, group_norm) part their sums elsewhere, and the last bits of latents would tell
    how many workers there were. Workers run side by side instead.

    It is a new thread for every call: where oneDNN finds no memory for code that it generates, it
    never generates any again in the same thread, and clips to come would be lost with this one.

    Args:
        name: the encoder's, for the message.
        batch: as in `--encode-batch`, for the message; None: it takes a clip at once.
        tiles: whether `--encode-tiles` would take less memory, for the message.

    Raises:
        SourceError: `out_of_memory`: of this clip only. Nothing is halved and tried again, because
            another batch makes other bytes.
    """
    try:
        if device.type != "cpu":
            return _exactly(run, device)
        with ThreadPoolExecutor(1, thread_name_prefix="spacepatch-model") as thread:
            return thread.submit(_in_one_thread, run, device).result()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_of_memory(error):
            raise
    # Not in the clause above: the error would go along as the context of this one, and with its
    # traceback all that the model had in memory.
    raise SourceError(
        f"{name}: out of memory on {device}: {_way_out(device, batch, tiles)}",
        reason="out_of_memory",
    )


def _in_one_thread(run: Callable[[], T], device: torch.device) -> T:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _exactly(run, device)
    finally:
        torch.set_num_threads(num_threads)


def _exactly(run: Callable[[], T], device: torch.device) -> T:
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        return run()


def is_of_memory(error: RuntimeError) -> bool:
    """Whether it says that memory is short."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_NO_MEMORY.search(str(error)))


def _way_out(device: torch.device, batch: int | None, tiles: bool) -> str:
    ways = ["raise --worker-memory"] if device.type == "cpu" else []
    ways += ["give --encode-tiles"] if tiles else []
    if batch is None:
        ways.append("give fewer or smaller frames (--encode-batch does not help: a clip is one)")
    elif batch == 1:
        ways.append("give smaller frames (--encode-batch is 1 already)")
    else:
        ways.append(f"give a smaller --encode-batch than {batch}")
    return ", or ".join(ways)
