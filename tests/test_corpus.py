"""The whole corpus of real and hostile files: nothing is lost without a fitting reason."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from agreeing import packets_agree

from spacepatch.inspection import summarize, verify

# What may become of the files that are no healthy video: any other file must be written whole.
EXPECTED_REASONS = {
    "derived__git_lfs_pointer.mp4": {"unreadable"},
    "derived__html_error_page.mp4": {"unreadable"},
    "derived__truncated_no_moov.mp4": {"unreadable"},
    "lilliput__big_buck_bunny_480p_10s_big_atom.mp4": {"unreadable"},
    "moviepy__result.webm": {"unreadable"},
    "exo__bear-id3.mp3": {"no_video_stream"},
    "mediabunny__ac3.mkv": {"no_video_stream"},
    "mediabunny__multiple-aac-tracks.mp4": {"no_video_stream"},
    "qt__corrupt_end.ogg": {"no_video_stream"},
    "qt__nokia-tune.mkv": {"no_video_stream"},
    "mediabunny__annex-b.mp4": {"truncated"},
    "decord__corrupted.mp4": {"corrupt_frames"},
    "derived__truncated_faststart_half.mp4": {"corrupt_frames", "truncated"},
}


@pytest.fixture(scope="module")
def index(corpus: Path) -> list[dict[str, str]]:
    with (corpus / "INDEX.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "out"
    done = run("tokenize", str(corpus), "--out", str(out), "--workers", "2")
    assert done.returncode == 3, done.stderr
    return out


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spacepatch", *arguments],
        capture_output=True,
        text=True,
        timeout=580,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()


def test_every_file_ends_as_segments_or_as_a_loss_that_fits(
    dataset: Path, index: list[dict[str, str]]
) -> None:
    reasons = defaultdict(set)
    for row in rows(dataset / "losses.parquet"):
        reasons[row["source"]].add(row["reason"])
    written = {row["source"] for row in rows(dataset / "segments.parquet")}
    assert len(index) == 111
    for entry in index:
        assert entry["file"] in written | set(reasons), f"{entry['file']} is lost in silence"
    assert set(reasons) == set(EXPECTED_REASONS)
    for name, found in reasons.items():
        assert found <= EXPECTED_REASONS[name], name


def test_it_verifies_clean(dataset: Path) -> None:
    assert verify(dataset) == []


def test_no_video_that_ffmpeg_decodes_is_missing(
    dataset: Path, corpus: Path, index: list[dict[str, str]], ffmpeg: str
) -> None:
    written = {row["source"] for row in rows(dataset / "segments.parquet")}
    decodes = set()
    for entry in index:
        # Cover art is no video; :V selects video streams without it.
        arguments = ["-v", "error", "-xerror", "-i", f"file:{corpus / entry['file']}"]
        done = subprocess.run(
            [ffmpeg, "-nostdin", *arguments, "-map", "0:V:0", "-f", "null", "-"],
            capture_output=True,
        )
        if done.returncode == 0 and not done.stderr:
            decodes.add(entry["file"])
    assert decodes - written == set()
    assert len(written) >= len(decodes) >= 85


def test_what_packets_promise_and_the_decoder_holds_is_written_exactly_as_planned(
    dataset: Path, corpus: Path, index: list[dict[str, str]]
) -> None:
    planned: Counter[str] = Counter()
    for row in rows(dataset / "plan.parquet"):
        planned[row["source"]] += row["num_tokens"] or 0
    tokens: Counter[str] = Counter()
    for row in rows(dataset / "segments.parquet"):
        tokens[row["source"]] += row["num_kept"]
    # What the header of a cut-off file promised is no packet.
    lost = {
        row["source"] for row in rows(dataset / "losses.parquet") if row["reason"] != "truncated"
    }
    agreeing = [entry["file"] for entry in index if packets_agree(corpus / entry["file"])]
    agreeing.remove("exo__bear-id3.mp3")  # cover art
    assert len(agreeing) >= 94
    for name in agreeing:
        assert tokens[name] == planned[name] > 0, name
        assert name not in lost, name


def test_the_sums_of_inspect_are_those_of_the_table(dataset: Path) -> None:
    segments = rows(dataset / "segments.parquet")
    totals = summarize(dataset)["totals"]
    assert totals["segments"] == len(segments)
    assert totals["tokens"] == sum(row["num_kept"] for row in segments)
    assert totals["packs"] == len({(row["shard"], row["pack"]) for row in segments})
    assert totals["frames_written"] == sum(row["valid_frames"] for row in segments)
    assert totals["sources_with_segments"] == len({row["source"] for row in segments})


def test_packs_are_near_the_lower_bound(
    dataset: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    totals = json.loads((dataset / "dataset.json").read_text())["totals"]
    assert totals["shards"] > 1
    assert totals["packs"] <= totals["lower_bound"] + 2 + (totals["shards"] - 1)
    done = run("plan", str(corpus), "--shard-size", "2GB", "--json")
    one = json.loads(done.stdout)["totals"]
    assert one["shards"] == 1
    assert one["packs"] <= one["lower_bound"] + 2


def test_plan_says_what_tokenize_then_does(dataset: Path, corpus: Path) -> None:
    done = run("plan", str(corpus), "--json")
    planned = json.loads(done.stdout)["totals"]
    totals = json.loads((dataset / "dataset.json").read_text())["totals"]
    assert planned["tokens"] == totals["planned_tokens"]
    assert planned["clips"] == totals["clips"]
    assert planned["shards"] == totals["shards"]
    assert abs(planned["bytes"] - totals["bytes"]) < 0.02 * totals["bytes"]


def test_attention_in_packs_equals_attention_alone(dataset: Path) -> None:
    torch = pytest.importorskip("torch")
    from spacepatch.loader import PackDataset
    from spacepatch.masks import block_mask

    torch.manual_seed(0)
    packs = PackDataset(dataset, padded=False)
    width = packs[0]["tokens"].shape[1]
    project = torch.randn(width, 3 * 32, dtype=torch.float32) / width**0.5

    def attend(tokens: Any, mask: Any) -> Any:
        q, k, v = ((tokens.float() / 255 - 0.5) @ project).chunk(3, dim=-1)
        return torch.nn.functional.scaled_dot_product_attention(
            q[None, None], k[None, None], v[None, None], attn_mask=mask
        )[0, 0]

    worst = 0.0
    for number in range(len(packs)):
        pack = packs[number]
        packed = attend(pack["tokens"], block_mask(pack["segment_ids"])[None, None])
        bounds = pack["cu_seqlens"].tolist()
        for start, stop in pairwise(bounds):
            alone = attend(pack["tokens"][start:stop], None)
            worst = max(worst, (packed[start:stop] - alone).abs().max().item())
    assert worst < 1e-5
