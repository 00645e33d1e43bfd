"""Frames to the numbers of the peers' own processors, bit by bit, with no decoding in between."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import av
import einops
import numpy as np
import pytest
import torch
from pictures import make_picture
from PIL import Image

from spacepatch.normalization import NORMALIZATIONS, normalize_tokens
from spacepatch.resize import fit_frame, make_frame, place_frame
from spacepatch.tubelets import cut_tubelets


@dataclass(frozen=True)
class Peer:
    """How a processor is asked for in our words."""

    policy: str
    value: object
    resampler: str
    normalize: str
    crop: tuple[int, int] | None = None
    tubelet_size: int = 1
    patch: int = 16
    layout: str = "p q c"
    merge: int = 1

    def frames(self, frames):
        """Scaled and cut: ``(T, h, w, 3)`` uint8."""
        fit = fit_frame(
            frames.shape[1:3],
            patch=(self.patch * self.merge, self.patch * self.merge),
            policy=self.policy,
            value=self.value,
            upscale=True,
            crop=self.crop,
            num_frames=len(frames),
            tubelet_size=self.tubelet_size,
        )
        pictures = [make_picture(av.VideoFrame.from_ndarray(f, format="rgb24")) for f in frames]
        make = partial(make_frame, size=fit.scaled, resampler=self.resampler)
        return np.stack([place_frame(make(picture), fit) for picture in pictures])

    def tokens(self, frames):
        """``(N, D)`` float32."""
        made = self.frames(frames)
        tail = np.repeat(made[-1:], -len(made) % self.tubelet_size, axis=0)
        tokens = cut_tubelets(
            np.concatenate([made, tail]),
            tubelet_size=self.tubelet_size,
            patch_size=(self.patch, self.patch),
            layout=self.layout,
            merge=self.merge,
        )
        return self._normalize(tokens)

    def video(self, frames):
        """``(T, 3, h, w)`` float32, before any embedding."""
        made = self.frames(frames)
        numbers = self._normalize(made.reshape(len(made), -1))
        return numbers.reshape(made.shape).transpose(0, 3, 1, 2)

    def _normalize(self, tokens):
        return normalize_tokens(
            torch.from_numpy(tokens),
            constants=NORMALIZATIONS[self.normalize],
            channels=3,
            layout=self.layout,
        ).numpy()


QWEN = {"tubelet_size": 2, "layout": "c t p q", "merge": 2}
PEERS = {
    "qwen2_vl": Peer("pixels", (3136, 100352), "torch-bicubic", "clip", patch=14, **QWEN),
    "qwen3_vl": Peer("video-pixels", (4096, 98304), "torch-bicubic", "half", **QWEN),
    "siglip2": Peer("max-tokens-per-frame", 64, "torch-bilinear", "half"),
    "timm_naflex": Peer("max-tokens-per-frame", 64, "torch-bicubic", "unit"),
    "videomae": Peer("short-side", 64, "torch-bilinear", "half", crop=(64, 64)),
    "vjepa2": Peer("short-side", 73, "torch-bilinear", "imagenet", crop=(64, 64)),
    "vivit": Peer("short-side", 73, "pillow-bilinear", "vivit", crop=(64, 64)),
}
GOLDEN = [
    *((word, case) for word in ("qwen2_vl", "qwen3_vl") for case in range(4)),
    *((word, case) for word in ("siglip2", "timm_naflex") for case in range(4)),
    *((word, case) for word in ("videomae", "vjepa2", "vivit") for case in range(2)),
]


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "parity" / "arrays.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("word", "case"), GOLDEN)
def test_the_numbers_equal_those_of_the_processor(golden, word, case):
    peer, frames, wanted = PEERS[word], golden[f"in{case}"], golden[f"{word}_{case}"]
    if peer.crop is not None:
        made = peer.video(frames)
    elif peer.merge > 1:
        made = peer.tokens(frames)
    else:
        made = peer.tokens(frames[:1])
        if word == "siglip2":  # padded to its longest; padding is not stored
            assert not wanted[len(made) :].any()
            wanted = wanted[: len(made)]
    assert made.dtype == wanted.dtype == np.float32
    assert np.array_equal(made, wanted)


@pytest.mark.parametrize("case", range(4))
def test_the_coordinates_of_timm_are_the_raster(golden, case):
    peer = PEERS["timm_naflex"]
    height, width = peer.frames(golden[f"in{case}"][:1]).shape[1:3]
    raster = np.indices((height // 16, width // 16)).reshape(2, -1).T
    assert np.array_equal(raster, golden[f"timm_naflex_coord_{case}"])


# Other inputs: the arithmetic of transformers 5.23 and torchvision 0.29 restated.


def resize(frames, size, mode):
    batch = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(batch, size=size, mode=mode, antialias=True)


def resize_by_pillow(frames, size):
    made = [Image.fromarray(f).resize(size[::-1], Image.Resampling.BILINEAR) for f in frames]
    return torch.from_numpy(np.stack([np.asarray(image) for image in made])).permute(0, 3, 1, 2)


def short_edge(size, edge):
    height, width = size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(edge * long / short)
    return (new_long, edge) if width <= height else (edge, new_long)


def center_crop(video, side):
    height, width = video.shape[-2:]
    top, left = int((height - side) / 2.0), int((width - side) / 2.0)
    return video[..., top : top + side, left : left + side]


def fused(video, mean, std):
    mean, std = (torch.tensor(values) * (1.0 / (1 / 255)) for values in (mean, std))
    return (video.float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def qwen_patches(video, patch):
    if len(video) % 2:
        video = torch.cat([video, video[-1:]])
    pattern = "(t k) c (h mh p) (w mw q) -> (t h w mh mw) (c k p q)"
    return einops.rearrange(video, pattern, k=2, mh=2, mw=2, p=patch, q=patch)


def noise(size, num_frames=3):
    return np.random.default_rng(5).integers(0, 256, (num_frames, *size, 3), np.uint8)


# Smaller than the crop, odd and even differences, one side the short edge already, thin.
SIZES = [(20, 31), (31, 20), (64, 64), (73, 128), (145, 73), (90, 161), (240, 321), (333, 40)]
HALF = [0.5, 0.5, 0.5]


MARGINS = [(64, 0), (64, 9), (48, 10), (80, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "margin"), MARGINS)
def test_other_sizes_are_cropped_as_by_videomae_and_vjepa2(size, side, margin):
    frames, edge = noise(size), side + margin
    asked = {"policy": "short-side", "value": edge, "crop": (side, side)}
    scaled = center_crop(resize(frames, short_edge(size, edge), "bilinear"), side)
    videomae = Peer(**asked, resampler="torch-bilinear", normalize="half")
    assert np.array_equal(videomae.video(frames), fused(scaled, HALF, HALF))
    vjepa2 = Peer(**asked, resampler="torch-bilinear", normalize="imagenet")
    imagenet = fused(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert np.array_equal(vjepa2.video(frames), imagenet)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "margin"), MARGINS)
def test_other_sizes_are_cropped_as_by_vivit(size, side, margin):
    frames, edge = noise(size), side + margin
    scaled = center_crop(resize_by_pillow(frames, short_edge(size, edge)), side)
    rescaled = (scaled.double() * (1 / 127.5)).float() - 1
    vivit = Peer("short-side", edge, "pillow-bilinear", "vivit", crop=(side, side))
    assert np.array_equal(vivit.video(frames), (rescaled - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("size", "num_frames", "scaled"),
    [
        ((100, 30), 5, (96, 32)),
        ((270, 480), 9, (64, 128)),
        ((14, 42), 2, (32, 96)),
        ((333, 40), 3, (320, 32)),
    ],
)
def test_other_videos_are_cut_as_by_qwen3_vl(size, num_frames, scaled):
    frames = noise(size, num_frames)
    peer = Peer("video-pixels", (4096, 98304), "torch-bicubic", "half", **QWEN)
    wanted = qwen_patches(fused(resize(frames, scaled, "bicubic"), HALF, HALF), 16)
    assert np.array_equal(peer.tokens(frames), wanted)


@pytest.mark.parametrize(
    ("size", "num_frames", "scaled"),
    [((100, 30), 5, (112, 28)), ((270, 480), 9, (224, 420)), ((14, 42), 1, (56, 112))],
)
def test_other_videos_are_cut_as_by_qwen2_vl(size, num_frames, scaled):
    frames = noise(size, num_frames)
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    wanted = qwen_patches(fused(resize(frames, scaled, "bicubic"), *clip), 14)
    assert np.array_equal(PEERS["qwen2_vl"].tokens(frames), wanted)
