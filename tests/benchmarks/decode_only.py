"""The floor: decode every frame and throw it away, one process a core, one decoder thread each.

python decode_only.py [--processes N] CLIPS...    files, or folders of .mp4
"""

import argparse
import json
import os
from multiprocessing import Pool
from pathlib import Path

import av


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    paths = [
        path
        for place in options.clips
        for path in (sorted(place.glob("*.mp4")) if place.is_dir() else [place])
    ]
    with Pool(options.processes) as pool:
        # A file at a time to whoever is free: no process waits at the end for a longer share.
        frames = sum(pool.imap_unordered(count_frames, paths))
    print(json.dumps({"clips": len(paths), "frames": frames}))


if __name__ == "__main__":
    main()
