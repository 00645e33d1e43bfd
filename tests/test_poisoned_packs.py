"""Members of packs that were changed together with their checksums: refused, and never executed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from spoiled_shards import Shard, in_pack
from tiny_packs import KINDS_OF_PACKS, one_epoch, tiny_dataset

from spacepatch.errors import ShardError
from spacepatch.loader import PackDataset, PackLoader
from spacepatch.shards.agreement import check_pixels


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture(params=KINDS_OF_PACKS)
def kind(request) -> type:
    return KINDS_OF_PACKS[request.param]


class Bomb:
    """What a pickle of it does when it is read: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def objects(path: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(path)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("member", ["tokens.npy", "segments.npy", "kept.npy"])
def test_a_pickle_in_a_member_is_refused_and_never_executed(copy, kind, tmp_path, member) -> None:
    executed = tmp_path / "executed"
    shard = Shard.of(copy)
    if member == "kept.npy" and member not in shard.names:
        member = "positions.npy"
    poison = objects(executed)
    shard.put(member, poison)
    shard.seal()
    with tarfile.open(shard.tar) as tar:
        stored = [tar.extractfile(info).read() for info in tar if info.name.endswith(member)]
    assert poison in stored
    with pytest.raises(ShardError, match=rf"{shard.tar.stem}.*objects"):
        one_epoch(PackLoader(kind(copy)))
    packs = kind(copy, on_bad_shard="skip")
    assert len(one_epoch(PackLoader(packs))) == packs.document["totals"]["packs"]
    assert packs.num_bad_packs == 1
    assert not executed.exists()
    # It does make the file where a reader is careless.
    np.load(io.BytesIO(poison), allow_pickle=True)
    assert executed.exists()


def test_a_plain_pickle_in_the_place_of_a_member_is_refused(copy, kind, tmp_path) -> None:
    for member in ("tokens.npy", "pack.json"):
        shard = Shard.of(copy)
        shard.put(member, pickle.dumps(Bomb(tmp_path / "executed")))
        shard.seal()
        with pytest.raises(ShardError, match=shard.tar.stem):
            one_epoch(PackLoader(kind(copy)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"-" * 3000 + b"1",
        b"(" * 3000,
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999, 48)}",
        b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (128, 48)}",
        b"{'descr': '|u1', 'fortran_order': True, 'shape': (128, 48)}",
        b"__import__('os').getcwd()",
    ],
    ids=["minus", "brackets", "huge", "fields", "Fortran", "a call"],
)
def test_a_header_that_is_made_to_harm_is_refused(copy, kind, header) -> None:
    shard = Shard.of(copy)
    prefix = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    shard.put("tokens.npy", prefix + header + bytes(128 * 48))
    shard.seal()
    assert_named_and_skipped(copy, kind, shard)


def first_segment(**values: object) -> Callable[[dict], None]:
    return lambda document: document["segments"][0].update(values)


DOCUMENTS: dict[str, Callable[[dict], object]] = {
    "no segments": lambda document: document.pop("segments"),
    "segments of another kind": lambda document: document.update(segments="none"),
    "a segment too few": lambda document: document["segments"].pop(),
    "a segment too many": lambda document: document["segments"].append(document["segments"][0]),
    "a segment without id": lambda document: document["segments"][0].pop("segment_id"),
    "a segment without seconds": lambda document: document["segments"][0].pop("seconds"),
    "no seconds": first_segment(seconds=[]),
    "seconds in words": first_segment(seconds="soon"),
    "a segment that is a list": lambda document: document["segments"].__setitem__(0, []),
    "no version": lambda document: document.pop("format_version"),
}


@pytest.mark.parametrize("defect", DOCUMENTS)
def test_a_pack_json_that_does_not_agree_is_named_and_may_be_skipped(copy, kind, defect) -> None:
    shard = Shard.of(copy)
    in_pack(DOCUMENTS[defect])(shard)
    assert_named_and_skipped(copy, kind, shard)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_what_is_no_pack_json_is_named_and_may_be_skipped(copy, kind, content) -> None:
    shard = Shard.of(copy)
    shard.put("pack.json", content)
    shard.seal()
    assert_named_and_skipped(copy, kind, shard)


ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], object]]] = {
    "more tokens than there are": ("segments.npy", lambda array: array.__setitem__((0, 1), 2**20)),
    "fewer than none": ("segments.npy", lambda array: array.__setitem__((0, 1), -5)),
    "a wrong offset": ("segments.npy", lambda array: array.__setitem__((0, 0), 5)),
    "a grid of nothing": ("segments.npy", lambda array: array.__setitem__((0, 2), 0)),
    "a grid below nothing": ("segments.npy", lambda array: array.__setitem__((0, 4), -1)),
    "tokens outside of the grid": ("kept.npy", lambda array: array.__setitem__(0, 60000)),
}


@pytest.mark.parametrize("defect", ARRAYS)
def test_an_array_that_does_not_agree_is_named_and_may_be_skipped(copy, kind, defect) -> None:
    member, change = ARRAYS[defect]
    shard = Shard.of(copy)
    array = shard.array(member).copy()
    change(array)
    shard.put(member, array)
    shard.seal()
    assert_named_and_skipped(copy, kind, shard)


@pytest.mark.parametrize(
    ("member", "array"),
    [
        ("tokens.npy", np.zeros((128, 48))),
        ("tokens.npy", np.zeros((128, 49), np.uint8)),
        ("tokens.npy", np.zeros((3, 48), np.uint8)),
        ("tokens.npy", np.zeros(128, np.uint8)),
        ("segments.npy", np.zeros((0, 8), np.int32)),
        ("segments.npy", np.zeros(8, np.int32)),
        ("segments.npy", np.ones((1, 8), np.float32)),
        ("kept.npy", np.zeros((128, 2), np.uint16)),
        ("kept.npy", np.zeros(3, np.uint16)),
    ],
)
def test_an_array_of_another_shape_is_named_and_may_be_skipped(copy, kind, member, array) -> None:
    shard = Shard.of(copy)
    shard.put(member, array)
    shard.seal()
    assert_named_and_skipped(copy, kind, shard)


@pytest.fixture
def full(tmp_path_factory, tmp_path) -> Path:
    """A dataset with every member that says something of a token."""
    return shutil.copytree(tiny_dataset(tmp_path_factory.getbasetemp(), "full"), tmp_path / "full")


@pytest.mark.parametrize("member", ["positions.npy", "run_lengths.npy", "visible.npy"])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.astype(np.float64),
        lambda array: np.full(array.shape, np.nan),
        lambda array: array[:-1],
        lambda array: array[None],
        lambda array: np.stack([array, array], axis=-1),
        lambda array: np.array(3, array.dtype),
    ],
    ids=["floats", "NaN", "one too few", "one more axis", "twice", "no axis"],
)
def test_what_is_said_of_tokens_is_one_whole_number_each(full, kind, member, change) -> None:
    shard = Shard.of(full)
    shard.put(member, change(shard.array(member)))
    shard.seal()
    assert_named_and_skipped(full, kind, shard)


def test_a_time_that_no_float_holds_is_refused(copy, kind) -> None:
    shard = Shard.of(copy)
    rows = len(json.loads(shard.members[shard.place("pack.json")][1])["segments"][0]["seconds"])
    in_pack(first_segment(seconds=[10**400] * rows))(shard)
    assert_named_and_skipped(copy, kind, shard)


def test_a_shard_of_another_run_of_the_same_name_is_refused(copy, kind) -> None:
    shard = Shard.of(copy)
    receipt = json.loads(shard.receipt.read_text())
    shard.receipt.write_text(json.dumps(receipt | {"plan_id": "0" * 32}))
    with pytest.raises(ShardError, match=rf"{shard.tar.stem}.*of another dataset: its plan_id"):
        one_epoch(PackLoader(kind(copy)))
    packs = kind(copy, on_bad_shard="skip")
    assert list(packs.bad_shards) == [shard.tar.stem]


WHOLE = np.array([[0, 8, 2, 2, 2, 1, 4, 4]], np.int32)


@pytest.mark.parametrize(
    ("pixels", "table"),
    [
        (np.zeros((8, 48)), WHOLE),
        (np.zeros(8, np.uint8), WHOLE),
        (np.zeros((9, 48), np.uint8), WHOLE),
        (np.zeros((8, 48), np.uint8), WHOLE * 2),
        (np.zeros((8, 48), np.uint8), np.add(WHOLE, [0, 0, 1, 0, 0, 0, 0, 0])),
        (np.zeros((16, 48), np.uint8), np.concatenate([WHOLE, np.add(WHOLE, [8] + 7 * [0])])),
    ],
)
def test_pixel_tokens_are_whole_grids_of_the_same_segments(pixels, table) -> None:
    check_pixels(np.zeros((8, 48), np.uint8), WHOLE, 1, "here")
    with pytest.raises(ShardError, match="here"):
        check_pixels(pixels, table.astype(np.int32), 1, "here")


def assert_named_and_skipped(folder: Path, kind: type, shard: Shard) -> None:
    options = {"mask": "random:0.5", "drop": "random:0.2"}
    for drawn in ({}, options):
        with pytest.raises(ShardError, match=shard.tar.stem):
            one_epoch(PackLoader(kind(folder, **drawn)))
    if kind is PackDataset:
        with pytest.raises(ShardError, match=shard.tar.stem):
            list(kind(folder))  # a plain loop is not taken to be at its end
    packs = kind(folder, on_bad_shard="skip")
    assert len(one_epoch(PackLoader(packs))) == packs.document["totals"]["packs"]
    assert packs.num_bad_packs == 1
