"""What every command prints with --json is what docs/schemas says, no field more and none less."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from json_schemas import FOLDER, SHARED, faults_of, parts_of, schemas
from jsonschema import Draft202012Validator
from typer.main import get_command
from typer.testing import CliRunner

from spacepatch.cli import app
from spacepatch.pipeline.stage_times import STAGES

DOCS = Path(__file__).resolve().parents[1] / "docs"
SMALL = ["--fps", "2", "--max-tokens-per-frame", "64", "--pack-length", "512", "--workers", "1"]
LATENTS = ["--fps", "4", "--max-tokens-per-frame", "64", "--pack-length", "256", "--workers", "1"]
CLIPS = ("square_320x320.mp4", "broken_on_purpose.mp4", "still_picture_400x300.png")


@pytest.fixture(scope="module")
def place(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, one of them broken, in which commands leave what they made."""
    place = tmp_path_factory.mktemp("json")
    (place / "videos").mkdir()
    for name in CLIPS:
        (place / "videos" / name).symlink_to(sample_clips / name)
    return place


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives what a command prints, after it was held against its schema."""
    monkeypatch.chdir(place)

    def run(*arguments: str, schema: str | None = None, code: int = 0) -> Any:
        # In this process: a start takes as long as most of these commands.
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == code, (done.stderr, done.exception)
        document = json.loads(done.stdout)
        assert faults_of(schema or arguments[0], document) == []
        return document

    return run


def make(out: Path, run: Any, *arguments: str, code: int = 0) -> Path:
    """A dataset, made once."""
    if not out.exists():
        run("tokenize", *arguments, "--out", out.name, code=code)
    return out


@pytest.fixture
def shards(place: Path, run: Any) -> Path:
    return make(place / "shards", run, "videos", *SMALL, code=3)


@pytest.fixture
def codec(place: Path, run: Any) -> str:
    if not (place / "codec.safetensors").exists():
        video = f"videos/{CLIPS[0]}"
        run("fit", video, *SMALL[:4], "--channels", "4", "--out", "codec.safetensors")
    return "linear:codec.safetensors"


@pytest.fixture
def latents(place: Path, run: Any, codec: str) -> Path:
    video = f"videos/{CLIPS[0]}"
    return make(place / "latents", run, video, *LATENTS, "--encoder", codec, "--also", "pixels")


def test_every_command_with_json_has_a_schema_and_a_line_on_the_page() -> None:
    page = (DOCS / "json.md").read_text()
    printing = {
        name
        for name, command in get_command(app).commands.items()
        if any("--json" in entry.opts for entry in command.params)
    }
    assert printing | {"tokenize-rank", SHARED} == set(schemas())
    for name in schemas():
        assert f"](schemas/{name}.json)" in page, name


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_a_schema_is_one_and_lets_nothing_else_through(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])
    for part in parts_of(schemas()[name]):
        if "object" in (part.get("type") or ()):
            assert part["additionalProperties"] is not True, part
            assert set(part.get("required", ())) <= part.get("properties", {}).keys(), part


def test_the_schema_of_bench_has_its_stages() -> None:
    # That its fields are there, tests/test_bench.py sees.
    assert list(schemas()["bench"]["properties"]["stages"]["properties"]) == list(STAGES)


def test_a_field_more_and_a_field_less_are_faults(run: Any, shards: Path) -> None:
    document = run("convert", "shards", "--to", "t p q c", "--out", "more")
    assert faults_of("convert", document | {"news": 1}) == [
        "$: Additional properties are not allowed ('news' was unexpected)"
    ]
    del document["totals"]["tokens"]
    assert faults_of("convert", document) == ["$.totals: 'tokens' is a required property"]


def test_plan_of_pixels_and_of_latents(run: Any, codec: str) -> None:
    assert run("plan", "videos", *SMALL, "--drop", "static")["totals"]["is_bound"]
    video = f"videos/{CLIPS[0]}"
    document = run("plan", video, video, *LATENTS, "--encoder", codec, "--also", "pixels")
    assert document["encoder"]["kind"] == "latents"
    assert document["duplicates"]


def test_unpack(run: Any, shards: Path) -> None:
    document = run("unpack", "shards", "--out", "frames")
    assert document["num_segments"] == document["num_exact"] > 0


def test_ranks_and_finish_with_and_without_what_is_missing(run: Any, place: Path) -> None:
    small = [*SMALL, "--shard-size", "1MB", "--clip-seconds", "1", "--fps", "8"]
    planned = run("plan", "videos", *small, "--out", "ranked")
    assert planned["totals"]["shards"] > 1
    ranked = ["tokenize", "videos", *small, "--out", "ranked", "--world-size", "2", "--rank"]
    document = run(*ranked, "0", schema="tokenize-rank")
    assert document["own"] == document["made"] > 0
    assert run("inspect", "ranked")["finished"] is False
    failed = CliRunner().invoke(app, ["finish", "ranked", "--world-size", "2", "--json"])
    assert failed.exit_code == 1
    missing = json.loads(failed.stdout)
    assert faults_of("finish", missing) == []
    assert missing["missing"]
    run(*ranked, "1", schema="tokenize-rank")
    assert run("finish", "ranked", code=3)["lost_sources"] == [CLIPS[1]]


def test_inspect_of_datasets_and_of_shards_alone(run: Any, shards: Path, latents: Path) -> None:
    document = run("inspect", "shards")
    assert [row["reason"] for row in document["losses"]] == ["unreadable"]
    for folder in (shards, latents):
        tar = min(folder.glob("*.tar"))
        assert run("inspect", str(tar))["kind"] == "shard"
    assert run("inspect", "latents")["encoder"]["mean"] is not None
    video = f"videos/{CLIPS[0]}"
    parted = [*SMALL, "--split", "train=0.5,val=0.5", "--clip-seconds", "1", "--drop", "random:0.5"]
    run("tokenize", video, *parted, "--out", "parted")
    assert run("inspect", "parted")["splits"]


def test_codes_of_several_stages(run: Any, place: Path) -> None:
    pytest.importorskip("sklearn")
    video, broken = (f"videos/{name}" for name in CLIPS[:2])
    codes = ["--channels", "4", "--codebook", "8", "--residual", "2", "--sample-blocks", "2000"]
    report = run("fit", video, broken, *SMALL[:4], *codes, "--out", "codes.safetensors", code=3)
    assert len(report["report"]["stages"]) == 2
    run("tokenize", video, *LATENTS, "--encoder", "linear:codes.safetensors", "--out", "codes")
    assert run("inspect", "codes")["encoder"]["codebook_size"] == 8


def test_repack_with_and_without_balance(run: Any, shards: Path) -> None:
    run("repack", "shards", "--pack-length", "2048", "--out", "longer")
    document = run("repack", "shards", "--balance", "attention", "--out", "even")
    assert document["attention"]["after"]["unbalanced"] is not None


def test_verify_with_and_without_problems_and_decoding(
    run: Any, place: Path, shards: Path, latents: Path, codec: str
) -> None:
    roots = ["--source-root", "videos"]
    assert run("verify", "shards", "--decode", "1", *roots)["decoded"]["equal"]
    document = run("verify", "latents", "--decode", "1", *roots, "--encoder", codec)
    assert document["decoded"]["mean"] is not None
    run("convert", "shards", "--to", "t p q c", "--out", "spoiled")
    (place / "spoiled" / "sources.parquet").unlink()
    assert run("verify", "spoiled", code=1)["problems"]


def test_compare_of_the_same_and_of_others(run: Any, shards: Path, latents: Path) -> None:
    pytest.importorskip("scipy")
    assert run("compare", "shards", "shards")["same"]
    assert run("compare", "shards", "latents", code=1)["channels"] is None
    encoder = ["--encoder", "linear:codec.safetensors"]
    run("tokenize", f"videos/{CLIPS[2]}", *LATENTS, *encoder, "--out", "still")
    document = run("compare", "latents", "still", code=1)
    assert document["channels"]["channels"]
    assert document["distributions"]["source_fps"]["distance"] is None


def test_probe_of_videos_and_of_what_is_none(run: Any) -> None:
    assert {"reason" in row for row in run("probe", "videos", code=3)} == {True, False}


def test_doctor(run: Any) -> None:
    assert run("doctor")["python"] == ".".join(map(str, sys.version_info[:3]))


def test_presets(run: Any) -> None:
    assert {"needs_encoder" in row for row in run("presets")} == {True, False}
