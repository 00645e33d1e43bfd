"""The least that writing costs: so many bytes, hashed with sha256 and written, on all cores.

python write_floor.py FOLDER BYTES
"""

import argparse
import hashlib
import json
import os
from multiprocessing import Pool
from pathlib import Path

BLOCK = 4 << 20


def write_file(job: tuple[Path, int]) -> str:
    """Write a file of so many bytes; returns the sha256 of it."""
    path, size = job
    block = os.urandom(BLOCK)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            part = block[: min(BLOCK, size - start)]
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("bytes", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    cores = len(os.sched_getaffinity(0))
    sizes = [options.bytes // cores] * cores
    sizes[0] += options.bytes % cores
    jobs = [(options.folder / f"{rank}.bin", size) for rank, size in enumerate(sizes)]
    with Pool(cores) as pool:
        digests = pool.map(write_file, jobs)
    print(json.dumps({"bytes": options.bytes, "sha256": digests}))


if __name__ == "__main__":
    main()
