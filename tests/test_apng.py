"""APNG, held against its specification and Pillow."""

import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from image_files import H, W, by_pillow, difference, number_in, pictures, probe, rgba, save, scene


def apng(frames: list[tuple[np.ndarray, tuple[int, int], int, int]], time: int = 40) -> bytes:
    """An APNG of (pixels, (y, x), dispose_op, blend_op), the first of the size of the canvas."""

    def part(kind: bytes, *content: bytes) -> bytes:
        body = b"".join(content)
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    height, width = frames[0][0].shape[:2]
    content = b"\x89PNG\r\n\x1a\n"
    content += part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    content += part(b"acTL", struct.pack(">II", len(frames), 0))
    number = 0
    for pixels, (y, x), dispose, blend in frames:
        h, w = pixels.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, w, h, x, y, time, 1000, dispose, blend)
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        following = struct.pack(">I", number + 1)
        content += part(b"fcTL", control)
        content += part(b"fdAT", following, data) if number else part(b"IDAT", data)
        number += 2 if number else 1
    return content + part(b"IEND")


def drawn(frames: list[tuple[np.ndarray, tuple[int, int], int, int]]) -> list[np.ndarray]:
    """The canvases, as the PNG specification (third edition, 11.3.6.2) says, in floating point."""
    canvas = np.zeros(frames[0][0].shape)
    made = []
    for pixels, (y, x), dispose, blend in frames:
        before = canvas.copy()
        place = canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]]
        above, below = pixels[..., 3:] / 255, place[..., 3:] / 255 * (1 - pixels[..., 3:] / 255)
        whole = above + below
        mixed = (pixels[..., :3] * above + place[..., :3] * below) / np.maximum(whole, 1e-9)
        place[:] = np.dstack([mixed, whole * 255]) if blend else pixels
        made.append(canvas.copy())
        if dispose == 1:
            place[:] = 0
        elif dispose == 2:
            canvas = before
    return made


@pytest.mark.parametrize(("dispose", "blend"), list(product(range(3), range(2))))
def test_an_apng_is_drawn_as_its_specification_says(
    tmp_path: Path, dispose: int, blend: int
) -> None:
    random = np.random.default_rng(dispose * 2 + blend)
    frames = []
    for k in range(5):
        pixels = random.integers(0, 256, (20, 30, 4) if k else (H, W, 4)).astype(np.uint8)
        pixels[..., 3] = random.choice([0, 60, 128, 255], pixels.shape[:2])
        frames.append((pixels, (3 * k, 7 * k), dispose if k else 0, blend if k else 0))
    path = tmp_path / "a.png"
    path.write_bytes(apng(frames))
    info = probe(path)
    assert [pts * info.time_base * 1000 for pts in info.frame_pts] == [0, 40, 80, 120, 160]
    found = [rgba(picture) for picture in pictures(path, info)]
    assert max(map(difference, found, drawn(frames))) <= 2  # FFmpeg rounds after each frame
    if not blend:  # where it blends, Pillow 13 mixes the alphas as well
        assert max(map(difference, found, by_pillow(path))) == 0


def test_the_default_image_of_an_apng_is_no_frame_and_no_delay_is_a_fifteenth(
    tmp_path: Path,
) -> None:
    frames = [scene(k)[..., :3] for k in range(4)]
    times = {"duration": [40, 0, 100], "default_image": True}
    path = save(tmp_path / "a.png", frames, **times)
    info = probe(path)
    assert [number_in(picture) for picture in pictures(path, info)] == [1, 2, 3]
    assert [round(pts * info.time_base * 1000) for pts in info.frame_pts] == [0, 40, 107]
