"""Still pictures of every format, held against Pillow."""

from pathlib import Path

import numpy as np
from image_files import AVIF, H, W, by_pillow, difference, pictures, probe, rgba, scene
from PIL import Image


def stills(folder: Path) -> dict[str, tuple[Path, int]]:
    """Files, and the largest difference: 2 for JPEG at 4:4:4, 6 for what enlarges its chroma."""
    alpha = Image.fromarray(scene(alpha=True))
    colour, gray = alpha.convert("RGB"), alpha.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    palette, line = colour.quantize(64), gray.point(lambda value: 255 * (value > 99)).convert("1")
    made = {
        "rgb.png": (colour, {}, 0), "rgba.png": (alpha, {}, 0), "gray.png": (gray, {}, 0),
        "gray-alpha.png": (alpha.convert("LA"), {}, 0), "palette.png": (palette, {}, 0),
        "palette-alpha.png": (alpha.quantize(64), {}, 0), "16-bit.png": (deep, {}, 1),
        "1-bit.png": (line, {}, 0), "transparent.png": (palette, {"transparency": 3}, 0),
        "444.jpg": (colour, {"quality": 95, "subsampling": 0}, 2),
        "progressive.jpg": (colour, {"quality": 95, "subsampling": 0, "progressive": True}, 2),
        "420.jpg": (Image.fromarray(smooth()), {"quality": 95}, 6),
        "gray.jpg": (gray, {}, 1), "cmyk.jpg": (colour.convert("CMYK"), {"subsampling": 0}, 2),
        "lossless.webp": (alpha, {"lossless": True, "exact": True}, 0),
        "lossy.webp": (Image.fromarray(smooth()), {"quality": 95}, 6),
        "rgb.bmp": (colour, {}, 0), "palette.bmp": (palette, {}, 0), "1-bit.bmp": (line, {}, 0),
        "rgb.tif": (colour, {}, 0), "rgba.tif": (alpha, {}, 0),
        "cmyk.tif": (colour.convert("CMYK"), {}, 1),
        "lzw.tif": (colour, {"compression": "tiff_lzw"}, 0), "16-bit.tif": (deep, {}, 1),
        "444.avif": (colour, AVIF, 2), "gray.avif": (gray, AVIF, 1),
        "limited.avif": (colour, {**AVIF, "range": "limited"}, 2),
    }  # fmt: skip
    for name, (image, options, _) in made.items():
        image.save(folder / name, **options)
    return {name: (folder / name, most) for name, (_, _, most) in made.items()}


def smooth() -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 3, y * 5, (x + y) * 2], -1).astype(np.uint8)


def test_still_pictures_are_as_pillow_reads_them(tmp_path: Path) -> None:
    too_far = {}
    for name, (path, most) in stills(tmp_path).items():
        info = probe(path)
        assert (info.still, len(info.frame_pts)) == (True, 1), name
        (picture,) = pictures(path, info)
        (expected,) = by_pillow(path)
        if "16-bit" in name:  # Pillow's own conversion clips
            with Image.open(path) as image:
                gray = (np.asarray(image) >> 8).astype(np.uint8)
            expected = np.dstack([gray, gray, gray, np.full_like(gray, 255)])
        found = difference(rgba(picture), expected)
        if found > most:
            too_far[name] = found
    assert not too_far
