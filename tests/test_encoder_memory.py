"""A clip that there is no memory for: lost by name, and the next is as if it had not been."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors")

from fitted_codecs import written

if sys.platform != "linux":
    pytest.skip("RLIMIT_DATA bounds memory on Linux only", allow_module_level=True)

PROGRAM = """
import json, re, resource, sys
from pathlib import Path
import numpy as np
from spacepatch.errors import SourceError
from spacepatch.latents import load_encoder

spec, shape, options, shares = map(json.loads, sys.argv[1:])
encoder = load_encoder(spec, **options)
large = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
small = large[: encoder.rule.first + encoder.rule.step, : shape[1] // 4, : shape[2] // 4].copy()
expected = encoder.encode(small)
free = resource.RLIM_INFINITY
for share in shares:
    status = Path("/proc/self/status").read_text()
    taken = 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", status)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (taken + int(share * large.nbytes), free))
    try:
        encoder.encode(large)
        print(json.dumps("encoded"))
    except SourceError as error:
        print(json.dumps([error.reason, str(error)]))
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))
    assert np.array_equal(encoder.encode(small), expected)
# With memory enough, the same frames are no trouble any more.
assert np.isfinite(encoder.encode(large)).all()
"""


def encode_in(
    shares: list[float], spec: str, shape: tuple[int, ...], **options: Any
) -> list[tuple[str, str]]:
    """Reason and message of each attempt to encode noise of `shape`, with memory for so many times
    its bytes; a smaller clip is encoded after each."""
    arguments = (json.dumps(argument) for argument in (spec, shape, options, shares))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Of some megabytes, more than a thread takes to start: an allocation fails in the model.
SHARES = [4, 8, 16]


@pytest.mark.parametrize(("batch", "way_out"), [(4, "a smaller --encode-batch than 4"), (1, None)])
def test_a_tiny_autoencoder_loses_the_clip_only(
    tmp_path: Path, batch: int, way_out: str | None
) -> None:
    from tiny_models import image_model, save_parts

    folder = save_parts(tmp_path / "tiny", *image_model(4, width=32))
    size = 512 if batch == 4 else 1024
    for reason, message in encode_in(SHARES, f"tae:{folder}", (batch, size, size, 3), batch=batch):
        assert reason == "out_of_memory"
        assert message == (
            "tae:tiny: out of memory on cpu: raise --worker-memory, or give "
            + (way_out or "smaller frames (--encode-batch is 1 already)")
        )


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLMagvit"])
def test_an_autoencoder_of_diffusers_loses_the_clip_only(tmp_path: Path, name: str) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tiny_autoencoders import save_tiny

    save_tiny(name, tmp_path)
    for reason, message in encode_in(SHARES, f"diffusers:{tmp_path}", (9, 256, 256, 3)):
        assert reason == "out_of_memory"
        assert "out of memory on cpu: raise --worker-memory, or give" in message
        assert "--encode-batch" in message
        # The tiles of Magvit are wrong, so that nobody is sent there.
        assert ("--encode-tiles" in message) == (name != "AutoencoderKLMagvit")


WITHOUT_CODE = """
import mmap, re, resource
from pathlib import Path
import torch
from spacepatch.errors import SourceError
from spacepatch.latents.exactness import compute

cpu, free = torch.device("cpu"), resource.RLIM_INFINITY
x, weight = torch.ones(2, 8, 24, 24), torch.ones(8, 8, 3, 3)

def convolve():
    return torch.nn.functional.conv2d(x, weight)

def convolve_without_memory():
    # Room for tensors in the heap, and for code nowhere.
    room = [torch.empty(4096) for _ in range(200)]
    status = Path("/proc/self/status").read_text()
    taken = 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", status)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (taken + 2**20, free))
    del room[::2]
    hoard = []
    try:
        while True:
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            hoard.append(mmap.mmap(-1, mmap.PAGESIZE, flags=private))
    except (OSError, MemoryError):
        pass
    try:
        return convolve()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (free, free))

for run in (convolve_without_memory, convolve):
    try:
        print(float(compute(run, name="x", device=cpu, batch=1).sum()))
    except SourceError as error:
        print(error.reason)
"""


def test_code_that_onednn_could_not_generate_is_generated_for_the_next_clip() -> None:
    command = [sys.executable, "-c", WITHOUT_CODE]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lost, made = done.stdout.split()
    # Each of the 2 x 8 x 22 x 22 values is a sum of 8 x 3 x 3 ones.
    assert float(made) == 2 * 8 * 22 * 22 * 72
    if platform.machine() == "x86_64":
        assert lost == "out_of_memory"


def test_a_linear_encoder_loses_the_clip_only(tmp_path: Path) -> None:
    path = written(tmp_path)
    # Blocks go into float64 by parts, so that it takes little more than the clip.
    for reason, message in encode_in([0.1, 1], f"linear:{path}", (2, 1200, 2000, 3)):
        assert reason == "out_of_memory"
        assert "raise --worker-memory" in message


def test_a_script_loses_the_clip_only(tmp_path: Path) -> None:
    from test_torchscript_encoder import IMAGE, IMAGE_MEANS, save_script, write_toml

    save_script(tmp_path / "encoder.jit", IMAGE_MEANS)
    write_toml(tmp_path, IMAGE)
    spec = f"torchscript:{tmp_path}"
    for reason, message in encode_in([1.5, 2, 3], spec, (8, 512, 512, 3), trust=True):
        assert reason == "out_of_memory"
        assert message.endswith("raise --worker-memory, or give a smaller --encode-batch than 8")


def test_another_error_of_a_model_stays_what_it_is(tmp_path: Path) -> None:
    import torch

    from spacepatch.latents.exactness import compute

    cpu = torch.device("cpu")
    with pytest.raises(RuntimeError, match="must match"):
        compute(lambda: torch.zeros(2) + torch.zeros(3), name="x", device=cpu, batch=1)
