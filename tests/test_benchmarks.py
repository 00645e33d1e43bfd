"""A short run of the benchmarks over clips of a second: that they compare what they say, write
every time down, and would see what they look for. No time is judged; `make bench` is long."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import av
import numpy as np
import pytest

from tests.benchmarks import clips as making
from tests.benchmarks import codecs, contenders, growth, packing, plans, speed, stores, table
from tests.benchmarks.children import Run, run
from tests.benchmarks.results import Figure, conclude

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read /proc")

TINY = making.Recipe(
    sizes=((160, 90), (96, 160)),
    clips_a_size=1,
    frames=30,
    small=(64, 48),
    num_short=3,
    short_frames=6,
    minute_frames=50,
)


SOURCE = "square_320x320.mp4"
LOSSY = "compressed:42"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, sample_clips: Path) -> making.Clips:
    return making.Clips(tmp_path_factory.mktemp("bench"), sample_clips / SOURCE, TINY)


def packet_bytes(path: Path) -> list[bytes]:
    with av.open(str(path)) as clip:
        return [bytes(packet) for packet in clip.demux(video=0) if packet.size]


def decoded(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as clip:
        return [(frame.time, frame.to_ndarray().tobytes()) for frame in clip.decode(video=0)]


# --- clips ---------------------------------------------------------------------------------------


def test_clips_of_a_folder_differ_and_copies_have_the_same_packets(clips: making.Clips) -> None:
    first, second = clips.copies(2)
    names = [path.name for path in sorted(first.iterdir())]
    assert names == ["a1.mp4", "b1.mp4"] == [path.name for path in sorted(second.iterdir())]
    for name in names:
        assert (first / name).read_bytes() != (second / name).read_bytes()
        assert packet_bytes(first / name) == packet_bytes(second / name)
        assert decoded(first / name) == decoded(second / name)
        assert len(decoded(first / name)) == TINY.frames
    short = [packet_bytes(path) for path in clips.short().iterdir()]
    assert len(short) == 3 == len({b"".join(packets) for packets in short})


def test_a_longer_clip_is_the_minute_again_at_later_times(clips: making.Clips) -> None:
    minute, longer = decoded(clips.minutes(1)), decoded(clips.minutes(3))
    assert [picture for _, picture in longer] == 3 * [picture for _, picture in minute]
    times = [time for time, _ in longer]
    assert times == pytest.approx([number / making.FPS for number in range(150)])


def test_clips_are_made_once_and_anew_for_another_recipe(clips: making.Clips) -> None:
    made = clips.short()
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert {path: path.stat().st_mtime_ns for path in clips.short().iterdir()} == before
    assert making.Clips(clips.parent, None, TINY).folder != clips.folder
    assert making.Clips(clips.parent, clips.source).folder != clips.folder


def test_drawn_pictures_move_and_have_detail_and_grain() -> None:
    pictures = making.draw_pictures()
    one, two = (next(pictures).to_ndarray().astype(int) for _ in range(2))
    assert one.std() > 20
    assert np.abs(np.diff(one, axis=1)).mean() > 2
    assert np.abs(one - two).mean() > 2


# --- speed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work() -> speed.Work:
    easy = speed.Variant(
        name="area",
        settings=("--fps", "6", *speed.AREA),
        most_of_floor=1e9,
        least_by_hand=0,
    )
    return speed.Work(name="6 fps", clips=making.Clips.yardstick, fps=6, variants=(easy,))


@pytest.fixture(scope="module")
def results(
    work: speed.Work, clips: making.Clips, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("results")
    made = speed.run_works(
        [work], clips, folder / "out", rounds=1, rounds_by_hand=1, path=folder / "speed.json"
    )
    assert made == 0
    assert [path.name for path in folder.iterdir()] == ["speed.json"]  # no output is left
    yield folder


def test_a_short_run_of_speed_writes_every_time_and_ratio(results: Path) -> None:
    document = json.loads((results / "speed.json").read_text())
    assert document["machine"]["versions"]["av"] == av.__version__
    runs = {
        name: [one["seconds"] for one in made] for name, made in document["runs"]["6 fps"].items()
    }
    assert list(runs) == ["decode-only", "hand-written", "spacepatch area", "write-and-hash"]
    assert all(len(made) == 1 and made[0] > 0 for made in runs.values())
    frames = json.loads(document["runs"]["6 fps"]["decode-only"][0]["said"])
    assert frames == {"clips": 2, "frames": 60}
    ours, floor, by_hand, writing = (
        runs[name][0]
        for name in ("spacepatch area", "decode-only", "hand-written", "write-and-hash")
    )
    assert [figure["each"] for figure in document["figures"]] == [
        [ours / floor],
        [by_hand / ours],
        [writing / floor],
    ]
    (found,) = document["settings"]["works"].values()
    assert found["differ_by_workers"] == {"area": []}
    # 6 frames of 10 x 6 patches of each clip, in tubelets of 2; by hand enlarged to 256 patches.
    assert found["tokens"]["spacepatch area"] == 2 * 3 * 60
    assert found["tokens"]["hand-written"] == 3 * (21 * 12 + 12 * 20)
    assert found["bytes"] > 2 * 3 * 60 * 1536
    written = json.loads(document["runs"]["6 fps"]["write-and-hash"][0]["said"])
    assert written["bytes"] == found["bytes"]


def test_a_byte_that_differs_between_numbers_of_workers_is_seen(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"same")
    one = contenders.read_digests(tmp_path)
    (tmp_path / "in" / "a").write_bytes(b"sane")
    (tmp_path / "b").write_bytes(b"")
    assert speed.differing_files(one, one) == []
    assert speed.differing_files(one, contenders.read_digests(tmp_path)) == ["b", "in/a"]


def test_ratios_are_of_runs_of_one_round(work: speed.Work) -> None:
    def runs(*seconds: float) -> list[Run]:
        return [Run(one, one, "") for one in seconds]

    # A round in which the machine is ten times slower, for all alike; two rounds by hand.
    made = {
        "decode-only": runs(1, 10, 1),
        "hand-written": runs(6, 60),
        "spacepatch area": runs(2, 20, 3),
        "write-and-hash": runs(1, 10, 1),
    }
    of_floor, by_hand, _ = speed.figures_of(work, made)
    assert (of_floor.each, by_hand.each) == ([2, 2, 3], [3, 3])


def test_what_is_not_reached_ends_with_1(tmp_path: Path) -> None:
    slow = Figure("work", "time", [1.0, 1.2, 9.0], at_most=1.1)
    assert not slow.is_reached
    assert Figure("work", "time", [1.0, 1.1, 9.0], at_most=1.1, at_least=1.1).is_reached
    assert not Figure("work", "time", [1.0], at_least=1.1).is_reached
    assert conclude([slow], path=tmp_path / "a.json", settings={}) == 1


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)exit code 2: .*No such file"):
        run([sys.executable, "nothing-here.py"])


# --- growth and packing --------------------------------------------------------------------------


def test_growth_is_seen_and_start_up_is_not_taken_for_it() -> None:
    def judged(exponent: float) -> bool:
        times = {str(n): [Run(0.7 + 5 * n**exponent, 0, "")] for n in (0, *growth.SIZES)}
        figures = growth.linearity("x", times)
        assert figures[0].each == [0.7]
        return all(figure.is_reached for figure in figures)

    assert judged(1)
    assert not judged(1.05)  # a clip of 8 x the clips costs 11 % more


def test_a_short_run_of_growth_has_start_up_and_every_size(
    clips: making.Clips, tmp_path: Path
) -> None:
    part = growth.grow_clips(clips, tmp_path / "out", 1, sizes=(1, 2))
    done = {name: json.loads(made[0].said)["totals"] for name, made in part.runs.items()}
    assert {name: totals["clips"] for name, totals in done.items()} == {"0": 1, "1": 2, "2": 4}
    assert done["2"]["tokens"] == 2 * done["1"]["tokens"]
    seconds = {name: made[0].seconds for name, made in part.runs.items()}
    raw, net = (figure.each for figure in part.figures[-2:])
    assert raw == pytest.approx([seconds["2"] / seconds["1"] / 2])
    less = {name: one - seconds["0"] for name, one in seconds.items()}
    assert net == pytest.approx([less["2"] / less["1"] / 2])


def test_the_memory_of_every_process_is_written(clips: making.Clips, tmp_path: Path) -> None:
    part = growth.watch_memory(clips, tmp_path / "out", sizes=(1, 2))
    peaks = {figure.measure: median(figure.each) for figure in part.figures}
    assert {"MB, parent, resident", "MB, worker 1, resident", "MB, arena"} <= set(peaks)
    # All processes at one moment hold more than the parent alone ever does.
    assert peaks["MB, all processes, resident"] > peaks["MB, parent, resident"] > 10
    assert peaks["MB, worker 1, VmHWM"] >= peaks["MB, worker 1, resident"] > 10


def test_every_packer_packs_all_lengths() -> None:
    for name in packing.packers():
        made = packing.pack_here(name, 2000)
        assert made["fill"] > 0.7
        tokens = np.random.default_rng(0).integers(1, packing.PACK_LENGTH + 1, 2000).sum()
        assert made["packs"] == pytest.approx(tokens / packing.PACK_LENGTH / made["fill"])


# --- the page ------------------------------------------------------------------------------------


def test_the_page_gets_the_table_and_keeps_its_text(results: Path) -> None:
    found = json.loads((results / "speed.json").read_text())
    page = (Path(table.ROOT) / "docs" / "performance.md").read_text()
    made = table.fill_page(page, [table.section("Speed", found)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()]
    (ratio,) = found["figures"][0]["each"]
    shown = next(row for row in rows if row[:1] == ["6 fps, area"])
    assert float(shown[3]) == pytest.approx(ratio, rel=0.01)
    assert shown[-2:] == ["<= 1e+09", "reached"]
    assert "6 fps: every file that 1 worker and 2 write is the same." in made
    assert table.fill_page(made, [table.section("Speed", found)]) == made
    before = page.partition(table.BEGIN)[0]
    assert made.startswith(before) and made.endswith(page.partition(table.END)[2])
    with pytest.raises(ValueError, match="once each"):
        table.fill_page(before, [])


# --- plans ---------------------------------------------------------------------------------------


def test_a_simulated_plan_has_every_step_and_every_source(tmp_path: Path) -> None:
    found = plans.simulate(3000, tmp_path)
    assert set(plans.STEPS) < set(found)
    assert all(found[name]["megabytes"] > 10 for name in plans.STEPS)
    assert found["size"]["clips"] > 2900 and found["size"]["tasks"] > 100
    figures = plans.grown([10, 100], [found, found])
    (growth,) = (one for one in figures if one.measure.startswith("growth"))
    assert growth.each == [pytest.approx(0.1)]


# --- stores and codecs ---------------------------------------------------------------------------


def test_every_store_is_written_and_loaded_and_codecs_bring_back_what_they_got(
    sample_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [sample_clips / "still_picture_400x300.png", sample_clips / "square_320x320.mp4"]
    monkeypatch.setattr(stores, "STORES", {name: stores.STORES[name] for name in ("tokens", LOSSY)})
    figures, runs, found = stores.measure(clips, tmp_path / "out", 1)
    assert {len(made) for one in runs.values() for made in one.values()} == {1}
    assert found["tokens"]["tokens"] == found[LOSSY]["tokens"] > 0
    assert found["tokens"]["bytes"] > 10 * found[LOSSY]["bytes"]
    assert all(min(figure.each) > 0 for figure in figures)
    segments = list(codecs.segments_of(tmp_path / "out" / "0", 200_000))
    assert len(segments) == len(clips)
    exact = [one for one in codecs.contenders() if "zstd 1" in one[0] or "RGB" in one[0]]
    monkeypatch.setattr(codecs, "contenders", lambda: iter(exact))
    measured = codecs.measure(segments)
    assert len(measured) == 4 * len(exact)
    assert all(min(figure.each) > 0 for figure in measured)
