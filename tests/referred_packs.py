"""Datasets of references beside those of the tokens that they refer to."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from listings import make_tar
from PIL import Image
from small_runs import make_dataset

from spacepatch.loader import PackDataset
from spacepatch.shards.writing import PACK_JSON_REFERENCE

CLIPS = ("square_320x320.mp4", "rotated_90_phone.mp4", "odd_size_321x179_vp9.webm")
IN_TAR = ("portrait_270x480.mp4", "variable_frame_rate_480x270.mp4")
DAMAGED = "damaged.mp4"
SMALL = {
    "fps": "4",
    "max_tokens_per_frame": 16,
    "pack_length": 96,
    "shard_size": "250kB",
    "workers": 1,
}
"""Several shards of several packs each of what `make_videos` makes."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": {"clip_seconds": 0.5, "views": 2, "random_crop": "uniform:0.3..1"},
    "cut to fit": {"cut_to_fit": True, "halo": 2, "index": "full"},
    "drawn drops": {"drop": "random:uniform:0.2..0.7", "order": "merge 2 x 2", "multiple": 2},
    "counted drops": {
        "drop": "tokens:40",
        "clip_seconds": 1,
        "tail": "pad",
        "patch": "4x16x16",
        "layout": "t p q c",
    },
    "static": {"drop": "static", "mask": "tube:0.5", "store_mask": True, "clip_seconds": 1},
    "widths": {"patch": "1x16x16,2x8x8", "views": "all"},
    "alpha": {"alpha": True, "mask": "random:0.75", "store_mask": True, "max_segments": 3},
    "offsets": {"random_offset": True, "clip_seconds": 1, "clip_stride": 0.7, "tail": "drop"},
    "damage": {"allow_corrupt": True, "every_frame": True, "cut_to_fit": True},
}
"""Settings that make other tokens, or other packs of them."""


def make_videos(folder: Path, samples: Path) -> list[str]:
    """A folder of clips, with one that is damaged in the middle, one cut off, and a transparent
    film; and a tar of others: the SOURCE arguments."""
    videos = folder / "videos"
    (videos / "a b").mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(samples / name, videos / "a b")
    content = bytearray((samples / CLIPS[0]).read_bytes())
    start = content.index(b"mdat")
    place = start + int(int.from_bytes(content[start - 4 : start]) * 0.7)
    content[place : place + 200] = bytes(200)
    (videos / DAMAGED).write_bytes(content)
    whole = (samples / "ultrawide_960x270.mp4").read_bytes()
    (videos / "cut_off.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    films = [Image.new("RGBA", (48, 32), (60 * n, 200, 255 - 60 * n, 80 * n)) for n in range(4)]
    films[0].save(
        videos / "film.png", save_all=True, append_images=films[1:], duration=250, disposal=1
    )
    tar = make_tar(folder / "some.tar", [(n, (samples / n).read_bytes()) for n in IN_TAR])
    return [str(videos), str(tar)]


@dataclass(frozen=True)
class Pair:
    """The same packs twice."""

    tokens: Path
    refs: Path
    sources: list[str]

    @property
    def roots(self) -> dict[int, str]:
        return dict(enumerate(self.sources))

    def load(self, **options: Any) -> PackDataset:
        """The packs of references."""
        return PackDataset(self.refs, **{"source_root": self.roots} | options)


def make_pair(sources: list[str], folder: Path, **settings: Any) -> Pair:
    """Of references that are checked."""
    settings = SMALL | settings
    if settings.get("every_frame") or settings.get("num_frames"):
        del settings["fps"]
    tokens = make_dataset(sources, folder / "tokens", **settings)
    refs = make_dataset(sources, folder / "refs", store="refs", checked=True, **settings)
    return Pair(tokens, refs, sources)


def alike(pack: dict[str, Any]) -> dict[str, Any]:
    """A pack, or a batch, without what pack.json says of references alone."""

    def plain(one: Any) -> Any:
        if isinstance(one, list):
            return [plain(each) for each in one]
        return {key: value for key, value in one.items() if key not in PACK_JSON_REFERENCE}

    return pack | {"segments": plain(pack["segments"])}


def assert_alike(some: Iterable[Any], others: Iterable[Any]) -> None:
    """The same packs in the same order, in all of their tensors."""
    for one, other in zip(some, others, strict=True):
        assert_equal(alike(one), alike(other))


def assert_equal(one: Any, other: Any, name: str = "") -> None:
    """In all that a pack or a batch holds, bit by bit."""
    assert type(one) is type(other), name
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key], key)
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for value, another in zip(one, other, strict=True):
            assert_equal(value, another, name)
    else:
        assert one == other, name


def ids_of(pack: dict[str, Any]) -> list[str]:
    return [segment["segment_id"] for segment in pack["segments"]]


def without(pack: dict[str, Any], segment_id: str) -> dict[str, torch.Tensor]:
    """Of a pack that is not padded: ids, tokens and positions if it never had had a segment."""
    place = ids_of(pack).index(segment_id) + 1
    ids = pack["segment_ids"]
    keep = ids != place
    left = ids[keep]
    return {
        "tokens": pack["tokens"][keep],
        "positions": pack["positions"][keep],
        "seconds": pack["seconds"][keep],
        "segment_ids": left - (left > place).to(left.dtype),
    }
