"""Make the pictures of the pages from the sample clips: python docs/make_pictures.py"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLOURS = 128
"""Of a picture: a third of the bytes, and nobody sees it."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clips, shards, sheet = ROOT / "samples" / "clips", f"{folder}/shards", f"{folder}/pack.png"
        for words in (
            ["tokenize", str(clips), "--out", shards],
            ["preview", shards, "--pack", "0", "--out", sheet],
        ):
            done = subprocess.run([sys.executable, "-m", "spacepatch", *words], check=False)
            if done.returncode not in (0, 3):  # one of the clips is broken on purpose
                sys.exit(done.returncode)
        PICTURES.mkdir(exist_ok=True)
        picture = Image.open(sheet).quantize(COLOURS, dither=Image.Dither.NONE)
        picture.save(PICTURES / "pack.png", optimize=True)


if __name__ == "__main__":
    main()
