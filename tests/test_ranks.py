"""Several processes share a plan, and together write what one would have written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from conftest import SpacepatchCli
from ranked_runs import (
    DONE_WITH_LOSSES,
    FEW,
    SETTINGS,
    digests,
    end,
    make_place,
    receipts,
    run_rank,
    start,
)

from spacepatch.config import load_config
from spacepatch.data import Loss
from spacepatch.errors import LossLimitError, ResumeError
from spacepatch.inspection import verify
from spacepatch.pipeline import join_ranks, make_plan, tokenize, tokenize_rank
from spacepatch.ranks import Rank


@pytest.fixture(scope="module")
def place(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"), sample_clips)


@pytest.fixture(scope="module")
def sources(place: Path) -> list[str]:
    return [str(place / "videos"), f"@{place / 'gone.txt'}"]


@pytest.fixture(scope="module")
def whole(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert len(tokenize(sources, out=out, config=load_config(SETTINGS)).lost_sources) == 2
    assert len(list(out.glob("*.tar"))) >= 8
    assert verify(out) == []
    return out


@pytest.fixture
def planned(sources: list[str], whole: Path, tmp_path: Path) -> Path:
    """A folder with the plan alone."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("plan.json", "plan.parquet"):
        shutil.copy(whole / name, out)
    return out


def test_finish_names_what_a_rank_left_that_never_started_and_then_bytes_are_those_of_one_process(
    place: Path, planned: Path, whole: Path, spacepatch_cli: SpacepatchCli
) -> None:
    together = [start(place, planned, rank, 4) for rank in (0, 1)]
    for process in together:
        code, stdout, stderr = end(process)
        assert code == 0
        assert re.fullmatch(r"plan: .*\n", stderr)
        assert f"spacepatch finish {planned} --world-size 4" in stdout
    assert end(start(place, planned, 3, 4, "--json"))[0] == 0
    tasks = receipts(whole)
    assert sorted(receipts(planned)) == [number for number in tasks if number % 4 != 2]

    refused = spacepatch_cli("finish", planned, "--world-size", "4", "--json")
    assert refused.returncode == 1
    left = [path.stem for number, path in tasks.items() if number % 4 == 2]
    assert f"{len(left)} of {len(tasks)} shards are missing: {', '.join(left)};" in refused.stderr
    assert "start rank 2 of 4 again" in refused.stderr
    assert [entry["shard"] for entry in json.loads(refused.stdout)["missing"]] == left
    assert {entry["rank"] for entry in json.loads(refused.stdout)["missing"]} == {2}
    assert not (planned / "dataset.json").exists()

    code, stdout, _ = end(start(place, planned, 2, 4, "--json"))
    assert code == 0
    assert json.loads(stdout)["made"] == json.loads(stdout)["own"] == len(left)
    for _ in range(2):
        done = spacepatch_cli("finish", planned)
        assert done.returncode == DONE_WITH_LOSSES, done.stderr
        assert "2 sources lost entirely" in done.stderr
        assert digests(planned) == digests(whole)
    assert verify(planned) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_rank_whose_processes_get_a_signal_resumes_to_the_same_bytes(
    place: Path, sources: list[str], planned: Path, whole: Path, number: signal.Signals
) -> None:
    process = start(place, planned, 0, 2)
    while not receipts(planned):
        assert process.poll() is None, end(process)
        time.sleep(0.002)
    os.killpg(process.pid, number)
    code, _, stderr = end(process)
    if number != signal.SIGKILL:
        assert code == 130, stderr
        assert "goes on from here" in stderr
        assert "Traceback" not in stderr
    finished = digests(planned)
    assert len(receipts(planned)) < len(receipts(whole)) // 2
    run_rank(sources, planned, 1, 2)
    run_rank(sources, planned, 0, 2)
    assert finished.items() <= digests(planned).items()
    join_ranks(planned)
    assert digests(planned) == digests(whole)


def test_ranks_of_another_number_or_a_whole_run_do_what_is_missing(
    sources: list[str], planned: Path, whole: Path
) -> None:
    run_rank(sources, planned, 1, 3)
    run_rank(sources, planned, 0, 2)
    assert sorted(receipts(planned)) == [n for n in receipts(whole) if n % 3 == 1 or n % 2 == 0]
    tokenize(sources, out=planned, config=load_config(SETTINGS))
    assert digests(planned) == digests(whole)


def test_a_rank_removes_what_it_left_itself_and_nothing_that_others_are_writing(
    sources: list[str], planned: Path, whole: Path
) -> None:
    own, other = (receipts(whole)[number].stem for number in (0, 1))
    private = planned / ".spacepatch"
    private.mkdir()
    (private / f"{own}.tar.tmp-0123").touch()
    (private / f"{other}.index.npy.tmp-0123").touch()
    run_rank(sources, planned, 0, len(receipts(whole)))
    assert [path.name for path in private.glob("*.tmp-*")] == [f"{other}.index.npy.tmp-0123"]


def test_the_command_that_a_rank_without_a_plan_names_makes_it(
    place: Path, whole: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    out = tmp_path / "my out"
    code, _, stderr = end(start(place, out, 0, 2))
    assert code == 1
    assert stderr.count("\n") == 1
    assert not out.exists()
    named = shlex.split(stderr.partition("spacepatch plan ")[2])
    done = spacepatch_cli("plan", *named, "--config", "run.toml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert digests(out) == {
        name: digest for name, digest in digests(whole).items() if name.startswith("plan.")
    }


def test_a_plan_without_tasks_is_finished_by_ranks_that_have_nothing_to_do(
    place: Path, tmp_path: Path
) -> None:
    config = load_config(SETTINGS)
    sources = [str(place / "videos" / "broken_on_purpose.mp4")]
    tokenize(sources, out=tmp_path / "whole", config=config)
    make_plan(sources, out=tmp_path / "out", config=config)
    run_rank(sources, tmp_path / "out", 1, 2)
    assert len(join_ranks(tmp_path / "out").lost_sources) == 1
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_cluster_that_shares_out_shards_takes_no_ranks(planned: Path, place: Path) -> None:
    code, _, stderr = end(start(place, planned, 0, 2, "--executor", "ray"))
    assert code == 2
    assert "executor: ray shares out the shards itself; leave --rank out" in stderr


def test_overwrite_is_not_for_one_of_many(planned: Path, place: Path) -> None:
    code, _, stderr = end(start(place, planned, 0, 2, "--overwrite"))
    assert code == 2
    assert "begin anew with spacepatch plan --overwrite" in stderr
    assert (planned / "plan.json").exists()


# --- what a rank looks at, and takes back ------------------------------------------------------


def ranks_of(out: Path, source: str) -> set[int]:
    """Of as many ranks as shards: those that have a part of it."""
    rows = parquet.read_table(out / "plan.parquet", columns=["task", "source"]).to_pylist()
    return {row["task"] for row in rows if row["source"] == source}


def test_a_rank_refuses_inputs_of_its_own_that_changed_and_any_that_are_gone(
    place: Path, whole: Path, planned: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "videos", tmp_path / "videos")
    sources = [str(tmp_path / "videos"), f"@{place / 'gone.txt'}"]
    num_ranks = len(receipts(whole))
    reads = min(ranks_of(planned, FEW[0]))
    reads_not = min(ranks_of(planned, FEW[1]) - ranks_of(planned, FEW[0]))
    with (tmp_path / "videos" / FEW[0]).open("ab") as file:
        file.write(b"\0")
    run_rank(sources, planned, reads_not, num_ranks)
    assert list(receipts(planned)) == [reads_not]
    with pytest.raises(ResumeError, match=rf"1 changed \({FEW[0]}\)"):
        run_rank(sources, planned, reads, num_ranks)
    (tmp_path / "videos" / FEW[0]).unlink()
    with pytest.raises(ResumeError, match=rf"1 removed \({FEW[0]}\)"):
        run_rank(sources, planned, reads_not, num_ranks)


@pytest.fixture
def troubled(whole: Path, tmp_path: Path) -> Path:
    """The dataset, as it would be had shards 0 and 1 lost all of a video to a timeout."""
    out = shutil.copytree(whole, tmp_path / "out")
    rows = parquet.read_table(out / "sources.parquet", columns=["source", "source_id"]).to_pylist()
    (identity,) = (row["source_id"] for row in rows if row["source"] == FEW[0])
    loss = Loss(FEW[0], identity, 0, "decode", "timeout", 10**6, 0, "no new frame for 60 s")
    for number in (0, 1):
        path = receipts(out)[number]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"losses": [asdict(loss)]}))
    return out


def test_retry_lost_takes_back_the_own_shards_of_a_rank_alone(
    sources: list[str], whole: Path, troubled: Path
) -> None:
    before = receipts(troubled)[1].read_bytes()
    config = load_config(SETTINGS)
    tokenize_rank(sources, out=troubled, config=config, rank=Rank(0, 2), retry_lost=True)
    assert not (troubled / "dataset.json").exists()
    assert receipts(troubled)[0].read_bytes() == receipts(whole)[0].read_bytes()
    assert receipts(troubled)[1].read_bytes() == before
    tokenize_rank(sources, out=troubled, config=config, rank=Rank(1, 2), retry_lost=True)
    join_ranks(troubled)
    assert digests(troubled) == digests(whole)


def test_max_losses_is_about_the_sources_of_a_ranks_own_shards(
    sources: list[str], whole: Path, troubled: Path
) -> None:
    num_ranks = len(receipts(whole))
    run_rank(sources, troubled, 2, num_ranks, max_losses="0")
    run_rank(sources, troubled, 1, num_ranks, max_losses="1")
    # A third of the plan's four sources would be one.
    with pytest.raises(LossLimitError, match="1 source lost, max_losses allows 0"):
        run_rank(sources, troubled, 1, num_ranks, max_losses="33%")
