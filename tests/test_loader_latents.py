"""Latents, codes and the pixels beside them as tensors, held against tarfile and numpy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitted_codecs import blocks_of, video
from loaded_packs import assert_same, read_plainly, segments_of
from small_runs import run
from spoiled_shards import Shard
from test_torchscript_encoder import save_script, write_toml
from torch.utils.data import DataLoader

from spacepatch.latents.fitting import fit_codec
from spacepatch.latents.linear import codec_bytes
from spacepatch.loader import STACKED, PackDataset, collate
from spacepatch.tubelets import join_tubelets

CLIPS = ("square_320x320.mp4", "landscape_640x360.mp4", "still_picture_400x300.png")
SMALL = {"pack_length": 256, "workers": 1}
TRAINING = Path(__file__).resolve().parents[1] / "docs" / "training.md"

Make = Callable[..., Path]

BIG_CODES = """
def forward(self, x):
    y = (x[:, 0] + 1) * 127.5 + (x[:, 1] + 1) * 65535
    return y.reshape(x.size(0), x.size(2) // 8, 8, x.size(3) // 8, 8)[:, :, 0, :, 0].round().long()
"""


@cache
def fitted_codec(codebook: int | None, stages: int) -> bytes:
    """Of 6 channels a block of 4 x 8 x 8 pixels."""
    block = (4, 8, 8)
    options = {"channels": 6, "codebook": codebook, "residual": stages, "seed": 0}
    return codec_bytes(fit_codec(blocks_of(video(8, 128, 160), block), block=block, **options)[0])


@pytest.fixture(scope="module")
def make(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Datasets of linear codecs, each made once: latents, or codes of a `codebook`."""
    folder, made = tmp_path_factory.mktemp("linear"), {}

    def dataset(*, codebook: int | None = None, stages: int = 1, **settings: Any) -> Path:
        key = str((codebook, stages, sorted(settings.items())))
        if key not in made:
            path = folder / f"{codebook}-{stages}.safetensors"
            path.write_bytes(fitted_codec(codebook, stages))
            sources = [sample_clips / name for name in CLIPS]
            made[key] = folder / f"{len(made)}"
            run(sources, made[key], encoder=f"linear:{path}", **SMALL | settings)
        return made[key]

    return dataset


@pytest.fixture(scope="module")
def both(make: Make) -> Path:
    """Codes and pixels."""
    return make(codebook=300, also="pixels")


def bits(tokens: torch.Tensor) -> np.ndarray:
    size = tokens.dtype.itemsize
    return tokens.view({1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[size]).numpy()


# --- tokens are what is stored ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_latents_have_the_dtype_and_the_bits_that_are_stored(make: Make, dtype: str) -> None:
    folder = make(latent_dtype=dtype)
    plain = read_plainly(folder)
    dataset = PackDataset(folder)
    assert len(plain) == len(dataset) > 1
    for pack, stored in zip(dataset, plain, strict=True):
        kept = pack["num_tokens"]
        assert pack["tokens"].dtype == getattr(torch, dtype)
        assert np.array_equal(
            bits(pack["tokens"][:kept]),
            stored["tokens"].view(f"uint{8 * stored['tokens'].itemsize}"),
        )
        assert not bits(pack["tokens"][kept:]).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_pattern_of_16_bits_changes_on_its_way_to_a_batch(
    make: Make, tmp_path: Path, dtype: str
) -> None:
    folder = shutil.copytree(
        make(latent_dtype=dtype, pack_length=2**15, fps="8"), tmp_path / "copy"
    )
    shard = Shard.of(folder)
    before = shard.array("tokens.npy")
    assert before.size >= 2**14
    for start in range(0, 2**16, 2**14):
        patterns = np.resize(np.arange(start, start + 2**14, dtype=np.uint16), before.shape)
        shard.put("tokens.npy", patterns.view(before.dtype))
        shard.seal()
        dataset = PackDataset(folder)
        batch = collate([dataset[shard.pack]] * 2)["tokens"]
        assert batch.dtype == getattr(torch, dtype)
        assert np.array_equal(bits(batch[1][: len(patterns)]), patterns)


@pytest.mark.parametrize(("codebook", "dtype"), [(200, torch.uint8), (300, torch.uint16)])
def test_codes_have_the_unsigned_dtype_that_is_stored(
    make: Make, codebook: int, dtype: Any
) -> None:
    folder = make(codebook=codebook, stages=2)
    largest = 0
    for pack, stored in zip(PackDataset(folder, padded=False), read_plainly(folder), strict=True):
        assert pack["tokens"].dtype == dtype
        assert np.array_equal(pack["tokens"].numpy(), stored["tokens"])
        assert np.array_equal(pack["tokens"].long().numpy(), stored["tokens"].astype(np.int64))
        largest = max(largest, stored["tokens"].max())
    assert codebook * 0.9 < largest < codebook


def test_codes_beyond_16_bits_stay_whole_in_batches_of_other_processes(
    sample_clips: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    save_script(model / "encoder.jit", BIG_CODES)
    settings = {"kind": "codes", "frames": "any", "stride": [1, 8, 8], "input": "image"}
    write_toml(model, {**settings, "codebook_size": 2**18})
    sources = [sample_clips / name for name in CLIPS]
    run(sources, out, encoder=f"torchscript:{model}", trust_encoder=True, **SMALL)
    plain = read_plainly(out)
    assert max(pack["tokens"].max() for pack in plain) > 2**16
    loader = DataLoader(
        PackDataset(out),
        batch_size=2,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context="spawn",
        timeout=120,
    )
    loaded = [
        tokens[:num].long()
        for batch in loader
        for tokens, num in zip(batch["tokens"], batch["num_tokens"], strict=True)
    ]
    assert batch_dtype(loader) == torch.uint32
    for tokens, stored in zip(loaded, plain, strict=True):
        assert np.array_equal(tokens.numpy(), stored["tokens"].astype(np.int64))


def batch_dtype(loader: DataLoader) -> torch.dtype:
    return loader.dataset[0]["tokens"].dtype


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
def test_what_torch_does_with_codes_it_does_rightly(dtype: torch.dtype) -> None:
    """As docs/training.md says: these, and nothing that computes."""
    codes = torch.tensor([[0, 1], [2, 65535]]).to(dtype)
    long = codes.long()
    assert long.tolist() == [[0, 1], [2, 65535]]
    assert torch.equal(torch.stack([codes, codes]).long(), torch.stack([long, long]))
    assert torch.equal(codes[torch.tensor([1, 0])].long(), long[[1, 0]])
    assert torch.equal(codes[long[:, 0] > 0].long(), long[1:])
    assert torch.equal(codes == codes[0, 1], long == 1)
    for compute in (lambda: codes + 1, lambda: codes > 1, codes.max):
        with pytest.raises(RuntimeError):
            compute()


# --- pixels beside them -------------------------------------------------------------------------


def test_pixels_are_those_that_are_stored_and_are_padded_to_the_most_of_any_pack(
    both: Path,
) -> None:
    dataset, plain = PackDataset(both), read_plainly(both)
    assert dataset.pixel_length == max(len(pack["pixels"]) for pack in plain)
    assert len({len(pack["pixels"]) for pack in plain}) > 1
    for pack, stored in zip(dataset, plain, strict=True):
        table, count = stored["pixel_segments"], len(stored["pixels"])
        ids = [place for place, row in enumerate(table, 1) for _ in range(row[1])]
        padding = [0] * (dataset.pixel_length - count)
        assert pack["num_pixel_tokens"] == count
        assert pack["pixels"].dtype == torch.uint8
        assert pack["pixels"].shape == (dataset.pixel_length, stored["pixels"].shape[1])
        assert np.array_equal(pack["pixels"][:count].numpy(), stored["pixels"])
        assert not pack["pixels"][count:].any()
        assert pack["pixel_segment_ids"].tolist() == ids + padding
        assert not pack["pixel_positions"][count:].any()
        assert pack["pixel_cu_seqlens"].tolist() == [*table[:, 0], count]
        assert pack["pixel_max_seqlen"] == max(table[:, 1])
        assert np.array_equal(pack["pixel_grid_thw"].numpy(), table[:, 2:5])
        assert np.array_equal(pack["pixel_patch"].numpy(), table[:, 5:8])


@pytest.mark.parametrize("order", ["raster", "merge 2 x 2"])
def test_pixels_put_where_their_positions_say_are_the_frames(
    make: Make, sample_clips: Path, tmp_path: Path, order: str
) -> None:
    settings = {"pixel_patch": "2x8x8", "order": order, "multiple": 2, "pack_length": 2**14}
    folder = make(codebook=300, also="pixels", **settings)
    alone = run_pixels(sample_clips, tmp_path / "out")
    for pack in PackDataset(folder):
        borders = pack["pixel_cu_seqlens"].tolist()
        for number, segment in enumerate(pack["segments"]):
            place = slice(borders[number], borders[number + 1])
            assert set(pack["pixel_segment_ids"][place].tolist()) == {number + 1}
            t, h, w = pack["pixel_grid_thw"][number].tolist()
            frames = np.zeros((2 * t, 8 * h, 8 * w, 3), np.uint8)
            for position, token in zip(
                pack["pixel_positions"][place].tolist(), pack["pixels"][place], strict=True
            ):
                (a, b, c), cube = position, token.numpy().reshape(3, 2, 8, 8)
                frames[2 * a : 2 * a + 2, 8 * b : 8 * b + 8, 8 * c : 8 * c + 8] = cube.transpose(
                    1, 2, 3, 0
                )
            assert np.array_equal(frames, alone[segment["source"]])


def run_pixels(sample_clips: Path, out: Path) -> dict[str, np.ndarray]:
    """Frames by source, from a dataset of pixels."""
    sources = [sample_clips / name for name in CLIPS]
    run(sources, out, patch="2x8x8", multiple=2, pack_length=2**14, workers=1)
    return {
        segment["source"]: join_tubelets(
            pack["tokens"][tokens].numpy(),
            grid_thw=tuple(segment["grid_thw"]),
            tubelet_size=2,
            patch_size=(8, 8),
        )
        for pack in PackDataset(out)
        for segment, tokens in segments_of(pack)
    }


def test_ragged_packs_have_the_same_pixels_without_padding(both: Path) -> None:
    for padded, pack in zip(PackDataset(both), PackDataset(both, padded=False), strict=True):
        ends = dict.fromkeys(STACKED, padded["num_tokens"])
        ends |= {name: padded["num_pixel_tokens"] for name in STACKED if "pixel" in name}
        cut = {name: v[: ends[name]] if name in ends else v for name, v in padded.items()}
        assert_same(pack, cut)


def test_a_batch_stacks_the_pixels(both: Path) -> None:
    packs = [PackDataset(both)[place] for place in (0, -1)]
    batch = collate(packs)
    for name in ("tokens", "pixels", "pixel_segment_ids", "pixel_positions"):
        assert torch.equal(batch[name], torch.stack([pack[name] for pack in packs]))
    assert batch["pixel_cu_seqlens"] == [pack["pixel_cu_seqlens"] for pack in packs]


def test_drops_and_masks_leave_the_pixels_whole(both: Path) -> None:
    dataset = PackDataset(both, drop="random:0.5", mask="random:0.75")
    for pack, whole in zip(dataset, PackDataset(both), strict=True):
        assert pack["num_tokens"] < whole["num_tokens"]
        assert pack["visible"].sum() < pack["num_tokens"]
        names = [name for name in whole if "pixel" in name]
        assert len(names) == 8
        assert_same({name: pack[name] for name in names}, {name: whole[name] for name in names})


def test_pixels_are_normalized_by_the_constants_of_the_dataset(make: Make) -> None:
    dataset = PackDataset(make(codebook=300, also="pixels", normalize="imagenet"))
    tokens = dataset[0]["pixels"]
    values = tokens.numpy().reshape(len(tokens), 3, -1).astype(np.float64) / 255
    mean, std = (np.array(numbers)[:, None] for numbers in IMAGENET)
    made = dataset.normalize(tokens)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(
        made.numpy(), ((values - mean) / std).reshape(len(tokens), -1), rtol=0, atol=1e-5
    )


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --- what is no pixel is not normalized ---------------------------------------------------------


def test_latents_and_codes_are_not_normalized_and_the_message_names_what_they_need(
    make: Make, both: Path
) -> None:
    for folder, words in (
        (make(), r"not latents: to_model_space\(\)"),
        (make(codebook=200), r"not codes: take them as tokens.long\(\)"),
        (both, r"not codes: take them as tokens.long\(\)"),
    ):
        dataset = PackDataset(folder)
        with pytest.raises(ValueError, match=words):
            dataset.normalize(dataset[0]["tokens"])


def test_only_latents_have_a_model_space(both: Path, pack_dataset: PackDataset) -> None:
    for dataset, words in (
        (PackDataset(both), r"holds codes, no latents: take them as tokens.long\(\)"),
        (pack_dataset, r"holds pixels, no latents: normalize\(\)"),
    ):
        for method in (dataset.to_model_space, dataset.standardize, dataset.from_model_space):
            with pytest.raises(ValueError, match=words):
                method(dataset[0]["tokens"])


# --- standardized by what was measured ----------------------------------------------------------


@pytest.mark.parametrize("layout", ["c t p q", "t p q c"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_standardized_latents_have_mean_0_and_deviation_1_in_each_channel(
    make: Make, dtype: str, layout: str
) -> None:
    dataset = PackDataset(make(latent_dtype=dtype, layout=layout), padded=False)
    made = [dataset.standardize(pack["tokens"]) for pack in dataset]
    numbers = torch.cat(made).double().numpy()
    shape = (len(numbers), 6, 4) if layout[0] == "c" else (len(numbers), 4, 6)
    axis = 1 if layout[0] == "c" else 2
    values = np.moveaxis(numbers.reshape(shape), axis, -1).reshape(-1, 6)
    assert {part.dtype for part in made} == {torch.float32}
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-5)
    for pack, part in zip(dataset, made, strict=True):
        np.testing.assert_allclose(
            dataset.unstandardize(part), pack["tokens"].float(), rtol=1e-5, atol=1e-5
        )


# --- the page on training -----------------------------------------------------------------------


def test_the_examples_of_the_page_on_training_run(
    make: Make, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_clips: Path
) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tiny_autoencoders import save_tiny

    save_tiny("AutoencoderKL", tmp_path / "vae")
    encoder = f"diffusers:{tmp_path / 'vae'}"
    for name, posterior in (("latents", "mean"), ("distributions", "mean_logvar")):
        run([sample_clips / CLIPS[2]], tmp_path / name, encoder=encoder, posterior=posterior)
    (tmp_path / "codes").symlink_to(both)
    monkeypatch.chdir(tmp_path)
    page = TRAINING.read_text().partition("\n## Latents\n")[2]
    names: dict[str, Any] = {"PackDataset": PackDataset, "collate": collate, "torch": torch}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    shapes = []
    for block in blocks:
        exec(block, names)
        shapes.append({name: tuple(v.shape) for name, v in names.items() if hasattr(v, "shape")})
    scaled, drawn, embedded, beside = shapes
    assert len(scaled["latents"]) == 3
    assert scaled["latents"] == scaled["raw"]
    assert drawn["latents"] == (drawn["tokens"][0], drawn["tokens"][1] // 2)
    assert embedded["vectors"] == (*embedded["codes"], 64)
    assert beside["pixels"][:2] == (
        2,
        json.loads((both / "dataset.json").read_text())["pixels"]["pack_length"],
    )
    assert beside["first"][1] == beside["pixels"][2]
