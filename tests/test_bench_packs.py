"""A short run of the benchmark of packing: NaViT's figures, and that packed and padded batches are
the same images to the same model. Nothing here is timed; `make bench` is long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spacepatch.loader import PackDataset
from tests.benchmarks import packs as bench_packs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side: threads that share a core wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_packs.make_dataset(tmp_path_factory.mktemp("bench"), num_images=40, patch=32)


@pytest.mark.parametrize("patch", [16, 32])
def test_navits_images_a_sequence_with_less_than_2_percent_of_padding(patch: int) -> None:
    pack_length, published = bench_packs.PUBLISHED[patch]
    lengths = bench_packs.draw_lengths(4000, patch, bench_packs.round_down)
    images, padding = bench_packs.images_and_padding(lengths, pack_length)
    assert images == pytest.approx(published, rel=0.05)
    assert padding < 0.02
    # The rounding of spacepatch makes larger images, which pack as tightly.
    larger = bench_packs.draw_lengths(4000, patch, bench_packs.round_nearest)
    images, padding = bench_packs.images_and_padding(larger, pack_length)
    assert images == pytest.approx(pack_length / (sum(larger) / len(larger)), rel=0.02)
    assert padding < 0.02


def test_packed_and_padded_batches_are_the_same_images_to_the_model(shards: Path) -> None:
    packs = PackDataset(shards)
    packed = bench_packs.as_stored(packs, rows=2, most_packs=len(packs))
    longest = bench_packs.one_a_row(packed, 2, None)
    full = bench_packs.one_a_row(packed, 2, packs.pack_length)
    totals = packs.document["totals"]
    for batches in (packed, longest, full):
        assert sum(batch.num_tokens for batch in batches) == totals["tokens"]
    assert sum(len(batch.tokens) for batch in full) == totals["segments"] == 40
    assert {batch.tokens.shape[1] for batch in (*packed, *full)} == {packs.pack_length}
    assert all(batch.segment_ids.any(dim=0).all() for batch in longest)

    torch.manual_seed(0)
    model = bench_packs.SmallViT(packed[0].tokens.shape[-1])
    with torch.no_grad():
        outputs = [
            torch.cat(
                [model(batch.tokens, batch.segment_ids, batch.positions) for batch in batches]
            )
            for batches in (packed, longest, full)
        ]
    assert outputs[0].shape == (40, bench_packs.WIDTH)
    assert outputs[0].std(dim=0).mean() > 0.01  # images are not all alike to it
    for padded in outputs[1:]:
        torch.testing.assert_close(outputs[0], padded, atol=1e-5, rtol=0)


def test_the_figures_are_written(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_packs.write_speeds(shards, rows=2, rounds=1, most_packs=2)
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert list(rows) == ["packed", "longest", "full"]
    padding = [float(row[1].rstrip("%")) for row in rows.values()]
    assert padding == sorted(padding)
