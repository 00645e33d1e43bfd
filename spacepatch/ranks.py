"""Ranks: processes that share out a plan's tasks among them, without a coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spacepatch.errors import ConfigError

Variables = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes that share a plan."""

    number: int
    """From 0 on."""
    world_size: int
    """How many there are."""

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world_size:
            raise ValueError(f"rank {self.number} is none of {self.world_size}")

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"

    def owns(self, task: int) -> bool:
        """Whether it does the task of that number: each is one rank's, wherever that runs."""
        return task % self.world_size == self.number


def parse_rank(rank: str | None, world_size: int | None, variables: Variables) -> Rank | None:
    """The rank that `--rank` and `--world-size` say; None: they were not given.

    Args:
        rank: a number, or `auto`.
        variables: what `auto` looks at, `os.environ`.

    Raises:
        ConfigError: they say no rank, or `auto` finds none.
    """
    if world_size is not None and world_size < 1:
        raise ConfigError(f"world_size: {world_size} ranks do nothing; give how many there are")
    if rank is None:
        if world_size is not None:
            raise ConfigError(
                "world_size: which of them is this one? give --rank I, or --rank auto"
            )
        return None
    if rank == "auto":
        found = detect_rank(variables, world_size)
        if found is None:
            raise ConfigError(
                "rank: auto finds no variables of torchrun, Open MPI, PMI, srun, or of an array of "
                "SLURM, SGE or PBS: start it with one of these (in a batch script: srun spacepatch "
                "...), or give --rank I --world-size N"
            )
        return found
    if not (rank.isascii() and rank.isdecimal()):
        raise ConfigError(f"rank: {rank!r} is neither a number from 0 on nor auto")
    if world_size is None:
        raise ConfigError(f"rank: {rank} of how many? give --world-size N")
    if int(rank) >= world_size:
        raise ConfigError(
            f"rank: {rank} is too high; with --world-size {world_size} ranks are 0 to "
            f"{world_size - 1}"
        )
    return Rank(int(rank), world_size)


def note_of_processes(variables: Variables) -> str:
    """What to tell a user who runs several processes without `--rank`; empty: it is one."""
    try:
        found = detect_rank(variables)
    except ConfigError as error:
        return f"this may be one of several processes, each of which does the whole run ({error})"
    if found is None or found.world_size == 1:
        return ""
    return (
        f"{_said_by(variables)}: this is process {found.number} of {found.world_size}, and without "
        "--rank each does the whole run; to share it out, give --rank auto"
    )


# --- what the launchers of processes say -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a launcher says that this process stands."""

    name: str
    """Of the variable that says it."""
    index: int
    size: int | None
    """None: it does not say of how many."""


PROCESSES = (
    ("RANK", ("WORLD_SIZE",)),
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("PMI_RANK", ("PMI_SIZE",)),
    ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
)
"""Variables of an index and of a number of processes: torchrun, Open MPI, MPICH and Intel MPI,
srun. The innermost first: what torchrun and mpirun start in a job of SLURM has its variables too.
"""


def detect_rank(variables: Variables, world_size: int | None = None) -> Rank | None:
    """The rank of this process, as its launcher tells it; None: no launcher tells any.

    Elements of an array are jobs of their own: with several processes in each, element e and
    process p of P make rank e * P + p.

    Args:
        world_size: for arrays that do not say how many elements they have (PBS); of the others
            it must be what they say.

    Raises:
        ConfigError: the variables, or they and `world_size`, contradict each other.
    """
    element, process = _element(variables), _process(variables)
    if element is None and process is None:
        return None
    processes = 1 if process is None or process.size is None else process.size
    elements = 1 if element is None else element.size
    if elements is None:
        assert element is not None
        if world_size is None:
            raise ConfigError(
                f"rank: {element.name} does not say how many there are: give --world-size N too"
            )
        elements, left = divmod(world_size, processes)
        if left or element.index >= elements:
            raise ConfigError(
                f"rank: {element.name} is {element.index}, with {processes} processes in each; "
                f"--world-size {world_size} is not for that (arrays are numbered from 0)"
            )
    found = Rank(
        (element.index if element else 0) * processes + (process.index if process else 0),
        elements * processes,
    )
    if world_size not in (None, found.world_size):
        raise ConfigError(
            f"world_size: {world_size}, but {_said_by(variables)} is of {found.world_size}: leave "
            "it out"
        )
    return found


def _said_by(variables: Variables) -> str:
    parts = (_element(variables), _process(variables))
    return ", ".join(part.name for part in parts if part is not None)


def _process(variables: Variables) -> _Part | None:
    """Among those that one launcher started."""
    for name, sizes in PROCESSES:
        if name == "SLURM_PROCID" and _is_batch_script(variables):
            continue
        size = next((size for size in sizes if size in variables), None)
        if name in variables and size is not None:
            return _part(name, _number(variables, name), _number(variables, size))
    return None


def _is_batch_script(variables: Variables) -> bool:
    """Whether SLURM started this itself: a batch script is process 0 of its job's number of tasks,
    though no other is started until it calls srun, which makes a step."""
    return "SLURM_JOB_ID" in variables and "SLURM_STEP_ID" not in variables


def _element(variables: Variables) -> _Part | None:
    """Among the elements of a job array."""
    if "SLURM_ARRAY_TASK_ID" in variables:
        return _slurm_element(variables)
    # SGE says "undefined" in jobs that are no array.
    if variables.get("SGE_TASK_ID", "undefined") != "undefined":
        first, last, step = (
            _number(variables, f"SGE_TASK_{word}") for word in ("FIRST", "LAST", "STEPSIZE")
        )
        index = (_number(variables, "SGE_TASK_ID") - first) // step
        return _part("SGE_TASK_ID", index, (last - first) // step + 1)
    for name in ("PBS_ARRAY_INDEX", "PBS_ARRAYID"):
        if name in variables:
            return _part(name, _number(variables, name), None)
    return None


def _slurm_element(variables: Variables) -> _Part:
    name = "SLURM_ARRAY_TASK_ID"
    first = _number(variables, "SLURM_ARRAY_TASK_MIN")
    step = _number(variables, "SLURM_ARRAY_TASK_STEP")
    count = _number(variables, "SLURM_ARRAY_TASK_COUNT")
    last = _number(variables, "SLURM_ARRAY_TASK_MAX")
    # Of `--array=1,3,7` nothing tells that 3 is the second.
    if not first + (count - 1) * step <= last < first + count * step:
        raise ConfigError(
            f"rank: {name} is of {count} ids from {first} to {last}, which are no even steps: "
            "submit an array as 0-7, or give --rank I --world-size N"
        )
    return _part(name, (_number(variables, name) - first) // step, count)


def _part(name: str, index: int, size: int | None) -> _Part:
    if index < 0 or (size is not None and index >= size):
        raise ConfigError(f"rank: {name} says process {index} of {size}; give --rank I")
    return _Part(name, index, size)


def _number(variables: Variables, name: str) -> int:
    try:
        return int(variables[name])
    except KeyError:
        raise ConfigError(f"rank: {name} is not set; give --rank I --world-size N") from None
    except ValueError:
        raise ConfigError(f"rank: {name} is {variables[name]!r}, no number") from None
