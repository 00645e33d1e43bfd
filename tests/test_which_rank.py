"""Which rank a process is, by its options or by what started it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ranked_runs import SETTINGS

from spacepatch.config import load_config
from spacepatch.errors import ConfigError
from spacepatch.pipeline import Watch, tokenize
from spacepatch.ranks import Rank, detect_rank, parse_rank


def array(index: int, *, first: int, last: int, step: int, count: int) -> dict[str, str]:
    numbers = {"ID": index, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{word}": str(number) for word, number in numbers.items()}


def sge(index: str, first: str, last: str, step: str) -> dict[str, str]:
    words = {"ID": index, "FIRST": first, "LAST": last, "STEPSIZE": step}
    return {f"SGE_TASK_{word}": value for word, value in words.items()}


JOB = {"SLURM_JOB_ID": "77"}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
STEP = JOB | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "5"}, None),
        (TORCHRUN, (5, 8)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4)),
        (STEP, (3, 4)),
        # srun -n 2 in a job of four tasks, with --preserve-env
        (STEP | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        # In a batch script one process runs, whatever the job's number of tasks.
        (BATCH, None),
        (BATCH | array(2, first=0, last=7, step=1, count=8), (2, 8)),
        # What torchrun and mpirun start there has the script's variables too.
        (BATCH | TORCHRUN, (5, 8)),
        (STEP | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, (0, 3)),
        (array(7, first=1, last=8, step=1, count=8), (6, 8)),
        (array(8, first=0, last=12, step=4, count=4), (2, 4)),
        (array(8, first=0, last=15, step=4, count=4), (2, 4)),
        (array(5, first=5, last=5, step=1, count=1), (0, 1)),
        # Each element is a job of its own, with four processes.
        (STEP | array(2, first=1, last=3, step=1, count=3), (1 * 4 + 3, 12)),
        (TORCHRUN | array(1, first=0, last=1, step=1, count=2), (8 + 5, 16)),
        (sge("9", "1", "16", "4"), (2, 4)),
        (sge("undefined", "undefined", "undefined", "undefined"), None),
    ],
)
def test_auto_finds_what_the_launcher_says(
    variables: dict[str, str], expected: tuple[int, int] | None
) -> None:
    assert detect_rank(variables) == (expected and Rank(*expected))


def test_every_process_of_every_element_is_another_rank() -> None:
    found = [
        detect_rank(
            array(element, first=3, last=9, step=3, count=3) | STEP | {"SLURM_PROCID": str(process)}
        )
        for element in (3, 6, 9)
        for process in range(4)
    ]
    assert found == [Rank(number, 12) for number in range(12)]
    assert sorted(n for rank in found if rank for n in range(100) if rank.owns(n)) == [*range(100)]


@pytest.mark.parametrize("number", [-1, 4])
def test_a_rank_beyond_its_world_is_a_mistake(number: int) -> None:
    with pytest.raises(ValueError, match=f"rank {number} is none of 4"):
        Rank(number, 4)


def test_an_array_of_pbs_does_not_say_how_many_and_is_told() -> None:
    assert parse_rank("auto", 8, {"PBS_ARRAY_INDEX": "7"}) == Rank(7, 8)
    assert parse_rank("auto", 8, {"PBS_ARRAYID": "0"} | STEP) == Rank(3, 8)
    with pytest.raises(ConfigError, match="PBS_ARRAY_INDEX does not say how many"):
        parse_rank("auto", None, {"PBS_ARRAY_INDEX": "7"})
    with pytest.raises(ConfigError, match=r"numbered from 0"):
        parse_rank("auto", 8, {"PBS_ARRAY_INDEX": "8"})


@pytest.mark.parametrize(
    ("rank", "world_size", "variables", "message"),
    [
        ("0", None, {}, "give --world-size N"),
        (None, 4, {}, "give --rank I"),
        ("4", 4, {}, "ranks are 0 to 3"),
        ("-1", 4, {}, "'-1' is neither a number from 0 on nor auto"),
        ("1.5", 4, {}, "neither"),
        ("0", 0, {}, "0 ranks do nothing"),
        ("auto", None, {}, "finds no variables"),
        ("auto", 4, BATCH, "srun spacepatch"),
        ("auto", 4, TORCHRUN, "4, but RANK is of 8"),
        ("auto", None, {"RANK": "8", "WORLD_SIZE": "8"}, "process 8 of 8"),
        ("auto", None, {"RANK": "one", "WORLD_SIZE": "8"}, "RANK is 'one', no number"),
        ("auto", None, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is not set"),
        ("auto", None, array(3, first=1, last=7, step=1, count=3), "no even steps"),
    ],
)
def test_what_says_no_rank_is_an_error_that_says_so(
    rank: str | None, world_size: int | None, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_rank(rank, world_size, variables)


@pytest.mark.parametrize(
    ("variables", "note"),
    [
        (STEP, "SLURM_PROCID: this is process 3 of 4"),
        ({"PBS_ARRAY_INDEX": "7"}, "PBS_ARRAY_INDEX does not say how many"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (BATCH, None),
    ],
)
def test_a_whole_run_in_one_of_several_processes_says_so(
    variables: dict[str, str],
    note: str | None,
    sample_clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notes: list[str] = []
    sources = [str(sample_clips / "broken_on_purpose.mp4")]
    watch = Watch(on_note=notes.append)
    tokenize(sources, out=tmp_path / "out", config=load_config(SETTINGS), watch=watch)
    assert len(notes) == (note is not None)
    assert (note or "") in "".join(notes)
    assert (tmp_path / "out" / "dataset.json").exists()
