"""Pictures and animations made with Pillow, and as we and Pillow read them."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.decode.images import image_kind, probe_image
from spacepatch.errors import ProbeError

H, W = 48, 80
DURATIONS = [40, 100, 30, 500, 70, 55]

AVIF = {"subsampling": "4:4:4", "quality": 95}


def probe(path: str | Path, **where: int) -> VideoInfo:
    with Path(path).open("rb") as file:
        file.seek(where.get("offset", 0))
        kind = image_kind(file.read(64))
    return probe_image(str(path), kind=kind, **where) if kind else probe_video(str(path))


def pictures(
    path: str | Path, info: VideoInfo, indices: Iterable[int] | None = None, **more: object
) -> list[Picture]:
    wanted = np.arange(len(info.frame_pts)) if indices is None else np.array(list(indices))
    where = {"info": info, "indices": wanted, "pts": info.frame_pts[wanted]}
    return list(decode_pictures(str(path), **where, **more))


def rgba(picture: Picture) -> np.ndarray:
    return picture.frame.reformat(format="rgba").to_ndarray()


def by_pillow(path: str | Path | io.BytesIO) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGBA")))
        return frames


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """The largest, in alpha and in what shows on black: what alpha 0 hides is no difference."""

    def shown(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.astype(np.float64)
        return np.dstack([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3]])

    return int(np.ceil(np.abs(shown(one) - shown(other)).max() - 0.5))


def scene(number: int = 0, *, alpha: bool = False) -> np.ndarray:
    """``(H, W, 4)`` with the number in six blocks, bright or dark, along the upper edge."""
    y, x = np.mgrid[:H, :W]
    pixels = np.stack([x * 3, y * 5, (x + y + number * 9) % 256, np.full((H, W), 255)], -1)
    if alpha:
        pixels[16:, :, 3] = np.clip(x * 4 - 20, 0, 255)[16:]
    for bit in range(6):
        pixels[:16, bit * 12 : bit * 12 + 12, :3] = 255 * (number >> bit & 1)
    return pixels.astype(np.uint8)


def number_in(picture: Picture) -> int:
    return sum(int(rgba(picture)[8, bit * 12 + 6, 1] > 128) << bit for bit in range(6))


def save(path: Path, frames: list[np.ndarray], **options: object) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    several = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    images[0].save(path, **several, **options)
    return path


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def check_upright(path: Path) -> None:
    info = probe(path)
    picture = pictures(path, info)[0]
    turned = np.rot90(rgba(picture), -picture.rotation // 90)
    turned = turned[:, ::-1] if picture.mirrored else turned
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    assert turned.shape == upright.shape == (*info.display_size, 4)
    assert info.rotation == picture.rotation
    assert difference(turned, upright) <= 1


def refusal(path: Path, **options: int) -> tuple[str, str]:
    with pytest.raises(ProbeError) as error, path.open("rb") as file:
        probe_image(str(path), kind=image_kind(file.read(64)), **options)
    return error.value.reason, str(error.value)
