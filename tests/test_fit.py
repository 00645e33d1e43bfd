"""`spacepatch fit`: the best linear codec of the user's own videos, and codes on it."""

import json
import math
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from fitted_codecs import BLOCK, DEPTH, blocks_of, fitted, video
from small_runs import run

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, MissingDependencyError
from spacepatch.latents import load_encoder
from spacepatch.latents.fitting import Moments, fit_codec, principal_axes
from spacepatch.latents.linear import codec_bytes
from spacepatch.pipeline.fitting import SampledBlocks, fit, take_blocks
from spacepatch.pipeline.whole import list_inputs, make_pool

BLOCKS = blocks_of(video(20, 60, 75))
LEARNED = BLOCKS[np.arange(len(BLOCKS)) % 8 != 7]
HELD_OUT = BLOCKS[7::8]
SMALL = ("--fps", "2", "--sample-blocks", "3000")


# --- the transform -----------------------------------------------------------------------------


def test_the_axes_are_those_of_the_singular_values() -> None:
    axes, variances = principal_axes(Moments.of(BLOCKS))
    values = BLOCKS.astype(np.float64)
    _, singular, expected = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    assert np.allclose(variances, singular**2 / len(values), rtol=1e-9)
    assert np.allclose(np.abs((axes * expected.T).sum(axis=0)), 1, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 12, 60])
def test_what_is_lost_is_the_variance_of_the_channels_left_out(channels: int) -> None:
    codec, _ = fit_codec(BLOCKS, block=BLOCK, channels=channels)
    values = LEARNED.astype(np.float64)
    restored = codec.transform(LEARNED) @ codec.basis.T + codec.mean
    lost = np.square(restored - values).sum(axis=1).mean()
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    assert lost == pytest.approx((singular[channels:] ** 2).sum() / len(values), rel=1e-5)


def test_no_other_axes_of_that_number_lose_less() -> None:
    codec, _ = fitted()
    values = LEARNED - codec.mean
    lost = np.square(values - values @ codec.basis @ codec.basis.T).sum()
    random = np.random.default_rng(3)
    for size in (1e-2, 1e-1, 1):
        near = codec.basis + random.normal(scale=size, size=codec.basis.shape)
        other, _ = np.linalg.qr(near)
        assert np.square(values - values @ other @ other.T).sum() > lost


def test_sums_are_exact_however_blocks_are_grouped() -> None:
    wide = BLOCKS[:500].astype(np.int64) - 128
    moments = Moments.of(BLOCKS[:500])
    assert np.array_equal(moments.products, wide.T @ wide)
    assert np.array_equal(moments.total, wide.sum(axis=0))
    parts = sum(
        (Moments.of(BLOCKS[i : min(i + 77, 500)]) for i in range(77, 500, 77)),
        Moments.of(BLOCKS[:77]),
    )
    assert np.array_equal(parts.covariance(), moments.covariance())


def test_the_order_of_blocks_does_not_turn_an_axis_round() -> None:
    axes, _ = principal_axes(Moments.of(BLOCKS))
    turned, _ = principal_axes(Moments.of(BLOCKS[::-1]))
    assert np.array_equal(axes, turned)
    # Blocks that are their own mirror images have axes whose largest value comes twice.
    mirrored = np.concatenate([BLOCKS, BLOCKS[:, ::-1]])
    axes, _ = principal_axes(Moments.of(mirrored))
    large = np.abs(axes) >= np.abs(axes).max(axis=0) / 2
    assert (axes[large.argmax(axis=0), np.arange(DEPTH)] > 0).all()


def test_the_report_says_the_psnr_of_blocks_that_were_held_out() -> None:
    codec, report = fitted()
    assert (report.num_blocks, report.num_held_out) == (len(LEARNED), len(HELD_OUT))
    assert sorted(report.psnr_of_channels) == [1, 2, 4, 8, 12, 16, 32, 64]
    for channels in (1, 12, 64):
        basis = fitted(channels=channels)[0].basis
        restored = (HELD_OUT - codec.mean) @ basis @ basis.T + codec.mean
        wrong = np.clip(np.rint(restored), 0, 255) - HELD_OUT
        expected = 10 * math.log10(255**2 / np.square(wrong).mean())
        assert report.psnr_of_channels[channels] == pytest.approx(expected, abs=1e-6)
    shares = list(report.variance_of_channels.values())
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_blocks_that_are_all_alike_are_no_trouble() -> None:
    codec, report = fit_codec(np.full((50, DEPTH), 77, np.uint8), block=BLOCK, channels=4)
    assert report.psnr_of_channels[4] == math.inf
    assert np.isfinite(codec.scale).all()


# --- the quantizer -----------------------------------------------------------------------------


def test_codes_are_counted_as_they_are_used() -> None:
    pytest.importorskip("sklearn")
    _, report = fitted(codebook=40)
    codec, _ = fitted(codebook=40)
    (stage,) = report.stages
    counts = Counter(codec.quantize(codec.transform(LEARNED))[:, 0].tolist())
    shares = [count / len(LEARNED) for count in counts.values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    assert (stage.used, stage.dead) == (len(counts), 40 - len(counts))
    assert stage.entropy_bits == pytest.approx(entropy)
    assert stage.perplexity == pytest.approx(2**entropy)


def test_codes_that_nothing_needs_are_dead() -> None:
    pytest.importorskip("sklearn")
    three = BLOCKS[[0, 700, 1500]].repeat(40, axis=0)
    _, report = fit_codec(three, block=BLOCK, channels=2, codebook=8)
    assert (report.stages[0].used, report.stages[0].dead) == (3, 5)


def test_the_psnr_of_codes_is_of_blocks_held_out() -> None:
    pytest.importorskip("sklearn")
    codec, report = fitted(codebook=40, residual=2)
    assert codec.codebooks is not None
    codes = codec.quantize(codec.transform(HELD_OUT))
    latents = codec.codebooks[0][codes[:, 0]] + codec.codebooks[1][codes[:, 1]]
    wrong = np.clip(np.rint(latents @ codec.basis.T + codec.mean), 0, 255) - HELD_OUT
    expected = 10 * math.log10(255**2 / np.square(wrong).mean())
    assert report.stages[1].psnr == pytest.approx(expected, abs=1e-6)
    assert report.stages[0].psnr < report.stages[1].psnr < report.psnr_of_channels[12]


def test_every_centre_is_the_mean_of_its_blocks() -> None:
    pytest.importorskip("sklearn")
    codec, _ = fitted(codebook=8)
    assert codec.codebooks is not None
    latents = codec.transform(LEARNED)
    codes = codec.quantize(latents)[:, 0]
    for code, centre in enumerate(codec.codebooks[0]):
        # k-means ends where nothing moves but by its tolerance, a part of the spread.
        moved = latents[codes == code].mean(axis=0) - centre
        assert np.linalg.norm(moved) < 0.02 * np.linalg.norm(latents.std(axis=0))


def test_the_seed_draws_where_codes_begin() -> None:
    pytest.importorskip("sklearn")
    one, again, other = (
        codec_bytes(fit_codec(BLOCKS, block=BLOCK, channels=12, codebook=40, seed=seed)[0])
        for seed in (0, 0, 1)
    )
    assert one == again != other


# --- sampling ----------------------------------------------------------------------------------


def sample(sources: list[Path], num_blocks: int, **settings: Any) -> SampledBlocks:
    config = load_config({"fps": "2", "max_tokens_per_frame": 64, "workers": 2} | settings)
    listing = list_inputs([str(source) for source in sources], config, root=None)
    with make_pool(config) as pool:
        return take_blocks(
            listing, config=config, block=(2, 16, 16), num_blocks=num_blocks, pool=pool
        )


def tokens_in(folder: Path) -> Counter[bytes]:
    """Every token of a dataset, as tar members hold them."""
    import io
    import tarfile

    found: Counter[bytes] = Counter()
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".tokens.npy"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.update(row.tobytes() for row in np.load(io.BytesIO(file.read())))
    return found


def test_sampled_blocks_are_the_tokens_of_tokenize(sample_clips: Path, tmp_path: Path) -> None:
    sources = [sample_clips]
    run(sources, tmp_path / "out", layout="t p q c", patch="2x16x16", pack_length=4096)
    tokens = tokens_in(tmp_path / "out")
    every = sample(sources, 10**9)
    assert Counter(row.tobytes() for row in every.blocks) == tokens
    some = sample(sources, 500)
    assert len(some.blocks) == pytest.approx(500, abs=20)
    assert Counter(row.tobytes() for row in some.blocks) <= tokens


def test_a_source_that_cannot_be_read_is_counted(sample_clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.mp4\n")
    found = sample([sample_clips, Path(f"@{tmp_path}/list.txt")], 500)
    assert found.lost_sources == ("broken_on_purpose.mp4", "gone.mp4")
    assert [loss.reason for loss in found.losses] == ["unreadable", "unreadable"]
    assert found.num_sources == 10


def test_damaged_frames_are_no_blocks_and_are_counted(part_damaged: list[Path]) -> None:
    every = sample(part_damaged, 10**9)
    reasons = {loss.source: loss.reason for loss in every.losses if loss.stage == "decode"}
    assert reasons["damaged_square_320x320.mp4"] == "corrupt_frames"
    assert "damaged_square_320x320.mp4" not in every.lost_sources
    some = sample(part_damaged, 500)
    assert len(some.blocks) + sum(loss.num_tokens for loss in some.losses) == pytest.approx(
        500, abs=20
    )


def test_a_sample_does_not_depend_on_workers_and_does_on_the_seed(sample_clips: Path) -> None:
    one, two, other = (
        sample([sample_clips], 300, workers=workers, seed=seed).blocks
        for workers, seed in ((1, 0), (2, 0), (2, 1))
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_frames_are_as_large_as_those_of_tokenize(sample_clips: Path) -> None:
    config = load_config({"fps": "1", "workers": 1})
    clip = sample_clips / "square_320x320.mp4"
    listing = list_inputs([str(clip)], config, root=None)
    with make_pool(config) as pool:
        found = take_blocks(listing, config=config, block=(1, 8, 8), num_blocks=10**9, pool=pool)
    # 256 tokens of 16 x 16 are 1,024 blocks of 8 x 8 a frame.
    assert len(found.blocks) % 1024 == 0


# --- the command -------------------------------------------------------------------------------


def test_fit_writes_a_codec_and_tells_how_good_it_is(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "codec.safetensors"
    done = spacepatch_cli("fit", sample_clips, "--out", out, "--codebook", "64", *SMALL)
    assert done.returncode == 3, done.stderr
    assert "lost: broken_on_purpose.mp4: unreadable" in done.stderr
    assert re.search(r"^ +16 +\d+\.\d+% +\d+\.\d+  <- chosen$", done.stdout, re.M), done.stdout
    assert re.search(r"^ +1 +\d+\.\d+ +64 ", done.stdout, re.M), done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["codec.safetensors"]
    encoder = load_encoder(f"linear:{out}")
    assert (encoder.kind, encoder.codebook_size, encoder.stride) == ("codes", 64, (4, 8, 8))


def test_fit_gives_the_same_bytes_again_and_with_other_workers(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    made = []
    for workers, cores in ((1, "1"), (2, "2"), (2, "1")):
        out = tmp_path / f"codec{len(made)}.safetensors"
        done = spacepatch_cli(
            *("fit", sample_clips, "--out", out, "--workers", str(workers), *SMALL),
            *("--codebook", "32", "--residual", "2", "--json"),
            env={"OPENBLAS_NUM_THREADS": cores, "OMP_NUM_THREADS": cores},
        )
        assert done.returncode == 3, done.stderr
        made.append((out.read_bytes(), done.stdout))
    assert made[0] == made[1] == made[2]
    document = json.loads(made[0][1])
    assert document["lost_sources"] == ["broken_on_purpose.mp4"]
    assert document["report"]["channels"] == 16
    assert [set(stage) for stage in document["report"]["stages"]] == 2 * [
        {"psnr", "used", "dead", "entropy_bits", "perplexity"}
    ]


def test_a_codec_of_odd_blocks_fits_odd_pictures(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    clip = sample_clips / "odd_size_321x179_vp9.webm"
    out = tmp_path / "codec.safetensors"
    done = spacepatch_cli(
        *("fit", clip, "--out", out, "--block", "3x7x5", "--channels", "315", *SMALL)
    )
    assert done.returncode == 0, done.stderr
    frames = video(6, 14, 15)
    encoder = load_encoder(f"linear:{out}")
    assert np.array_equal(encoder.decode(encoder.encode(frames)), frames)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--block", "4x8"], "not frames x height x width"),
        (["--block", "8x32x32"], "24,576 values"),
        (["--channels", "769"], "a block has 1 .. 768"),
        (["--residual", "2"], "stages of a codebook"),
        (["--codebook", "4096", "--sample-blocks", "2000"], "need 4096"),
        (["--sample-blocks", "17"], "need 17"),
        (["--fps", "0"], "fps"),
        (["--short-side", "100", "--crop", "50x50"], "no multiple of 8x8"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(
    spacepatch_cli: SpacepatchCli,
    sample_clips: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
) -> None:
    out = tmp_path / "codec.safetensors"
    done = spacepatch_cli("fit", sample_clips / "square_320x320.mp4", "--out", out, *flags)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_sizes_are_held_against_blocks(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('encoder = "tae:no/such"\nalso = "pixels"\nposterior = "sample"\n')
    for number, flags in enumerate(
        (
            ["--short-side", "100", "--crop", "56x56"],
            ["--preset", "vit"],
            # Of an encoder: what is fitted to are pixels all the same.
            ["--preset", "videogpt"],
            ["--config", config],
        )
    ):
        out = tmp_path / f"codec{number}.safetensors"
        done = spacepatch_cli(
            *("fit", sample_clips / "square_320x320.mp4", "--out", out, *flags),
            *("--sample-blocks", "400", "--channels", "4"),
        )
        assert done.returncode == 0, done.stderr


def test_a_codec_is_written_over_only_if_asked(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "codec.safetensors"
    out.write_bytes(b"mine")
    command = ("fit", sample_clips / "square_320x320.mp4", "--out", out, *SMALL)
    done = spacepatch_cli(*command)
    assert (done.returncode, out.read_bytes()) == (2, b"mine")
    assert "--overwrite" in done.stderr
    assert spacepatch_cli(*command, "--overwrite").returncode == 0
    assert load_encoder(f"linear:{out}").channels == 16


def test_sources_without_one_block_are_said_so(
    spacepatch_cli: SpacepatchCli, sample_clips: Path, tmp_path: Path
) -> None:
    shutil.copy(sample_clips / "broken_on_purpose.mp4", tmp_path)
    done = spacepatch_cli("fit", tmp_path, "--out", tmp_path / "codec.safetensors")
    assert done.returncode == 2
    assert "no block could be read" in done.stderr
    assert "broken_on_purpose.mp4: unreadable" in done.stderr


def test_videos_too_small_for_the_sample_are_said_so(sample_clips: Path, tmp_path: Path) -> None:
    config = load_config({"fps": "1", "max_tokens_per_frame": 4, "limit": 1, "workers": 1})
    with pytest.raises(ConfigError, match="sample more, of more or longer videos"):
        fit([str(sample_clips)], out=tmp_path / "codec.safetensors", config=config, channels=700)


@pytest.mark.parametrize(
    ("module", "package"),
    [("threadpoolctl", "threadpoolctl"), ("sklearn.cluster", "scikit-learn")],
)
def test_a_missing_package_is_named_before_anything_is_read(
    sample_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "codec.safetensors"
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        fit(["nowhere"], out=out, config=load_config({}), codebook=64)
