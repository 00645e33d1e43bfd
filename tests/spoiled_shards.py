"""What spoils a dataset, and mends the checksums so that only deeper checks can find it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from spacepatch.config import fingerprint
from spacepatch.inspection import Problem, verify
from spacepatch.shards import SEGMENTS, read_table, write_table


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def alone(folder: Path, target: Path) -> Path:
    """Copy the shards of a dataset, and nothing that says what was planned."""
    for tar in tars(folder):
        for path in folder.glob(f"{tar.stem}.*"):
            shutil.copy(path, target)
    return target


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

    def rows(self) -> list[dict[str, Any]]:
        """Of segments.parquet, those of this pack."""
        return [row for row in read_table(self.table) if row["pack"] == self.pack]

    def crc32c(self, row: dict[str, Any]) -> int:
        """Of the tokens of one segment."""
        tokens = self.array("tokens.npy")[row["offset"] : row["offset"] + row["num_kept"]]
        return int(crc32c(tokens.tobytes()))

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


def seal_plan(folder: Path) -> None:
    """The checksum of plan.parquet, and the plan's id wherever it stands; not that of its tasks."""
    sha256 = hashlib.sha256((folder / "plan.parquet").read_bytes()).hexdigest()
    document = json.loads((folder / "plan.json").read_text())
    settings = document["settings"]
    identity = {
        "fingerprints": document["fingerprints"],
        "seed": settings["seed"],
        "selection": {key: settings[key] for key in ("limit", "sample", "split")},
        "rows": sha256,
    }
    plan_id = fingerprint(identity)
    edit_json(folder / "plan.json", lambda plan: plan.update(plan_sha256=sha256, plan_id=plan_id))
    for path in [folder / "dataset.json", *(tar.with_suffix(".json") for tar in tars(folder))]:
        edit_json(path, lambda document: document.update(plan_id=plan_id))


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_token(shard: Shard) -> None:
    info, content = shard.members[shard.place("tokens.npy")]
    flip_byte(shard.tar, info.offset_data + len(content) - 1)


def other_checksum(refs: Path, out: Path) -> tuple[Path, dict[str, Any]]:
    """A copy in which the checksum of a segment is that of other tokens, and its row."""
    shard = Shard.of(shutil.copytree(refs, out))
    changed: list[dict[str, Any]] = []

    def change(own: list[dict[str, Any]]) -> None:
        own[1]["tokens_crc32c"] ^= 1
        changed.append(own[1])

    shard.edit_rows(change)
    shard.seal()
    return out, changed[0]


def unfinish(folder: Path) -> None:
    for name in ("dataset.json", "segments.parquet", "sources.parquet", "losses.parquet"):
        (folder / name).unlink()
    tars(folder)[0].with_suffix(".json").unlink()


Mutations = dict[str, tuple[Callable[[Shard], None], str, str]]
"""By name: what spoils a dataset, the file that must be named, and what must be said."""


def found(problems: list[Problem], where: str, what: str) -> bool:
    return any(where in problem.where and what in problem.what for problem in problems)


# --- changes, each of which mends the checksums -------------------------------------------------


def in_array(name: str, change: Callable[[np.ndarray, Any], None]) -> Callable[[Shard], None]:
    """Change a member; `change` is given it and the row of the largest segment of the pack."""

    def mutate(shard: Shard) -> None:
        array = shard.array(name)
        change(array, max(shard.rows(), key=lambda row: row["num_kept"]))
        shard.put(name, array)
        shard.seal()

    return mutate


def in_tokens(change: Callable[[np.ndarray], None]) -> Callable[[Shard], None]:
    """Change tokens, and the checksum of their segments."""

    def mutate(shard: Shard) -> None:
        tokens = shard.array("tokens.npy")
        change(tokens)
        shard.put("tokens.npy", tokens)

        def mend(rows: list[Any]) -> None:
            for row in rows:
                row["tokens_crc32c"] = shard.crc32c(row)

        shard.edit_rows(mend)
        shard.seal()

    return mutate


def in_row(**values: Any) -> Callable[[Shard], None]:
    """Change the largest segment of a pack; a function gives the new value from the row."""

    def mutate(shard: Shard) -> None:
        def change(rows: list[Any]) -> None:
            row = max(rows, key=lambda row: row["num_kept"])
            row.update(
                {key: value(row) if callable(value) else value for key, value in values.items()}
            )

        shard.edit_rows(change)
        shard.seal()

    return mutate


def in_pack(change: Callable[[Any], None]) -> Callable[[Shard], None]:
    """Change pack.json."""

    def mutate(shard: Shard) -> None:
        document = json.loads(shard.members[shard.place("pack.json")][1])
        change(document)
        shard.put("pack.json", json.dumps(document, sort_keys=True).encode())
        shard.seal()

    return mutate


def in_receipt(change: Callable[[Any], None]) -> Callable[[Shard], None]:
    return lambda shard: edit_json(shard.receipt, change)


def in_document(name: str, change: Callable[[Any], None]) -> Callable[[Shard], None]:
    """Change dataset.json or plan.json."""
    return lambda shard: edit_json(shard.folder / name, change)


def assert_found(
    dataset: Path, folder: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    """A copy of the dataset with this defect is told of it, and not only by a checksum."""
    out = shutil.copytree(dataset, folder / "copy")
    mutate(Shard.of(out))
    problems = verify(out)
    assert found(problems, where, what), problems
    assert not found(problems, "", "sha256")


def assert_found_alone(
    dataset: Path, folder: Path, mutate: Callable[[Shard], None], where: str, what: str
) -> None:
    """The same of one shard without its plan."""
    shard = Shard.of(shutil.copytree(dataset, folder / "copy"))
    mutate(shard)
    (folder / "alone").mkdir()
    assert found(verify(alone(shard.folder, folder / "alone") / shard.tar.name), where, what)


def cases(**tables: Mutations) -> list[Any]:
    """Parameters of a test, of the mutations of each dataset: (name, mutate, where, what)."""
    return [
        pytest.param(name, *mutation, id=f"{name}: {title}")
        for name, table in tables.items()
        for title, mutation in table.items()
    ]
