"""Repacking: the same segments in other packs, without decoding."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from encoded_runs import codec
from small_runs import rows, run
from stored_segments import digests

from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset
from spacepatch.packers import ALL_PACKERS
from spacepatch.pipeline import convert, repack

HERE = Path(__file__).parent
PLACE = ("shard", "pack", "offset")
TINY = {"pack_length": 512, "shard_size": "1MB"}


def segments_in(folder: Path) -> Counter[tuple[str, ...]]:
    """Of every segment its id and a hash of what each member has of it, by tarfile and numpy."""
    found: Counter[tuple[str, ...]] = Counter()
    for path in sorted(folder.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, member = info.name.partition(".")
                samples.setdefault(key, {})[member] = tar.extractfile(info).read()
        for sample in samples.values():
            described = json.loads(sample["pack.json"])["segments"]
            arrays = {
                name: np.load(io.BytesIO(content))
                for name, content in sample.items()
                if name.endswith(".npy") and name != "segment_ids.npy"
            }
            table, beside = arrays.pop("segments.npy"), arrays.pop("pixel_segments.npy", None)
            for number, segment in enumerate(described):
                start, count = table[number, :2]
                hashes = [segment["segment_id"]]
                for name, array in sorted(arrays.items()):
                    part = array[start : start + count]
                    if name == "pixels.npy":
                        part = array[beside[number, 0] :][: beside[number, 1]]
                    hashes.append(name + hashlib.sha256(part.tobytes()).hexdigest())
                found[tuple(hashes)] += 1
    return found


def without_place(folder: Path) -> list[dict[str, Any]]:
    """segments.parquet but for where segments lie."""
    table = [
        {key: value for key, value in row.items() if key not in PLACE}
        for row in rows(folder, "segments.parquet")
    ]
    return sorted(table, key=lambda row: row["segment_id"])


def check_repacked(before: Path, after: Path, pack_length: int) -> None:
    """The same in other packs; a whole dataset."""
    assert verify(after) == []
    assert segments_in(after) == segments_in(before)
    assert without_place(after) == without_place(before)
    key = ("source", "clip", "reason", "num_frames", "num_tokens")
    lost = [
        sorted(tuple(str(row[name]) for name in key) for row in rows(folder, "losses.parquet"))
        for folder in (before, after)
    ]
    assert lost[0] == lost[1]
    sources = [parquet.read_table(folder / "sources.parquet") for folder in (before, after)]
    assert sources[0].equals(sources[1])
    held = Counter()
    for row in rows(after, "segments.parquet"):
        held[row["shard"], row["pack"]] += row["num_kept"]
    assert max(held.values()) <= pack_length


@pytest.fixture(scope="module")
def dataset(part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sample clips, two of them with lost rows, in packs of 512."""
    out = tmp_path_factory.mktemp("dataset") / "a"
    run(part_damaged, out, **TINY)
    assert rows(out, "losses.parquet")
    assert len(list(out.glob("*.tar"))) > 3
    return out


@pytest.mark.parametrize("packer", ALL_PACKERS)
def test_every_packer_packs_the_same_segments_in_no_fewer_packs_than_the_bound(
    dataset: Path, tmp_path: Path, packer: str
) -> None:
    if packer in ("nnlshp", "optimal"):
        pytest.importorskip("scipy", reason="nnlshp and optimal need scipy")
    summary = repack(dataset, out=tmp_path / "b", pack_length=560, packer=packer, max_segments=9)
    check_repacked(dataset, tmp_path / "b", 560)
    assert summary.totals["packs"] >= summary.totals["lower_bound"]
    packs = Counter((row["shard"], row["pack"]) for row in rows(tmp_path / "b", "segments.parquet"))
    assert max(packs.values()) <= 9


@pytest.mark.parametrize(
    "settings",
    [
        {"drop": "static", "multiple": 2, "order": "merge 2 x 2"},
        {"drop": "random:0.5", "index": "compact", "mask": "tube:0.75", "store_mask": True},
        {"patch": "1x32x32,1x16x16,2x16x16", "views": "all", "multiple": 1, "resolution": "96"},
        {"cut_to_fit": True, "halo": 3},
        {"split": "train=0.5,val=0.5"},
    ],
    ids=["static", "mask", "widths", "cut", "split"],
)
def test_whatever_packs_hold_is_carried_over(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    if "resolution" in settings:
        settings = settings | {"max_tokens_per_frame": None}
    run([sample_clips], tmp_path / "a", **TINY, **settings)
    repack(tmp_path / "a", out=tmp_path / "b", pack_length=1024, balance="attention")
    check_repacked(tmp_path / "a", tmp_path / "b", 1024)


def test_codes_with_pixels_beside_them_are_carried_over(sample_clips: Path, tmp_path: Path) -> None:
    settings = {"encoder": codec(tmp_path, codebook=16, channels=3), "also": "pixels"}
    settings |= {"patch": "1x1x1", "max_tokens_per_frame": 128, "kind": "codes"}
    run([sample_clips], tmp_path / "a", pack_length=1024, shard_size="1MB", **settings)
    repack(tmp_path / "a", out=tmp_path / "b", pack_length=1500)
    check_repacked(tmp_path / "a", tmp_path / "b", 1500)


def test_latents_are_carried_over_with_what_was_measured_of_them(
    sample_clips: Path, tmp_path: Path
) -> None:
    settings = {"encoder": codec(tmp_path), "patch": "1x2x2", "kind": "latents"}
    run([sample_clips], tmp_path / "a", pack_length=512, shard_size="300KB", **settings)
    repack(tmp_path / "a", out=tmp_path / "b", pack_length=700)
    check_repacked(tmp_path / "a", tmp_path / "b", 700)
    before, after = (
        json.loads((tmp_path / name / "dataset.json").read_text())["encoder"] for name in "ab"
    )
    np.testing.assert_allclose(after.pop("mean"), before.pop("mean"), rtol=1e-12)
    np.testing.assert_allclose(after.pop("std"), before.pop("std"), rtol=1e-12)
    assert after == before


def test_a_repack_is_byte_by_byte_what_tokenizing_so_would_have_written(
    part_damaged: list[Path], tmp_path: Path
) -> None:
    """Where no clip was cut for the old length, and no source takes several runs; with losses."""
    short, long = {"pack_length": 1024}, {"pack_length": 2048, "balance": "attention"}
    same = {"shard_size": "8MB", "name": "same", "clip_seconds": "2"}
    run(part_damaged, tmp_path / "a", **same, **short)
    run(part_damaged, tmp_path / "expected", **same, **long)
    repack(tmp_path / "a", out=tmp_path / "b", name="same", **long)
    expected, found = digests(tmp_path / "expected"), digests(tmp_path / "b")
    files = [name for name in expected if not name.endswith(".json")]
    assert len(files) > 5
    assert any(row["stage"] == "decode" for row in rows(tmp_path / "b", "losses.parquet"))
    assert {name: found[name] for name in files} == {name: expected[name] for name in files}
    assert json.loads((tmp_path / "b" / "plan.json").read_text())["settings"]["repacked"] == "1024"


def test_there_and_back_gives_the_same_bytes(sample_clips: Path, tmp_path: Path) -> None:
    run([sample_clips], tmp_path / "a", **TINY)
    repack(tmp_path / "a", out=tmp_path / "b", pack_length=3000, packer="spfhp", max_segments=4)
    settings = {"pack_length": 512, "packer": "best-fit-decreasing", "max_segments": 0}
    repack(tmp_path / "b", out=tmp_path / "c", **settings)
    assert digests(tmp_path / "c") == digests(tmp_path / "a")


def test_a_repacked_dataset_loads_and_shows_and_decodes_as_before(
    dataset: Path, part_damaged: list[Path], tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    out = tmp_path / "b"
    repack(dataset, out=out, pack_length=1024)
    sums = [
        Counter(
            (segment["segment_id"], int(pack["tokens"][start:stop].long().sum()))
            for pack in PackDataset(folder, padded=False)
            for segment, start, stop in zip(
                pack["segments"], pack["cu_seqlens"].tolist(), pack["cu_seqlens"].tolist()[1:],
                strict=False,
            )
        )
        for folder in (dataset, out)
    ]  # fmt: skip
    assert sums[0] == sums[1]
    roots = [f"--source-root={n}={path}" for n, path in enumerate(part_damaged)]
    done = spacepatch_cli("verify", out, "--decode", "4", *roots)
    assert done.returncode == 0, done.stdout + done.stderr
    done = spacepatch_cli("preview", out, "--out", tmp_path / "packs.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "packs.png").stat().st_size > 1000


def test_what_was_repacked_can_be_converted_and_repacked_again(
    dataset: Path, tmp_path: Path
) -> None:
    repack(dataset, out=tmp_path / "b", pack_length=900, balance="attention")
    convert(tmp_path / "b", out=tmp_path / "c", layout="t p q c")
    assert verify(tmp_path / "c") == []
    repack(tmp_path / "c", out=tmp_path / "d", pack_length=512, balance="none", shard_size="3MB")
    assert verify(tmp_path / "d") == []
    convert(tmp_path / "d", out=tmp_path / "e", layout="c t p q")
    assert segments_in(tmp_path / "e") == segments_in(dataset)


def test_segments_that_were_cut_to_fit_are_not_cut_into_other_tubelets(
    sample_clips: Path, tmp_path: Path
) -> None:
    run([sample_clips], tmp_path / "a", **TINY, cut_to_fit=True, patch="2x16x16")
    repack(tmp_path / "a", out=tmp_path / "b", packer="next-fit")
    with pytest.raises(ConfigError, match="segments were cut to fit packs"):
        convert(tmp_path / "b", out=tmp_path / "c", patch="1x16x16")


# --- interrupted, mended, repeated -------------------------------------------------------------


def test_killed_it_resumes_to_the_same_bytes(
    dataset: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    def command(out: Path) -> list[str]:
        return ["repack", str(dataset), "--pack-length", "700", "--out", str(out)]

    def started(step: int, out: Path) -> subprocess.CompletedProcess[str]:
        arguments = [str(HERE / "killed_at_step.py"), str(step), *command(out)]
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)

    whole = started(0, tmp_path / "whole")
    match = re.search(r"steps: (\d+)", whole.stderr)
    assert match is not None, whole.stderr
    for share in (0.3, 0.85):
        out = tmp_path / str(share)
        assert started(int(int(match[1]) * share), out).returncode == -signal.SIGKILL
        assert not (out / "dataset.json").exists()
        done = spacepatch_cli(*command(out))
        assert done.returncode == 0, done.stderr
        assert digests(out) == digests(tmp_path / "whole")
    assert verify(tmp_path / "whole") == []


def test_what_is_done_is_not_done_again_but_for_what_was_mended(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    repack(dataset, out=out, pack_length=700)
    expected = digests(out)
    receipts = sorted(path for path in out.glob("*-0*.json"))
    # As it would be, had a source been lost when the second shard was repacked.
    document = json.loads(receipts[1].read_text())
    receipts[1].write_text(json.dumps(document | {"observed": {}}))
    times = [path.stat().st_mtime_ns for path in receipts]
    repack(dataset, out=out, pack_length=700)
    assert digests(out) == expected
    after = [path.stat().st_mtime_ns for path in receipts]
    assert [k for k, pair in enumerate(zip(times, after, strict=True)) if pair[0] != pair[1]] == [1]


def test_tokenize_does_not_go_on_with_what_was_repacked(sample_clips: Path, tmp_path: Path) -> None:
    clip = sample_clips / "square_320x320.mp4"
    run([clip], tmp_path / "a", pack_length=512)
    repack(tmp_path / "a", out=tmp_path / "b", pack_length=1024)
    with pytest.raises(ResumeError, match="repacked was '512'"):
        run([clip], tmp_path / "b", pack_length=1024)


def test_tokens_are_never_copied_into_memory(dataset: Path, tmp_path: Path) -> None:
    num_bytes = sum(path.stat().st_size for path in dataset.glob("*.tar"))
    repack(dataset, out=tmp_path / "warm", pack_length=600)
    tracemalloc.start()
    repack(dataset, out=tmp_path / "b", pack_length=1024, shard_size="1GB")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(list((tmp_path / "b").glob("*.tar"))) == 1
    assert peak < num_bytes / 4


# --- what cannot be had ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "nothing to pack otherwise"),
        ({"pack_length": 8}, r"clip 0 has a segment of \d+ tokens, .* give --pack-length \d+"),
        ({"packer": "best"}, "packer: must be one of .*did you mean best-fit-decreasing"),
        ({"window": 3}, "window is for packer first-fit"),
        ({"balance": "tokens"}, "balance: must be one of attention"),
        ({"shard_size": "large"}, "shard_size: not a size"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_anything_is_written(
    dataset: Path, tmp_path: Path, wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        repack(dataset, out=tmp_path / "x", **wish)
    assert not (tmp_path / "x").exists()


def test_what_is_no_whole_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the dataset itself"):
        repack(dataset, out=dataset / "." / "", packer="spfhp")
    with pytest.raises(ShardError, match=r"no dataset\.json: not a dataset, or an unfinished one"):
        repack(tmp_path, out=tmp_path / "x", packer="spfhp")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ResumeError, match="holds no spacepatch run"):
        repack(dataset, out=tmp_path / "full", packer="spfhp")
    repack(dataset, out=tmp_path / "y", packer="spfhp")
    with pytest.raises(ResumeError, match="holds another dataset"):
        repack(dataset, out=tmp_path / "y", pack_length=1024)
    repack(dataset, out=tmp_path / "y", pack_length=1024, overwrite=True)
    assert verify(tmp_path / "y") == []


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("tar", "is damaged"),
        ("segments.parquet", "is damaged"),
        ("index.npy", "missing"),
        ("json", "no receipt"),
    ],
)
def test_a_damaged_shard_is_named_and_nothing_is_finished(
    dataset: Path, tmp_path: Path, ending: str, words: str
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    path = sorted(copy.glob(f"*-000001.{ending}"))[0]
    if words == "is damaged":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(ShardError, match=rf"{re.escape(path.name)}.*{words}"):
        repack(copy, out=tmp_path / "x", pack_length=1024)
    assert not (tmp_path / "x" / "dataset.json").exists()


# --- the command -------------------------------------------------------------------------------


def test_the_command_says_how_few_packs_there_can_be_and_how_even_they_are(
    dataset: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    flags = ["--pack-length", "700", "--balance", "attention", "--name", "even"]
    done = spacepatch_cli("repack", dataset, *flags, "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "attention before: cost max/mean " in done.stdout
    assert re.search(r"attention after: .*; without balance cost max/mean", done.stdout)
    assert re.search(r"lower bound \d+ \(", done.stdout)
    assert (tmp_path / "b" / "even-000000.tar").exists()
    done = spacepatch_cli("repack", dataset, *flags, "--out", tmp_path / "c", "--json")
    found = json.loads(done.stdout)
    assert found["totals"]["packs"] >= found["lower_bound"]["packs"]
    assert found["attention"]["after"]["variation"] < found["attention"]["before"]["variation"]
