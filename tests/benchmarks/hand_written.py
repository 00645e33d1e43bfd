"""What one writes by hand: decord, torch's antialiased bicubic, einops, webdataset.

python hand_written.py CLIPS OUT FPS

One process a core. Native aspect ratio with at most 256 patches of 16 x 16 a frame, tubelets of two
frames, uint8. It packs nothing, hashes nothing, and takes frames by their number, not their time.
"""

import argparse
import json
import os
from collections.abc import Sequence
from math import sqrt
from multiprocessing import Pool
from pathlib import Path

import decord
import numpy as np
import torch
import webdataset
from einops import rearrange

PATCH, TUBELET, MOST_PATCHES = 16, 2, 256


def tokens_of(path: Path, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 1536)`` uint8 tokens of a clip, and their ``(N, 3)`` int16 positions (t, h, w)."""
    video = decord.VideoReader(str(path), num_threads=1)
    chosen = np.arange(0, len(video), video.get_avg_fps() / fps).astype(int)
    chosen = chosen[: len(chosen) // TUBELET * TUBELET]
    frames = torch.from_numpy(video.get_batch(chosen).asnumpy()).permute(0, 3, 1, 2)
    h, w = frames.shape[-2:]
    scale = sqrt(MOST_PATCHES / (h * w))  # of a side, to patches
    rows, columns = max(1, int(h * scale * PATCH) // PATCH), max(1, int(w * scale * PATCH) // PATCH)
    small = torch.nn.functional.interpolate(
        frames, size=(rows * PATCH, columns * PATCH), mode="bicubic", antialias=True
    )
    tokens = rearrange(
        small.numpy(),
        "(t tubelet) c (h p) (w q) -> (t h w) (c tubelet p q)",
        tubelet=TUBELET,
        p=PATCH,
        q=PATCH,
    )
    positions = np.indices((len(chosen) // TUBELET, rows, columns), np.int16).reshape(3, -1).T
    return tokens, positions


def write_share(share: tuple[int, Sequence[Path], Path, float]) -> int:
    """Write the shards of one process; returns their tokens."""
    torch.set_num_threads(1)
    rank, paths, out, fps = share
    count = 0
    with webdataset.ShardWriter(f"{out}/{rank}-%05d.tar", maxsize=1e9, verbose=0) as shards:
        for path in paths:
            tokens, positions = tokens_of(path, fps)
            sample = {"tokens.npy": tokens, "positions.npy": positions}
            shards.write({"__key__": path.stem, **sample})
            count += len(tokens)
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("fps", type=float)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    paths = sorted(options.clips.glob("*.mp4"))
    cores = len(os.sched_getaffinity(0))
    shares = [(rank, paths[rank::cores], options.out, options.fps) for rank in range(cores)]
    with Pool(cores) as pool:
        count = sum(pool.map(write_share, shares))
    print(json.dumps({"clips": len(paths), "tokens": count}))


if __name__ == "__main__":
    main()
