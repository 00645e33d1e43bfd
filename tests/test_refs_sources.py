"""Where the sources of references are, and what is said of those that are not what they were."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listings import make_tar
from referred_packs import (
    CLIPS,
    Pair,
    alike,
    assert_alike,
    assert_equal,
    ids_of,
    make_pair,
    without,
)
from s3_server import S3Server
from spoiled_shards import Shard, in_row
from torch.utils.data import DataLoader

from spacepatch.errors import ConfigError, SegmentError, ShardError
from spacepatch.loader import PackDataset, PackLoader, PackStream
from spacepatch.loader.token_maker import TokenMaker

SQUARE, ROTATED, ODD = CLIPS
PORTRAIT, LONG = "portrait_270x480.mp4", "landscape_640x360.mp4"


@pytest.fixture(scope="module")
def pair(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of a folder, a tar and a manifest of ranges."""
    folder = tmp_path_factory.mktemp("sources")
    videos = folder / "videos"
    (videos / "a b").mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(sample_clips / name, videos / "a b")
    make_tar(folder / "some.tar", [("k/" + PORTRAIT, (sample_clips / PORTRAIT).read_bytes())])
    shutil.copy(sample_clips / LONG, folder)
    lines = ["uri,start,end,label", f"{LONG},0,1.5,early", f"{LONG},2,3,late"]
    (folder / "list.csv").write_text("\n".join(lines))
    sources = [str(videos), str(folder / "some.tar"), str(folder / "list.csv")]
    return make_pair(sources, tmp_path_factory.mktemp("pair"), clip_seconds=1.2, pack_length=256)


@pytest.fixture
def moved(pair: Pair, tmp_path: Path) -> Path:
    """A copy of all sources, which a test may spoil."""
    return shutil.copytree(Path(pair.sources[0]).parent, tmp_path / "moved")


def roots_in(folder: Path | str) -> dict[int, str]:
    names = ("videos", "some.tar", "list.csv")
    return {place: f"{folder}/{name}" for place, name in enumerate(names)}


def pack_with(packs: PackDataset, name: str) -> int:
    """A pack that has a segment of this source, and one of another."""
    for index, pack in enumerate(PackDataset(packs.folder.with_name("tokens"))):
        found = {Path(segment["source"]).name for segment in pack["segments"]}
        if name in found and len(found) > 1:
            return index
    raise AssertionError(f"no pack has {name} and another one")


def spoil_by(change: Callable[[bytearray], bytes]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(change(bytearray(path.read_bytes())))

    return spoil


def flipped(content: bytearray) -> bytes:
    content[5000] ^= 1
    return bytes(content)


BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "deleted": (Path.unlink, "missing", "not found in {folder}: restore it"),
    "other bytes": (spoil_by(flipped), "source_changed", "not the one that was planned"),
    "cut off": (spoil_by(lambda content: bytes(content[:-1000])), "source_changed", "tokenize ag"),
    "longer": (spoil_by(lambda content: bytes(content) + b"x"), "source_changed", "restore it"),
    "empty": (spoil_by(lambda content: b""), "source_changed", "not the one that was planned"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "missing", "not found in"),
}


# --- where they lie -----------------------------------------------------------------------------


def test_they_may_lie_elsewhere_and_be_touched(pair: Pair, moved: Path) -> None:
    for path in moved.rglob("*"):
        path.touch()
    stored = PackDataset(pair.tokens)
    assert_alike(stored, pair.load(source_root=roots_in(moved)))
    as_texts = [f"{number}={place}" for number, place in roots_in(moved).items()]
    assert_alike(stored, pair.load(source_root=as_texts))


def test_the_dataset_may_lie_elsewhere(pair: Pair, tmp_path: Path) -> None:
    refs = shutil.copytree(pair.refs, tmp_path / "elsewhere")
    assert_equal(PackDataset(refs, source_root=pair.roots)[0], pair.load()[0])


def test_one_place_serves_all_arguments_that_have_none_of_their_own(
    pair: Pair, moved: Path
) -> None:
    (moved / "videos" / "some.tar").write_bytes((moved / "some.tar").read_bytes())
    roots = [str(moved / "videos"), f"2={moved}"]
    assert_alike(PackDataset(pair.tokens), pair.load(source_root=roots))


def test_they_may_lie_in_a_bucket_and_at_file_urls(
    pair: Pair, moved: Path, s3: S3Server, bucket: str
) -> None:
    s3.upload(moved, bucket, "now/")
    stored = PackDataset(pair.tokens)
    assert_alike(stored, pair.load(source_root=roots_in(f"s3://{bucket}/now")))
    assert_alike(stored, pair.load(source_root=roots_in(moved.as_uri()), decoder_workers=1))
    # Of workers that are forked from a process which has connections open.
    packs = pair.load(source_root=roots_in(f"s3://{bucket}/now"))
    assert packs[0]
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
    assert_alike(stored, DataLoader(packs, batch_size=None, **options))


def test_without_a_place_it_is_said_what_to_give(pair: Pair) -> None:
    with pytest.raises(SegmentError, match="SOURCE argument 2 lies: give source_root="):
        list(pair.load(source_root={0: pair.sources[0], 1: pair.sources[1]}))
    with pytest.raises(ShardError, match=r"no pack can be read .*give source_root="):
        list(PackDataset(pair.refs, on_bad_source="skip"))


def test_a_place_that_is_not_there_is_said_at_once(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        pair.load(source_root=tmp_path / "nowhere")


# --- what is wrong with them --------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_source_is_named(pair: Pair, moved: Path, what: str, workers: int) -> None:
    spoil, reason, said = BAD[what]
    spoil(moved / "videos" / "a b" / ODD)
    packs = pair.load(source_root=roots_in(moved), decoder_workers=workers)
    index = pack_with(packs, ODD)
    with pytest.raises(SegmentError) as caught:
        packs[index]
    assert said.format(folder=moved / "videos") in str(caught.value)
    error = caught.value
    assert (error.source, error.reason) == (f"a b/{ODD}", reason)
    assert str(error).startswith(f"a b/{ODD}: segment {error.segment_id}: ")
    assert error.segment_id in ids_of(PackDataset(pair.tokens)[index])
    # It may be mended while the program runs.
    path = moved / "videos" / "a b" / ODD
    if path.is_dir():
        path.rmdir()
    shutil.copy(Path(pair.sources[0]) / "a b" / ODD, path)
    assert_equal(alike(packs[index]), alike(PackDataset(pair.tokens)[index]))


def test_a_worker_of_a_dataloader_says_the_same(pair: Pair, moved: Path) -> None:
    (moved / "videos" / "a b" / SQUARE).unlink()
    packs = pair.load(source_root=roots_in(moved))
    with pytest.raises(SegmentError, match=f"a b/{SQUARE}: segment .*: not found in"):
        list(
            DataLoader(
                packs,
                batch_size=None,
                sampler=[pack_with(packs, SQUARE)],
                num_workers=1,
                multiprocessing_context="fork",
            )
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_source_is_lacking_and_counted(pair: Pair, moved: Path, workers: int) -> None:
    (moved / "videos" / "a b" / ODD).unlink()
    flip = moved / LONG
    flip.write_bytes(flipped(bytearray(flip.read_bytes())))
    options: dict[str, Any] = {"padded": False}
    packs = pair.load(
        source_root=roots_in(moved), on_bad_source="skip", decoder_workers=workers, **options
    )
    lacking = whole_packs = 0
    for number, stored in enumerate(PackDataset(pair.tokens, **options)):
        bad = [one["segment_id"] for one in stored["segments"]
               if Path(one["source"]).name in (ODD, LONG)]  # fmt: skip
        lacking += len(bad)
        if len(bad) == len(stored["segments"]):
            whole_packs += 1
            continue
        pack = packs[number]
        expected = stored
        for identity in bad:
            expected = expected | without(expected, identity)
            expected["segments"] = [
                one for one in expected["segments"] if one["segment_id"] != identity
            ]
        for name in ("tokens", "positions", "seconds", "segment_ids"):
            assert (pack[name] == expected[name]).all(), name
        assert ids_of(pack) == ids_of(expected)
        offsets = [segment["offset"] for segment in pack["segments"]]
        assert offsets == pack["cu_seqlens"][:-1].tolist()
        assert len(pack["grid_thw"]) == len(pack["segments"])
    list(packs)
    assert 0 < lacking == packs.num_bad_segments
    assert packs.num_bad_packs == whole_packs
    assert 0 < packs.fill < PackDataset(pair.tokens).fill or packs.fill < 1


def test_counts_come_from_all_workers(pair: Pair, moved: Path) -> None:
    (moved / "videos" / "a b" / ODD).unlink()
    options = {"source_root": roots_in(moved), "on_bad_source": "skip"}
    alone, shared = pair.load(**options), pair.load(**options)
    list(alone)
    loader = PackLoader(shared, num_workers=2, shuffle=False, multiprocessing_context="fork")
    assert sum(len(ids) for batch in loader for ids in batch["segments"])
    assert shared.num_bad_segments == alone.num_bad_segments > 0
    assert shared.fill == alone.fill


def test_packs_that_lack_all_are_replaced_by_the_next(pair: Pair, moved: Path) -> None:
    for name in (SQUARE, ROTATED, ODD):
        (moved / "videos" / "a b" / name).unlink()
    options = {"source_root": roots_in(moved), "on_bad_source": "skip"}
    packs, stream = pair.load(**options), PackStream(pair.refs, **options)
    for some in (list(packs), list(stream)):
        assert len(some) == len(packs)
        assert all(pack["segments"] for pack in some)
    assert packs.num_bad_packs == stream.num_bad_packs > 0
    assert packs.num_bad_segments == stream.num_bad_segments
    strict = pair.load(**options, max_bad_fraction=0)
    with pytest.raises(ShardError, match="packs are bad, more than max_bad_fraction"):
        list(strict)


def test_a_tar_without_the_member_is_a_missing_source(pair: Pair, moved: Path) -> None:
    content = (moved / "videos" / "a b" / SQUARE).read_bytes()
    make_tar(moved / "some.tar", [("k/other.mp4", content)])
    packs = pair.load(source_root=roots_in(moved))
    with pytest.raises(SegmentError, match=rf"k/{PORTRAIT}: segment .*: not found in"):
        packs[pack_with(packs, PORTRAIT)]


def test_a_place_that_goes_while_packs_are_read_is_no_end(pair: Pair, moved: Path) -> None:
    packs = pair.load(source_root=roots_in(moved), decode_cache="1kB", on_bad_source="skip")
    index = pack_with(packs, PORTRAIT)
    whole = len(packs[index]["segments"])
    shutil.rmtree(moved)
    with pytest.raises(ShardError, match="no pack can be read any more"):
        list(packs)
    shutil.copytree(Path(pair.sources[0]).parent, moved)
    assert len(packs[index]["segments"]) == whole


# --- tokens that are not those of the checksum --------------------------------------------------


@pytest.fixture
def mismatched(pair: Pair, tmp_path: Path) -> Pair:
    """One checksum is of other tokens, and all else agrees with it."""
    refs = shutil.copytree(pair.refs, tmp_path / "mismatched")
    in_row(tokens_crc32c=lambda row: row["tokens_crc32c"] ^ 1)(Shard.of(refs))
    return Pair(pair.tokens, refs, pair.sources)


@pytest.mark.parametrize("on_bad_source", ["error", "skip"])
def test_other_tokens_are_an_error_that_is_not_skipped(
    mismatched: Pair, on_bad_source: str
) -> None:
    with pytest.raises(SegmentError, match="other tokens than tokens_crc32c says") as caught:
        list(mismatched.load(on_bad_source=on_bad_source))
    assert caught.value.reason == "other_tokens"


def test_other_tokens_are_taken_with_a_warning(mismatched: Pair) -> None:
    with pytest.warns(UserWarning, match="other tokens than tokens_crc32c says") as said:
        assert_alike(PackDataset(mismatched.tokens), mismatched.load(on_mismatch="warn"))
    assert len(said) == 1


def test_what_is_as_it_was_warns_of_nothing(pair: Pair) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(pair.load(on_mismatch="warn"))


# --- misuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"on_mismatch": "skip"}, "on_mismatch is 'skip', must be one of error, warn"),
        ({"on_bad_source": "warn"}, "on_bad_source is 'warn', must be one of error, skip"),
        ({"decoder_workers": -1}, "decoder_workers -1"),
        ({"decode_timeout": 0}, "decode_timeout 0"),
        ({"decode_cache": "some"}, "decode_cache"),
        ({"decode_memory": "0"}, "decode_memory"),
    ],
)
def test_options_that_cannot_be_are_refused(pair: Pair, option: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pair.load(**option)


def test_a_pack_without_its_references_is_damaged(pair: Pair, tmp_path: Path) -> None:
    refs = shutil.copytree(pair.refs, tmp_path / "copy")
    shard = Shard.of(refs)
    place = shard.place("pack.json")
    document = json.loads(shard.members[place][1])
    del document["segments"][0]["source_id"]
    shard.put("pack.json", json.dumps(document, sort_keys=True).encode())
    shard.seal()
    with pytest.raises(ShardError, match="does not say how to make its tokens"):
        list(PackDataset(refs, source_root=pair.roots))


def test_what_was_interrupted_can_be_asked_for_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = pair.load()

    def interrupted(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spacepatch.jobs.decode_pictures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packs[0]
    assert isinstance(packs.references._maker, TokenMaker)
    assert_equal(alike(packs[0]), alike(PackDataset(pair.tokens)[0]))
