"""Conversion of compressed tokens: read and written again, or made of the sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from other_stores import CHECKED, made, restored
from stored_segments import digests

from spacepatch.errors import ConfigError
from spacepatch.inspection import verify
from spacepatch.pipeline import convert, repack


@pytest.fixture(scope="module")
def tokens(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(videos, tmp_path_factory.mktemp("tokens") / "a")


@pytest.mark.parametrize("settings", [{}, {"drop": "random:0.5"}, {"split": "a=0.6,b=0.4"}])
def test_exact_tokens_are_compressed_and_back_without_their_sources(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    made_so = {}
    for name in ("tokens", "compressed", "compressed:40"):
        made_so[name] = made(
            sample_clips, tmp_path / name.replace(":", "-"), store=name, **settings
        )
    ways = [("tokens", "compressed"), ("tokens", "compressed:40"), ("compressed", "tokens")]
    for before, after in [*ways, ("compressed", "compressed:40")]:
        out = tmp_path / f"{before}-{after.replace(':', '-')}"
        convert(made_so[before], out=out, store=after)
        assert digests(out) == digests(made_so[after]), (before, after)


@pytest.mark.parametrize("store", ["compressed", "compressed:40"])
def test_compressed_tokens_become_references_and_come_back(
    sample_clips: Path, tmp_path: Path, store: str
) -> None:
    before = made(sample_clips, tmp_path / "before", store=store)
    checked = made(sample_clips, tmp_path / "checked", **CHECKED)
    convert(before, out=tmp_path / "refs", store="refs")
    assert digests(tmp_path / "refs") == digests(checked)
    restored(tmp_path / "refs", tmp_path / "back", sample_clips, store)
    assert digests(tmp_path / "back") == digests(before)


def test_tokens_that_are_not_exact_are_made_of_their_sources(
    sample_clips: Path, tokens: Path, videos: Path, tmp_path: Path
) -> None:
    lossy = made(videos, tmp_path / "lossy", store="compressed:40")
    for wish in ("tokens", "compressed", "compressed:50"):
        with pytest.raises(ConfigError, match=r"compressed:40 holds no exact tokens.*--source-r"):
            convert(lossy, out=tmp_path / "x", store=wish)
    restored(lossy, tmp_path / "back", videos)
    assert digests(tmp_path / "back") == digests(tokens)
    with pytest.raises(ConfigError, match="not exact, and stored once more"):
        convert(lossy, out=tmp_path / "x", layout="t p q c")
    with pytest.raises(ConfigError, match="each time they are stored"):
        repack(lossy, out=tmp_path / "x", pack_length=768)


def test_compressed_tokens_are_laid_out_and_packed_anew(videos: Path, tmp_path: Path) -> None:
    before = made(videos, tmp_path / "before", store="compressed")
    expected = made(videos, tmp_path / "expected", store="compressed", layout="t p q c")
    convert(before, out=tmp_path / "laid", layout="t p q c")
    assert digests(tmp_path / "laid") == digests(expected)
    tokens = made(videos, tmp_path / "tokens")
    repack(before, out=tmp_path / "a", pack_length=768)
    repack(tokens, out=tmp_path / "b", pack_length=768)
    assert verify(tmp_path / "a") == []
    convert(tmp_path / "a", out=tmp_path / "c", store="tokens")
    assert digests(tmp_path / "c") == digests(tmp_path / "b")
