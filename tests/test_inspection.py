"""Describing a dataset, and mutation testing: every injected defect must be found."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import pytest
from crc32c import crc32c

from spacepatch.config import load_config
from spacepatch.errors import ShardError
from spacepatch.inspection import Problem, summarize, verify
from spacepatch.inspection.verification import check_overlaps
from spacepatch.pipeline import finish_run, make_plan, read_plan, tokenize
from spacepatch.pipeline.segments import make_segment_id
from spacepatch.shards import LOSSES, SEGMENTS, SOURCES, read_table, write_table

SETTINGS = {"pack_length": 2048, "shard_size": "8MB", "workers": 2}

NAMED = ("source_id", "source_root", "split")

CORRUPT = (
    "decord__corrupted.mp4",
    "derived__resolution_change_midstream.ts",
    "derived__truncated_faststart_half.mp4",
)
"""Videos of the corpus that lose some of their frames."""


def make_dataset(clips: Path, out: Path, **settings: Any) -> Path:
    tokenize([str(clips)], out=out, config=load_config(SETTINGS | settings))
    return out


@pytest.fixture(scope="session")
def pristine(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(sample_clips, tmp_path_factory.mktemp("inspection") / "out", fps="2")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


# --- tools that spoil, and mend the checksums so that only deeper checks can find it ------------


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def edit_rows(path: Path, columns: dict[str, str], change: Callable[[list[Any]], None]) -> None:
    rows = read_table(path)
    change(rows)
    write_table(path, columns, rows)


@dataclass
class Shard:
    """The first shard with a pack of several segments, taken apart."""

    folder: Path
    tar: Path
    pack: int
    members: list[tuple[tarfile.TarInfo, bytes]]
    names: list[str]

    @classmethod
    def of(cls, folder: Path) -> Shard:
        for path in tars(folder):
            rows = read_table(path.with_name(f"{path.stem}.segments.parquet"))
            for pack, count in Counter(row["pack"] for row in rows).items():
                if count > 1:
                    with tarfile.open(path) as tar:
                        members = [(info, tar.extractfile(info).read()) for info in tar]
                    names = json.loads(path.with_suffix(".json").read_text())["members"]
                    return cls(folder, path, pack, members, names)
        raise AssertionError("no pack has several segments")

    @property
    def table(self) -> Path:
        return self.tar.with_name(f"{self.tar.stem}.segments.parquet")

    @property
    def receipt(self) -> Path:
        return self.tar.with_suffix(".json")

    def place(self, name: str) -> int:
        return self.pack * len(self.names) + self.names.index(name)

    def array(self, name: str) -> np.ndarray:
        return np.load(io.BytesIO(self.members[self.place(name)][1]))

    def put(self, name: str, content: bytes | np.ndarray) -> None:
        if isinstance(content, np.ndarray):
            buffer = io.BytesIO()
            np.save(buffer, content)
            content = buffer.getvalue()
        place = self.place(name)
        self.members[place] = (self.members[place][0], content)

    def edit_rows(self, change: Callable[[list[Any]], None]) -> None:
        """Change rows of this pack, and pack.json with them."""
        rows = read_table(self.table)
        own = [row for row in rows if row["pack"] == self.pack]
        change(own)
        write_table(self.table, SEGMENTS, rows)
        document = json.loads(self.members[self.place("pack.json")][1])
        for described, row in zip(document["segments"], own, strict=True):
            described.update({key: row[key] for key in described if key != "extra"})
        self.put("pack.json", json.dumps(document, sort_keys=True).encode())

    def seal(self) -> None:
        """Write the tar again, then index, checksums, receipt, merged table and totals."""
        index, checksums = [], []
        with self.tar.open("wb") as file:
            for info, content in self.members:
                info.size = len(content)
                header = info.tobuf(tarfile.USTAR_FORMAT)
                index.append((file.tell() + len(header), len(content)))
                file.write(header + content + bytes(-len(content) % 512))
            file.write(bytes(1024))
        width = len(self.names)
        packs = len(json.loads(self.receipt.read_text())["pack_crc32c"])
        for pack in range(packs):
            checksum = 0
            for _, content in self.members[pack * width : (pack + 1) * width]:
                checksum = crc32c(content, checksum)
            checksums.append(checksum)
        places = np.array(index[: packs * width], np.uint64)
        places = np.resize(places, (packs, width, 2))
        np.save(self.tar.with_name(f"{self.tar.stem}.index.npy"), places)
        edit_json(self.receipt, lambda receipt: receipt.update(pack_crc32c=checksums))
        self.seal_files()

    def seal_files(self) -> None:
        """The receipt's checksums and everything that is merged from it."""

        def mend(receipt: Any) -> None:
            for name, entry in receipt["files"].items():
                content = (self.folder / name).read_bytes()
                entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

        edit_json(self.receipt, mend)
        size = sum(e["bytes"] for e in json.loads(self.receipt.read_text())["files"].values())

        def mend_totals(dataset: Any) -> None:
            for entry in dataset["shards"]:
                if entry["name"] == self.tar.stem:
                    entry["bytes"] = size
            dataset["totals"]["bytes"] = sum(entry["bytes"] for entry in dataset["shards"])

        edit_json(self.folder / "dataset.json", mend_totals)
        merged = [
            row
            for tar in tars(self.folder)
            for row in read_table(tar.with_name(f"{tar.stem}.segments.parquet"))
        ]
        write_table(self.folder / "segments.parquet", SEGMENTS, merged)
        seal_tables(self.folder)


def seal_tables(folder: Path) -> None:
    """The checksums of the merged tables in dataset.json."""

    def mend(dataset: Any) -> None:
        for name in dataset["tables"]:
            content = (folder / name).read_bytes()
            dataset["tables"][name] = hashlib.sha256(content).hexdigest()

    edit_json(folder / "dataset.json", mend)


# --- clean -------------------------------------------------------------------------------------


def test_a_clean_dataset_has_no_problems(pristine: Path) -> None:
    assert verify(pristine) == []


def test_mending_alone_makes_no_problem(folder: Path) -> None:
    shard = Shard.of(folder)
    shard.edit_rows(lambda rows: None)
    shard.seal()
    assert verify(folder) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": "2", "split": "train=0.6,val=0.4"},
        {"fps": "8", "clip_seconds": "1", "clip_stride": "0.5", "pack_length": 4096},
        {"fps": "4", "cut_to_fit": True, "index": "compact", "pack_length": 1000},
        {"every_frame": True, "tail": "pad", "patch": "3x16x16", "short_side": 64},
        {"fps": "2", "pack_length": 16},
        {"fps": "3", "tail": "drop", "patch": "4x16x16"},
        {"fps": "6", "cut_to_fit": True, "clip_seconds": "0.7", "patch": "1x16x16"},
        {"num_frames": 16, "native": True, "pack_length": 65536},
    ],
    ids=[
        "splits",
        "overlapping windows",
        "cut to fit",
        "every frame",
        "nothing fits",
        "tail dropped",
        "windows cut to fit",
        "native",
    ],
)
def test_other_settings_verify_clean_and_are_described(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    out = make_dataset(sample_clips, tmp_path / "out", **settings)
    assert verify(out) == []
    summary = summarize(out)
    assert set(summary["splits"]) == ({"train", "val"} if "split" in settings else set())
    for bins in summary["histograms"].values():
        assert sum(entry["count"] for entry in bins) == summary["totals"]["segments"]


def test_overlapping_ranges_of_a_manifest_are_no_problem(
    sample_clips: Path, tmp_path: Path
) -> None:
    clip = next(path for path in sorted(sample_clips.iterdir()) if "landscape" in path.name)
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("uri,start,end\na.mp4,0,2\na.mp4,1,3\nabsent.mp4,,\n")
    out = make_dataset(tmp_path / "list.csv", tmp_path / "out", fps="4")
    assert verify(out) == []


def test_damaged_frames_are_accounted_for(corpus: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in CORRUPT:
        shutil.copyfile(corpus / name, sources / name)
    out = make_dataset(sources, tmp_path / "out", fps="8", pack_length=8192)
    assert verify(out) == []
    rows = read_table(out / "losses.parquet")
    assert {row["reason"] for row in rows} & {"corrupt_frames", "size_changed", "truncated"}
    summary = summarize(out)
    assert summary["totals"]["frames_lost"] == sum(row["num_frames"] for row in rows) > 0


def test_a_task_that_lost_everything_is_clean(folder: Path) -> None:
    plan = read_plan(folder, {})
    task, tar = plan.tasks[-1], tars(folder)[-1]
    losses = [
        {
            **{key: getattr(plan.sources[clip.source].source, key) for key in NAMED},
            "source": plan.sources[clip.source].source.name,
            "clip": clip.clip,
            "stage": "decode",
            "reason": "crash",
            "num_frames": len(clip.frame_pts),
            "num_tokens": clip.num_tokens,
            "message": "the worker died",
        }
        for clip in task.clips
    ]
    lost = {"packs": 0, "segments": 0, "tokens": 0, "files": {}, "pack_crc32c": [], "observed": {}}
    edit_json(tar.with_suffix(".json"), lambda d: d.update(lost, losses=losses))
    for suffix in (".tar", ".index.npy", ".segments.parquet"):
        (folder / f"{tar.stem}{suffix}").unlink()
    finish_run(folder, plan)
    assert verify(folder) == []
    summary = summarize(folder)
    assert summary["tasks"] == {"planned": 3, "done": 3}
    assert summary["totals"]["shards"] == 2
    assert {entry["reason"] for entry in summary["losses"]} == {"crash", "unreadable"}
    alone = summarize(tar.with_suffix(".json"))
    assert alone["totals"]["packs"] == 0
    edit_json(tar.with_suffix(".json"), lambda d: d["losses"].pop())
    assert found(verify(folder), tar.stem, "neither written nor lost")


def test_one_shard_verifies_with_and_without_its_dataset(folder: Path, tmp_path: Path) -> None:
    tar = tars(folder)[0]
    assert verify(tar) == []
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in folder.glob(f"{tar.stem}.*"):
        shutil.copy(path, alone)
    assert verify(alone / tar.name) == []
    assert verify(alone / f"{tar.stem}.json") == []


def test_a_defect_of_one_shard_is_found_in_it_alone(folder: Path, tmp_path: Path) -> None:
    shard = Shard.of(folder)
    flip_token(shard)
    assert any("tokens_crc32c" in problem.what for problem in verify(shard.tar))
    others = [tar for tar in tars(folder) if tar != shard.tar]
    assert verify(others[0]) == []


def test_a_sample_reads_only_some_tars(folder: Path) -> None:
    stop = len(tars(folder)) - 1
    flip_byte(tars(folder)[stop], -5000)
    assert verify(folder)
    assert verify(folder, sample=1) == []
    assert verify(folder, sample=100) == verify(folder)


# --- defects -----------------------------------------------------------------------------------


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_token(shard: Shard) -> None:
    info, content = shard.members[shard.place("tokens.npy")]
    flip_byte(shard.tar, info.offset_data + len(content) - 1)


def truncate(shard: Shard) -> None:
    shard.tar.write_bytes(shard.tar.read_bytes()[:-200_000])


def append_bytes(shard: Shard) -> None:
    with shard.tar.open("ab") as file:
        file.write(b"more")


def flip_index(shard: Shard) -> None:
    flip_byte(shard.tar.with_name(f"{shard.tar.stem}.index.npy"), -3)


def wrong_offset(shard: Shard) -> None:
    path = shard.tar.with_name(f"{shard.tar.stem}.index.npy")
    index = np.load(path)
    index[shard.pack, 1, 0] += 512
    np.save(path, index)
    shard.seal_files()


def swap_members(shard: Shard) -> None:
    first, second = shard.place("segments.npy"), shard.place("segment_ids.npy")
    members = shard.members
    members[first], members[second] = members[second], members[first]
    shard.seal()


def leave_out_member(shard: Shard) -> None:
    del shard.members[shard.place("positions.npy")]
    shard.seal()


def rename_pack(shard: Shard, key: Callable[[str], str]) -> None:
    for info, _ in shard.members[shard.place(shard.names[0]) :][: len(shard.names)]:
        old, name = info.name.split(".", 1)
        info.name = f"{key(old)}.{name}"
    shard.seal()


def duplicate_key(shard: Shard) -> None:
    count = len(shard.names)
    shard.members += [(tarfile.TarInfo(i.name), c) for i, c in shard.members[:count]]
    shard.seal()


def bad_key(shard: Shard) -> None:
    rename_pack(shard, lambda key: key[:-2] + " x")


def other_key(shard: Shard) -> None:
    rename_pack(shard, lambda key: key[:-1] + "7")


def interleave(shard: Shard) -> None:
    members, count = shard.members, len(shard.names)
    if len(members) < 2 * count:
        raise AssertionError("the shard has one pack only")
    members[count - 1], members[count] = members[count], members[count - 1]
    shard.seal()


def set_time(shard: Shard) -> None:
    shard.members[0][0].mtime = 1
    shard.seal()


def set_owner(shard: Shard) -> None:
    shard.members[0][0].uname = "somebody"
    shard.seal()


def positions_outside(shard: Shard) -> None:
    positions = shard.array("positions.npy")
    positions[-1, 2] = 999
    shard.put("positions.npy", positions)
    shard.seal()


def positions_swapped(shard: Shard) -> None:
    positions = shard.array("positions.npy")
    positions[[3, 4]] = positions[[4, 3]]
    shard.put("positions.npy", positions)
    shard.seal()


def positions_of_another_dtype(shard: Shard) -> None:
    shard.put("positions.npy", shard.array("positions.npy").astype(np.int64))
    shard.seal()


def positions_fortran(shard: Shard) -> None:
    shard.put("positions.npy", np.asfortranarray(shard.array("positions.npy")))
    shard.seal()


def wrong_ids(shard: Shard) -> None:
    ids = shard.array("segment_ids.npy")
    ids[0] = 2
    shard.put("segment_ids.npy", ids)
    shard.seal()


def wrong_segments(shard: Shard) -> None:
    segments = shard.array("segments.npy")
    segments[1, 2] += 1
    shard.put("segments.npy", segments)
    shard.seal()


def tokens_exchanged(shard: Shard) -> None:
    tokens = shard.array("tokens.npy")
    tokens[[0, -1]] = tokens[[-1, 0]]
    tokens[0, 0] += 1
    shard.put("tokens.npy", tokens)
    shard.seal()


def segments_of_another_shape(shard: Shard) -> None:
    shard.put("segments.npy", shard.array("segments.npy")[:, :7])
    shard.seal()


def json_differs(shard: Shard) -> None:
    document = json.loads(shard.members[shard.place("pack.json")][1])
    document["segments"][0]["num_tokens"] += 1
    shard.put("pack.json", json.dumps(document).encode())
    shard.seal()


def json_torn(shard: Shard) -> None:
    shard.put("pack.json", shard.members[shard.place("pack.json")][1][:-5])
    shard.seal()


def newer_pack(shard: Shard) -> None:
    document = json.loads(shard.members[shard.place("pack.json")][1])
    document["format_version"] = 7
    shard.put("pack.json", json.dumps(document).encode())
    shard.seal()


def in_first_row(change: Callable[[dict[str, Any]], None]) -> Callable[[Shard], None]:
    """Change one row of the table and of pack.json, and mend every checksum."""

    def mutate(shard: Shard) -> None:
        shard.edit_rows(lambda rows: change(max(rows, key=lambda row: len(row["seconds"]))))
        shard.seal()

    return mutate


def reverse_seconds(row: dict[str, Any]) -> None:
    row["seconds"] = row["seconds"][::-1]


def shift_seconds(row: dict[str, Any]) -> None:
    row["seconds"] = [value + 0.001 for value in row["seconds"]]


def stop_seconds(row: dict[str, Any]) -> None:
    row["seconds"][1] = row["seconds"][0]


def more_valid_frames(row: dict[str, Any]) -> None:
    row["valid_frames"] += 1


def valid_frames_called_corrupt(row: dict[str, Any]) -> None:
    row["valid_frames"] -= 1
    row["corrupt_frames"] += 1


def more_padding(row: dict[str, Any]) -> None:
    row["padded_frames"] += 1


def other_frames(row: dict[str, Any]) -> None:
    row["frame_indices"][-1] += 1


def repeated_frames(row: dict[str, Any]) -> None:
    row["repeated_frames"] += 1


def decreasing_frames(row: dict[str, Any]) -> None:
    row["frame_pts"][-1] = 0


def other_id(row: dict[str, Any]) -> None:
    row["segment_id"] = row["segment_id"][::-1]


def other_source(row: dict[str, Any]) -> None:
    row["source"] = "elsewhere.mp4"


def other_size(row: dict[str, Any]) -> None:
    row["size"] = [row["size"][0] + 16, row["size"][1]]


def other_scale(row: dict[str, Any]) -> None:
    row["scale"] = [1.0, 1.0]


def other_offset(row: dict[str, Any]) -> None:
    row["offset"] += 1


def moved_clip(shard: Shard) -> None:
    prints = json.loads((shard.folder / "dataset.json").read_text())["fingerprints"]

    def move(rows: list[Any]) -> None:
        row = rows[0]
        row["clip_start_pts"] += 1
        row["segment_id"] = make_segment_id(
            prints["token"],
            seed=0,
            source_id=row["source_id"],
            start_pts=row["clip_start_pts"],
            stop_pts=row["clip_stop_pts"],
            time_base=Fraction(row["time_base"]),
            view=0,
        )

    shard.edit_rows(move)
    shard.seal()


def same_ids(shard: Shard) -> None:
    def copy(rows: list[Any]) -> None:
        rows[1]["segment_id"] = rows[0]["segment_id"]

    shard.edit_rows(copy)
    shard.seal()


def drop_last_row(shard: Shard) -> None:
    edit_rows(shard.table, SEGMENTS, lambda rows: rows.pop())
    shard.seal_files()


def delete(*suffixes: str) -> Callable[[Shard], None]:
    def mutate(shard: Shard) -> None:
        for suffix in suffixes:
            (shard.folder / f"{shard.tar.stem}{suffix}").unlink()

    return mutate


def delete_file(name: str) -> Callable[[Shard], None]:
    return lambda shard: (shard.folder / name).unlink()


def stray_tar(shard: Shard) -> None:
    name = shard.tar.stem[:-6]
    shutil.copy(shard.tar, shard.folder / f"{name}000099.tar")


def stray_of_another_plan(shard: Shard) -> None:
    shutil.copy(shard.receipt, shard.folder / "deadbeef-000000.json")


def in_document(name: str, change: Callable[[Any], None]) -> Callable[[Shard], None]:
    return lambda shard: edit_json(shard.folder / name, change)


def in_receipt(change: Callable[[Any], None]) -> Callable[[Shard], None]:
    return lambda shard: edit_json(shard.receipt, change)


def in_table(
    name: str, columns: dict[str, str], change: Callable[[list[Any]], None]
) -> Callable[[Shard], None]:
    """Change a merged table, and mend its checksum."""

    def mutate(shard: Shard) -> None:
        edit_rows(shard.folder / name, columns, change)
        seal_tables(shard.folder)

    return mutate


def first_written(rows: list[Any]) -> Any:
    return next(row for row in rows if row["num_segments"])


def lose_frame(rows: list[Any]) -> None:
    first_written(rows)["frames_written"] -= 1


def lose_frame_and_say_so(rows: list[Any]) -> None:
    row = first_written(rows)
    row["frames_written"] -= 1
    row["frames_lost"] += 1


def other_plan_rows(shard: Shard) -> None:
    path = shard.folder / "plan.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, len(table) - 1), path)


def table_with_other_types(shard: Shard) -> None:
    table = parquet.read_table(shard.folder / "sources.parquet")
    place = table.schema.get_field_index("bytes")
    table = table.set_column(place, "bytes", compute.cast(table.column(place), "float64"))
    parquet.write_table(table, shard.folder / "sources.parquet")
    seal_tables(shard.folder)


def new_loss(reason: str) -> Callable[[Shard], None]:
    """A loss in the receipt and in losses.parquet alike."""

    def mutate(shard: Shard) -> None:
        row = read_table(shard.table)[0]
        loss = {key: row[key] for key in ("source", "source_root", "source_id", "split", "clip")}
        loss |= {"stage": "decode", "reason": reason, "num_frames": 0, "num_tokens": 0}
        loss |= {"message": "none"}
        edit_json(shard.receipt, lambda receipt: receipt["losses"].append(loss))
        edit_rows(
            shard.folder / "losses.parquet",
            LOSSES,
            lambda rows: rows.append(loss | {"retryable": False}),
        )
        seal_tables(shard.folder)

    return mutate


def flip_writers_name(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The name of the writer, before the footer's length and the magic number.
    content[content.rindex(b"parquet-cpp")] ^= 1
    path.write_bytes(content)


SHALLOW: dict[str, tuple[Callable[[Shard], None], str, str]] = {
    "a byte of a token flipped": (flip_token, ".tar", "tokens_crc32c"),
    "a byte of a pack flipped": (flip_token, ".tar", "crc32c differs from the receipt"),
    "a byte of a tar flipped": (flip_token, ".tar", "sha256"),
    "tar truncated": (truncate, ".tar", "bytes, the receipt says"),
    "tar truncated within a pack": (truncate, ".tar", "is torn"),
    "bytes after the tar's end": (append_bytes, ".tar", "bytes, the receipt says"),
    "a byte of the index flipped": (flip_index, ".index.npy", "sha256"),
    "tar deleted": (delete(".tar"), ".tar", "missing"),
    "index deleted": (delete(".index.npy"), ".index.npy", "missing"),
    "table deleted": (delete(".segments.parquet"), ".segments.parquet", "missing"),
    "receipt deleted": (delete(".json"), ".json", "no receipt"),
    "shard deleted": (
        delete(".json", ".tar", ".index.npy", ".segments.parquet"),
        ".json",
        "no receipt",
    ),
    "a byte of a merged table that says nothing flipped": (
        lambda shard: flip_writers_name(shard.folder / "segments.parquet"),
        "segments.parquet",
        "sha256",
    ),
    "merged segments deleted": (delete_file("segments.parquet"), "segments.parquet", "missing"),
    "sources deleted": (delete_file("sources.parquet"), "sources.parquet", "missing"),
    "losses deleted": (delete_file("losses.parquet"), "losses.parquet", "missing"),
    "plan deleted": (delete_file("plan.parquet"), "plan.parquet", "missing"),
    "plan document deleted": (delete_file("plan.json"), "plan.json", "missing"),
    "stray tar of this dataset": (stray_tar, "-000099.tar", "no task of the plan"),
    "stray receipt of another plan": (stray_of_another_plan, "deadbeef", "another plan"),
    "plan changed": (other_plan_rows, "plan.parquet", "not the file that plan.json names"),
    "seed changed": (
        in_document("plan.json", lambda d: d["settings"].update(seed=5)),
        "plan.json",
        "plan_id",
    ),
    "setting changed": (
        in_document("plan.json", lambda d: d["settings"].update(upscale=True)),
        "plan.json",
        "fingerprints: token",
    ),
    "layout changed": (
        in_document("plan.json", lambda d: d["layout"].update(tubelet_size=4)),
        "plan.json",
        "layout is not",
    ),
    "settings of the dataset changed": (
        in_document("dataset.json", lambda d: d["settings"].update(fps="3")),
        "dataset.json",
        "settings is not that of plan.json",
    ),
    "totals changed": (
        in_document("dataset.json", lambda d: d["totals"].update(tokens=1)),
        "dataset.json",
        "totals: tokens",
    ),
    "frames of totals changed": (
        in_document("dataset.json", lambda d: d["totals"].update(frames_lost=1)),
        "dataset.json",
        "totals: frames_lost",
    ),
    "a shard unlisted": (
        in_document("dataset.json", lambda d: d["shards"].pop()),
        "dataset.json",
        "shards is not",
    ),
    "members of the dataset changed": (
        in_document("dataset.json", lambda d: d["members"].pop()),
        "dataset.json",
        "members",
    ),
    "newer dataset": (
        in_document("dataset.json", lambda d: d.update(format_version=9)),
        "dataset.json",
        "format version 9",
    ),
    "newer plan": (
        in_document("plan.json", lambda d: d.update(format_version=9)),
        "plan.json",
        "format version 9",
    ),
    "newer receipt": (in_receipt(lambda d: d.update(format_version=9)), ".json", "version 9"),
    "dataset torn": (
        lambda shard: (shard.folder / "dataset.json").write_text("{"),
        "dataset.json",
        "damaged",
    ),
    "receipt torn": (lambda shard: shard.receipt.write_text('{"a":'), ".json", "torn"),
    "receipt of another kind": (in_receipt(lambda d: d.update(packs="2")), ".json", "packs is"),
    "receipt of another task": (in_receipt(lambda d: d.update(task_id="0")), ".json", "task_id"),
    "an observed source renamed": (
        in_receipt(lambda d: d["observed"].update({"0": d["observed"].popitem()[1]})),
        ".json",
        "observed: source 0 is not in this task",
    ),
    "an observed source gone": (
        in_receipt(lambda d: d["observed"].popitem()),
        ".json",
        "has segments and is not in it",
    ),
    "checksum of a pack changed": (
        in_receipt(lambda d: d["pack_crc32c"].__setitem__(0, 1)),
        ".tar: pack 0",
        "crc32c differs",
    ),
    "unknown reason": (new_loss("gremlins"), ".json", "'gremlins' is not in the closed list"),
    "unknown reason in the table": (new_loss("gremlins"), "losses.parquet", "closed list"),
    "a loss of the table removed": (
        in_table("losses.parquet", LOSSES, lambda rows: rows.pop()),
        "losses.parquet",
        "rows, plan and receipts have",
    ),
    "a loss of the table changed": (
        in_table("losses.parquet", LOSSES, lambda rows: rows[0].update(message="no")),
        "losses.parquet",
        "message differs",
    ),
    "a frame of a source unaccounted for": (
        in_table("sources.parquet", SOURCES, lose_frame),
        "sources.parquet",
        "frames selected",
    ),
    "a frame of a source called lost": (
        in_table("sources.parquet", SOURCES, lose_frame_and_say_so),
        "sources.parquet",
        "losses.parquet has 0",
    ),
    "codec of a source changed": (
        in_table("sources.parquet", SOURCES, lambda rows: rows[0].update(codec="theora")),
        "sources.parquet",
        "codec is 'theora'",
    ),
    "rotation of a source changed": (
        in_table("sources.parquet", SOURCES, lambda rows: first_written(rows).update(rotation=5)),
        "sources.parquet",
        "rotation is 5",
    ),
    "a source missing": (
        in_table("sources.parquet", SOURCES, lambda rows: rows.remove(first_written(rows))),
        "sources.parquet",
        "is planned and missing",
    ),
    "a source twice": (
        in_table("sources.parquet", SOURCES, lambda rows: rows.append(rows[0])),
        "sources.parquet",
        "occurs 2 times",
    ),
    "a column of another type": (table_with_other_types, "sources.parquet", "column bytes is"),
    "merged segments in another order": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.reverse()),
        "segments.parquet",
        "segment_id differs",
    ),
    "a merged segment missing": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.pop()),
        "segments.parquet",
        "ends within the segments",
    ),
    "a merged segment changed": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows[2].update(tail="drop")),
        "segments.parquet",
        "tail differs",
    ),
    "a merged segment too many": (
        in_table("segments.parquet", SEGMENTS, lambda rows: rows.append(rows[0])),
        "segments.parquet",
        "more rows than the shards",
    ),
}
"""Name: the mutation, the file that must be named, and what must be said."""

DEEP: dict[str, tuple[Callable[[Shard], None], str, str]] = {
    "wrong offset in the index": (wrong_offset, ".tar: pack", "the index says"),
    "two members exchanged": (swap_members, ".tar", "in this order"),
    "a member left out": (leave_out_member, ".tar", "has the members"),
    "a key twice": (duplicate_key, ".tar", "occurs twice"),
    "a pack too many": (duplicate_key, ".tar", "packs, the receipt says"),
    "a key with a space": (bad_key, ".tar", "is not 1 to 80 of"),
    "a key of another pack": (other_key, ".tar", "has key"),
    "members not adjacent": (interleave, ".tar", "not adjacent"),
    "a time of day": (set_time, ".tar", "time 1"),
    "an owner": (set_owner, ".tar", "'somebody'"),
    "positions outside the grid": (positions_outside, ".tar: pack", "outside the grid"),
    "positions exchanged": (positions_swapped, ".tar: pack", "raster order"),
    "positions of another dtype": (positions_of_another_dtype, ".tar: pack", "positions.npy is"),
    "positions in Fortran order": (positions_fortran, ".tar: pack", "no plain npy"),
    "wrong segment_ids": (wrong_ids, ".tar: pack", "segment_ids.npy is not"),
    "wrong segments.npy": (wrong_segments, ".tar: pack", "segments.npy: segment 2 has T"),
    "segments.npy of another shape": (
        segments_of_another_shape,
        ".tar: pack",
        "segments.npy is int32",
    ),
    "tokens exchanged": (tokens_exchanged, ".tar: pack", "tokens_crc32c"),
    "pack.json of another length": (json_differs, ".tar: pack", "has num_tokens"),
    "pack.json torn": (json_torn, ".tar: pack", "pack.json is damaged"),
    "newer pack": (newer_pack, ".tar: pack", "format version 7"),
    "seconds decrease": (in_first_row(reverse_seconds), ".parquet: row", "seconds decrease"),
    "seconds shifted": (in_first_row(shift_seconds), ".parquet: row", "frame_pts x time_base"),
    "seconds stand still": (in_first_row(stop_seconds), ".parquet: row", "stand still"),
    "too many valid frames": (in_first_row(more_valid_frames), ".parquet: row", "frames, not"),
    "too many valid frames for the plan": (
        in_first_row(more_valid_frames),
        ".segments.parquet",
        "frames planned",
    ),
    "valid frames called corrupt": (
        in_first_row(valid_frames_called_corrupt),
        ".tar: pack",
        "valid_frames says",
    ),
    "too much padding": (in_first_row(more_padding), ".parquet: row", "do not fill"),
    "a frame that the plan has not": (
        in_first_row(other_frames),
        ".segments.parquet",
        "frame_indices are not those of the plan",
    ),
    "frames decrease": (in_first_row(decreasing_frames), ".parquet: row", "frame_pts decreases"),
    "repeated frames miscounted": (in_first_row(repeated_frames), ".parquet: row", "repeats 0"),
    "another segment_id": (in_first_row(other_id), ".parquet: row", "not that of its source"),
    "another source": (in_first_row(other_source), ".parquet: row", "source is 'elsewhere.mp4'"),
    "another size": (in_first_row(other_size), ".parquet: row", "is not that of grid"),
    "another scale": (in_first_row(other_scale), ".parquet: row", "scale is"),
    "another offset": (in_first_row(other_offset), ".tar: pack", "offset"),
    "a clip's start moved": (moved_clip, ".segments.parquet", "leaves a gap"),
    "segment ids not unique": (same_ids, "segments.parquet", "occurs 2 times"),
    "a segment gone": (drop_last_row, ".segments.parquet", "neither written nor lost"),
}
"""As `SHALLOW`; every checksum is mended, so that only the content can tell."""


def found(problems: list[Problem], where: str, what: str) -> bool:
    return any(where in problem.where and what in problem.what for problem in problems)


@pytest.mark.parametrize(("mutate", "where", "what"), SHALLOW.values(), ids=SHALLOW)
def test_an_injected_defect_is_found(
    folder: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    mutate(Shard.of(folder))
    problems = verify(folder)
    assert found(problems, where, what), problems


@pytest.mark.parametrize(("mutate", "where", "what"), DEEP.values(), ids=DEEP)
def test_a_defect_whose_checksums_agree_is_found(
    folder: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    mutate(Shard.of(folder))
    problems = verify(folder)
    assert found(problems, where, what), problems
    assert not found(problems, "", "sha256")


def test_clips_of_a_plan_that_overlap_are_found(pristine: Path) -> None:
    plan = read_plan(pristine, {})
    problems: list[str] = []
    check_overlaps(plan, problems.append)
    assert problems == []
    task = plan.tasks[0]
    again = replace(task.clips[0], clip=9, start_pts=task.clips[0].stop_pts - 1)
    spoilt = replace(task, clips=(*task.clips, again))
    check_overlaps(replace(plan, tasks=(spoilt, *plan.tasks[1:])), problems.append)
    assert len(problems) == 1
    assert "overlap" in problems[0]


def test_many_problems_of_one_file_are_counted_not_shown(folder: Path) -> None:
    shard = Shard.of(folder)
    for info, _ in shard.members:
        info.mode = 0o777
    shard.members *= 10
    shard.seal()
    problems = [problem for problem in verify(folder) if shard.tar.name in problem.where]
    assert len(problems) == 51
    assert problems[-1].what.startswith("and ")


def test_a_shard_of_a_newer_format_is_refused_by_name_when_described(folder: Path) -> None:
    edit_json(folder / "dataset.json", lambda d: d.update(format_version=9))
    with pytest.raises(ShardError, match="format version 9"):
        summarize(folder)


# --- unfinished and foreign folders ------------------------------------------------------------


def unfinish(folder: Path) -> None:
    for name in ("dataset.json", "segments.parquet", "sources.parquet", "losses.parquet"):
        (folder / name).unlink()
    tars(folder)[0].with_suffix(".json").unlink()


def test_an_unfinished_folder_says_how_far_it_is(folder: Path) -> None:
    unfinish(folder)
    problems = verify(folder)
    assert len(problems) == 1
    assert "not finished: 2 of 3 tasks" in problems[0].what


def test_an_unfinished_folder_has_its_shards_checked(folder: Path) -> None:
    unfinish(folder)
    flip_byte(tars(folder)[1], -5000)
    assert found(verify(folder), ".tar: pack", "crc32c differs")


def test_an_unfinished_folder_is_described(folder: Path) -> None:
    whole = summarize(folder)
    unfinish(folder)
    summary = summarize(folder)
    assert summary["finished"] is False
    assert summary["tasks"] == {"planned": 3, "done": 2}
    assert list(summary) == list(whole)
    assert summary["totals"]["sources"] == whole["totals"]["sources"]
    assert summary["shards"] == whole["shards"][1:]
    assert summary["losses"] == whole["losses"]
    totals = summary["totals"]
    assert totals["frames_selected"] == totals["frames_written"] + totals["frames_lost"]
    json.dumps(summary)


def test_a_plan_without_shards_is_described(sample_clips: Path, tmp_path: Path) -> None:
    make_plan([str(sample_clips)], config=load_config(SETTINGS | {"fps": "2"}), out=tmp_path / "p")
    summary = summarize(tmp_path / "p")
    assert summary["tasks"] == {"planned": 3, "done": 0}
    assert summary["totals"]["segments"] == 0
    assert found(verify(tmp_path / "p"), "plan.json", "0 of 3 tasks")


@pytest.mark.parametrize("look", [summarize, verify])
def test_a_folder_that_is_none_of_ours_says_what_to_give(
    folder: Path, tmp_path: Path, look: Callable[[Path], Any]
) -> None:
    with pytest.raises(ShardError, match="give the folder that --out named"):
        look(tmp_path)
    with pytest.raises(ShardError, match="no such file or folder"):
        look(tmp_path / "absent")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ShardError, match=r"NAME-000000\.tar"):
        look(tmp_path / "a.mp4")
    (folder / "dataset.json").unlink()
    (folder / "plan.json").unlink()
    with pytest.raises(ShardError, match="or one of its shards, such as"):
        look(folder)


# --- summarize ---------------------------------------------------------------------------------


def test_a_summary_agrees_with_the_tables_read_by_pyarrow_alone(pristine: Path) -> None:
    summary = summarize(pristine)
    segments = parquet.read_table(pristine / "segments.parquet")
    sources = parquet.read_table(pristine / "sources.parquet")
    totals = summary["totals"]
    assert totals["segments"] == len(segments)
    assert totals["tokens"] == compute.sum(segments["num_kept"]).as_py()
    assert totals["frames_written"] == compute.sum(segments["valid_frames"]).as_py()
    assert totals["sources"] == len(sources)
    assert totals["sources_with_segments"] == len(segments["source_id"].unique())
    assert totals["frames_selected"] == compute.sum(sources["frames_selected"]).as_py()
    assert totals["frames_lost"] == compute.sum(sources["frames_lost"]).as_py()
    assert summary["aspect_error"]["max"] == compute.max(segments["aspect_error"]).as_py()
    mean = compute.mean(segments["aspect_error"]).as_py()
    assert summary["aspect_error"]["mean"] == pytest.approx(mean)


def test_a_summary_agrees_with_dataset_json(pristine: Path) -> None:
    summary = summarize(pristine)
    document = json.loads((pristine / "dataset.json").read_text())
    for key, value in summary["totals"].items():
        assert value == document["totals"][key], key
    assert [{k: v for k, v in s.items() if k != "fill"} for s in summary["shards"]] == [
        {key: entry[key] for key in ("name", "split", "packs", "segments", "tokens", "bytes")}
        for entry in document["shards"]
    ]
    assert summary["settings"] == document["settings"]
    assert summary["environment"] == document["environment"]


def test_histograms_count_every_segment_once(pristine: Path) -> None:
    summary = summarize(pristine)
    segments = read_table(pristine / "segments.parquet")
    for name, bins in summary["histograms"].items():
        assert sum(entry["count"] for entry in bins) == len(segments), name
    for name, values in {
        "tokens": [row["num_kept"] for row in segments],
        "aspect_ratio": [row["size"][1] / row["size"][0] for row in segments],
        "source_fps": [row["source_fps"] for row in segments],
        "duration_seconds": [
            (row["clip_stop_pts"] - row["clip_start_pts"]) * float(Fraction(row["time_base"]))
            for row in segments
        ],
    }.items():
        for entry in summary["histograms"][name]:
            if entry["from"] is None:
                expected = sum(value is None for value in values)
            else:
                stop = entry["to"] or float("inf")
                expected = sum(v is not None and entry["from"] <= v < stop for v in values)
            assert entry["count"] == expected, (name, entry)


def test_losses_are_shown_by_reason_with_examples(pristine: Path) -> None:
    (loss,) = summarize(pristine)["losses"]
    assert loss["reason"] == "unreadable"
    assert loss["rows"] == 1
    assert loss["retryable"] is False
    assert loss["examples"][0]["source"] == "broken_on_purpose.mp4"
    assert loss["examples"][0]["message"]


def test_a_summary_is_json(pristine: Path) -> None:
    summary = summarize(pristine)
    assert json.loads(json.dumps(summary)) == summary


def test_a_shard_alone_tells_size_fps_patch_and_layout(pristine: Path, tmp_path: Path) -> None:
    tar = tars(pristine)[0]
    for path in pristine.glob(f"{tar.stem}.*"):
        shutil.copy(path, tmp_path)
    whole = summarize(pristine)
    for path in (tmp_path / tar.name, tmp_path / f"{tar.stem}.json"):
        summary = summarize(path)
        assert list(summary) == list(whole)
        assert summary["kind"] == "shard"
        assert summary["name"] == whole["name"]
        assert summary["tokens"] == whole["tokens"] | {"kind": None}
        assert summary["sampled_fps"] == {"min": 2.0, "max": 2.0}
        assert summary["sizes"]["most_common"][0]["size"]
        assert {row["matrix"] for row in summary["colour"]}
        assert summary["shards"] == whole["shards"][:1]
        json.dumps(summary)


def test_a_shard_without_its_other_files_says_so(pristine: Path, tmp_path: Path) -> None:
    tar = tars(pristine)[0]
    for name in (tar.name, f"{tar.stem}.json"):
        shutil.copy(pristine / name, tmp_path)
    with pytest.raises(ShardError, match="copy the four files"):
        summarize(tmp_path / tar.name)
