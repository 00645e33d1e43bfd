"""`--store refs`: what is on disk, and what is decoded for it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ranked_runs import digests
from referred_packs import SMALL, assert_alike, make_videos
from small_runs import make_dataset, rows

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, SegmentError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset
from spacepatch.pipeline import join_ranks, make_plan, tokenize, tokenize_rank
from spacepatch.ranks import Rank

HERE = Path(__file__).parent
REFS = {"store": "refs"}
CHECKED = {"store": "refs", "checked": True}
STRACE = shutil.which("strace")


@pytest.fixture(scope="module")
def videos(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two of these lose tokens when they are decoded, and no other."""
    return make_videos(tmp_path_factory.mktemp("videos"), sample_clips)


@pytest.fixture(scope="module")
def sound(videos: list[str]) -> list[str]:
    """The folder and the tar of those that lose nothing."""
    return [str(Path(videos[0]) / "a b"), videos[1]]


@pytest.fixture(scope="module")
def tokens(sound: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(sound, tmp_path_factory.mktemp("tokens") / "out", **SMALL)


@pytest.fixture(scope="module")
def planned(sound: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(sound, tmp_path_factory.mktemp("planned") / "out", **SMALL, **REFS)


@pytest.fixture(scope="module")
def checked(sound: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(sound, tmp_path_factory.mktemp("checked") / "out", **SMALL, **CHECKED)


def roots(sources: list[str]) -> dict[int, str]:
    return dict(enumerate(sources))


# --- what is on disk ----------------------------------------------------------------------------


def test_packs_hold_their_segments_and_no_tokens(planned: Path, checked: Path) -> None:
    for folder in (planned, checked):
        assert verify(folder) == []
        receipts = [json.loads(path.read_text()) for path in folder.glob("*-0*.json")]
        assert {tuple(one["members"]) for one in receipts} == {("segments.npy", "pack.json")}
        for path in folder.glob("*.tar"):
            with tarfile.open(path) as tar:
                names = {name.partition(".")[2] for name in tar.getnames()}
            assert names == {"segments.npy", "pack.json"}


def test_bytes_go_by_segments_and_not_by_tokens(sample_clips: Path, tmp_path: Path) -> None:
    def packed(name: str, **settings: Any) -> tuple[int, int, int]:
        """Bytes of the members, segments, tokens."""
        config = {"clip_seconds": 0.25, "fps": "8", "pack_length": 10**6, **REFS}
        out = make_dataset([sample_clips], tmp_path / name, **config | settings)
        held = json.loads((out / "dataset.json").read_text())["totals"]
        size = 0
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                size += sum(info.size for info in tar)
        return size, held["segments"], held["tokens"]

    small, few, little = packed("small", max_tokens_per_frame=16)
    large, same, much = packed("large", max_tokens_per_frame=400)
    assert few == same > 100 and much > 15 * little
    assert large < 1.1 * small
    assert small / few < 700


def test_only_the_checksums_differ_between_planned_checked_and_stored(
    planned: Path, checked: Path, tokens: Path
) -> None:
    stored = rows(tokens, "segments.parquet")
    assert rows(checked, "segments.parquet") == stored
    unknown = {"tokens_crc32c": None, "decoder": ""}
    assert rows(planned, "segments.parquet") == [row | unknown for row in stored]
    assert len({row["shard"] for row in stored}) > 2


def test_what_was_planned_is_loaded_as_it_was_stored(
    planned: Path, tokens: Path, sound: list[str]
) -> None:
    assert_alike(PackDataset(tokens), PackDataset(planned, source_root=roots(sound)))


def test_checked_packs_hold_what_there_is_and_planned_ones_what_was_to_be(
    videos: list[str], tmp_path: Path
) -> None:
    checked = make_dataset(videos, tmp_path / "checked", **SMALL, **CHECKED)
    planned = make_dataset(videos, tmp_path / "planned", **SMALL, **REFS)
    lost = {(row["source"], row["clip"]) for row in rows(checked, "losses.parquet")
            if row["num_tokens"]}  # fmt: skip
    assert {source for source, _ in lost} == {"damaged.mp4"}
    assert not [row for row in rows(planned, "losses.parquet") if row["num_tokens"]]
    assert_loads_all_but(PackDataset(checked, source_root=roots(videos)), set())
    assert_loads_all_but(
        PackDataset(planned, source_root=roots(videos), on_bad_source="skip"), lost
    )
    with pytest.raises(SegmentError, match=r"gives \d+ tokens of the \d+ .*--checked") as caught:
        list(PackDataset(planned, source_root=roots(videos)))
    assert (caught.value.reason, caught.value.source) == ("fewer_tokens", "damaged.mp4")


def assert_loads_all_but(packs: PackDataset, lost: set[tuple[str, int]]) -> None:
    found = {(one["source"], one["clip"]) for pack in packs for one in pack["segments"]}
    written = {(row["source"], row["clip"]) for row in rows(packs.folder, "segments.parquet")}
    assert found == written - lost
    assert packs.num_bad_segments == len(lost)


# --- what is decoded ----------------------------------------------------------------------------


@pytest.mark.skipif(STRACE is None, reason="strace is not on the PATH")
def test_nothing_is_opened_that_is_not_checked(sound: list[str], tmp_path: Path) -> None:
    def opened(out: Path, *more: str) -> int:
        """Times that any process of a run opens a source."""
        log = tmp_path / "log"
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
        trace = f"{STRACE} -f -qq -e trace=openat,open -o".split()
        run = [sys.executable, "-m", "spacepatch", "tokenize", *sound, "--out", str(out)]
        subprocess.run([*trace, str(log), *run, "--store=refs", *flags, *more],
                       check=True, capture_output=True, timeout=120)  # fmt: skip
        kinds = (".mp4", ".webm", Path(sound[1]).name)
        return sum(any(kind in line for kind in kinds) for line in log.read_text().splitlines())

    def planned(name: str, **settings: Any) -> Path:
        out = tmp_path / name
        make_plan(sound, out=out, config=load_config(SMALL | REFS | settings))
        return out

    out = planned("refs")
    from_plan, when_done = opened(out), opened(out)
    assert (out / "dataset.json").exists()
    # Whether they are still what was planned is looked at by every start.
    assert from_plan == when_done
    assert opened(planned("checked", checked=True), "--checked") >= from_plan + 5  # sources


# --- runs of all kinds --------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [REFS, CHECKED])
def test_ranks_that_finish_together_write_the_same(
    sound: list[str], planned: Path, checked: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = load_config(SMALL | settings)
    out = tmp_path / "out"
    make_plan(sound, out=out, config=config)
    for rank in range(2):
        tokenize_rank(sound, out=out, config=config, rank=Rank(rank, 2))
    join_ranks(out)
    assert digests(out) == digests(checked if settings is CHECKED else planned)


@pytest.mark.parametrize("settings", [REFS, CHECKED])
def test_killed_in_the_middle_it_resumes_to_the_same_bytes(
    sound: list[str], planned: Path, checked: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    flags += ["--store=refs", *(["--checked"] if settings is CHECKED else [])]
    script = [sys.executable, str(HERE / "killed_at_step.py"), "26", "tokenize", *sound]
    killed = subprocess.run([*script, "--out", str(out), *flags], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert list(out.glob("*.tar")) and not (out / "dataset.json").exists()
    tokenize(sound, out=out, config=load_config(SMALL | settings))
    assert digests(out) == digests(checked if settings is CHECKED else planned)


def test_append_adds_what_is_new(sound: list[str], sample_clips: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound[0], tmp_path / "videos"))
    out = tmp_path / "out"
    config = load_config(SMALL | CHECKED | {"pack_length": 64})
    tokenize([str(folder)], out=out, config=config)
    before = digests(out)
    shutil.copy(sample_clips / "portrait_270x480.mp4", folder)
    tokenize([str(folder)], out=out, config=config, append=True)
    after = digests(out)
    assert all(after[name] == digest for name, digest in before.items() if name.endswith(".tar"))
    assert verify(out) == []
    packs = PackDataset(out, source_root=folder)
    found = {segment["source"] for pack in packs for segment in pack["segments"]}
    assert "portrait_270x480.mp4" in found and len(found) == 4


def test_splits_are_loaded_one_by_one(sound: list[str], tmp_path: Path) -> None:
    settings = SMALL | {"split": "train=0.6,val=0.4"}
    tokens = make_dataset(sound, tmp_path / "tokens", **settings)
    refs = make_dataset(sound, tmp_path / "refs", **settings, **CHECKED)
    for split in ("train", "val"):
        stored = PackDataset(tokens, split=split)
        assert len(stored)
        assert_alike(stored, PackDataset(refs, split=split, source_root=roots(sound)))


# --- what it does not go with -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"store": "refs", "drop": "static"}, "store refs decodes none: add --checked"),
        ({"store": "refs", "encoder": "linear:x"}, "store refs is for pixels"),
        ({"checked": True}, "checked is for store refs, not tokens"),
        ({"store": "compressed", "checked": True}, "checked is for store refs, not compressed"),
        ({"store": "references"}, "must be one of tokens, refs"),
        ({"store": "refs:42"}, "must be one of tokens, refs"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(settings)
