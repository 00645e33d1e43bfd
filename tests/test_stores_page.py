"""The page on shards without pixels: its example runs, and what it says of each store is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import SpacepatchCli
from small_runs import run
from stored_segments import digests

from spacepatch.errors import ConfigError, ShardError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset
from spacepatch.pipeline import Restoring, convert

PAGE = Path(__file__).resolve().parents[1] / "docs" / "refs.md"
CLIPS = ("square_320x320.mp4", "landscape_640x360.mp4", "still_picture_400x300.png")
FLOOR = 42


@pytest.fixture(scope="module")
def stores(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clips in each store, in a folder each."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "videos").mkdir()
    for name in CLIPS:
        (folder / "videos" / name).symlink_to(sample_clips / name)
    made = {"videos": folder / "videos"}
    for name, settings in {
        "tokens": {},
        "refs": {"store": "refs"},
        "checked": {"store": "refs", "checked": True},
        "compressed": {"store": "compressed"},
        "lossy": {"store": f"compressed:{FLOOR}"},
    }.items():
        made[name] = folder / name
        run([str(folder / "videos")], made[name], pack_length=2048, **settings)
    return made


def test_the_example_of_the_page_on_refs_runs(
    stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PAGE.name == "refs.md"
    monkeypatch.chdir(stores["tokens"].parent)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("num_workers=4", "num_workers=1"), names)
    tokens = names["tokens"]
    assert isinstance(tokens, torch.Tensor)
    assert tokens.dtype == torch.float32
    assert tokens.shape[1:] == (2048, 1536)


def test_a_folder_may_be_called_as_its_store(
    sample_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(f"compressed:{FLOOR}")  # no URL
    run([str(sample_clips / CLIPS[2])], out, store=str(out))
    assert verify(out) == []
    assert len(PackDataset(out)) == 1


def test_packs_are_the_same_in_every_store_and_every_store_is_clean(
    stores: dict[str, Path],
) -> None:
    tables = {}
    for name in ("tokens", "refs", "checked", "compressed", "lossy"):
        assert verify(stores[name]) == [], name
        columns = ["segment_id", "pack", "offset", "num_kept", "frame_pts", "source"]
        tables[name] = parquet.read_table(stores[name] / "segments.parquet", columns=columns)
        assert tables[name] == tables["tokens"], name


def test_compressed_tokens_are_the_very_same_and_lossy_ones_above_their_floor(
    stores: dict[str, Path],
) -> None:
    exact, packed = PackDataset(stores["tokens"]), PackDataset(stores["compressed"])
    lossy = PackDataset(stores["lossy"])
    columns = ["segment_id", "psnr", "tokens_crc32c"]
    noted = {
        row["segment_id"]: row
        for row in parquet.read_table(
            stores["lossy"] / "segments.parquet", columns=columns
        ).to_pylist()
    }
    before = parquet.read_table(stores["tokens"] / "segments.parquet", columns=columns).to_pylist()
    # Of what they were, so that whoever has the sources can make it again.
    assert {row["segment_id"]: row["tokens_crc32c"] for row in before} == {
        name: row["tokens_crc32c"] for name, row in noted.items()
    }
    assert all(row["psnr"] is None for row in before)
    for index, pack in enumerate(exact):
        assert torch.equal(packed[index]["tokens"], pack["tokens"])
        other = lossy[index]
        for number, segment in enumerate(pack["segments"], 1):
            own = pack["segment_ids"] == number
            a, b = (x["tokens"][own].numpy().astype(np.float64) for x in (pack, other))
            psnr = 10 * np.log10(255**2 / np.square(a - b).mean())
            assert psnr == pytest.approx(noted[segment["segment_id"]]["psnr"], abs=0.002)
            assert psnr >= FLOOR
    sizes = {
        name: sum(tar.stat().st_size for tar in stores[name].glob("*.tar"))
        for name in ("refs", "lossy", "compressed", "tokens")
    }
    assert sorted(sizes, key=lambda name: sizes[name]) == list(sizes)


def test_a_damaged_compressed_member_is_found_by_verify_and_by_the_loader(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    out = shutil.copytree(stores["compressed"], tmp_path / "out")
    (tar,) = out.glob("*.tar")
    index = np.load(next(out.glob("*.index.npy")))
    content = bytearray(tar.read_bytes())
    offset, size = index[0, 0].tolist()
    content[offset + size // 2] ^= 255
    tar.write_bytes(content)
    assert any("crc32c" in problem.what for problem in verify(out))
    with pytest.raises(ShardError, match="crc32c differs"):
        PackDataset(out)[0]


def test_bench_says_that_references_cost_nothing_to_measure(
    stores: dict[str, Path], spacepatch_cli: SpacepatchCli
) -> None:
    done = spacepatch_cli("bench", str(stores["videos"]), "--store", "refs")
    assert done.returncode == 2
    assert done.stderr.startswith("error: store refs decodes nothing")
    assert done.stderr.count("\n") == 1


def test_references_of_ranges_in_a_manifest_become_the_tokens_of_these_ranges(
    sample_clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for name in CLIPS[:2]:
        shutil.copy(sample_clips / name, tmp_path / "videos")
    lines = ["uri,start,end,label"]
    lines += [f"{CLIPS[0]},0,0.5,one", f"{CLIPS[0]},0.5,1,two", f"{CLIPS[1]},0,1,three"]
    manifest = tmp_path / "videos" / "ranges.csv"
    manifest.write_text("\n".join(lines))
    run([str(manifest)], tmp_path / "tokens", pack_length=512)
    run([str(manifest)], tmp_path / "refs", pack_length=512, store="refs")
    with pytest.raises(ConfigError, match=r"SOURCE argument 0 lie \(.*--source-root 0=DIR"):
        convert(tmp_path / "refs", out=tmp_path / "made", store="tokens")
    restoring = Restoring(roots={0: str(manifest)})
    convert(tmp_path / "refs", out=tmp_path / "made", store="tokens", restoring=restoring)
    assert digests(tmp_path / "made") == digests(tmp_path / "tokens")
    loaded = PackDataset(tmp_path / "refs", source_root=manifest)
    for one, other in zip(loaded, PackDataset(tmp_path / "tokens"), strict=True):
        assert torch.equal(one["tokens"], other["tokens"])
        assert one["segments"][0]["extra"] == other["segments"][0]["extra"] != {}
