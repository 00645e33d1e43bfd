"""The linear encoder: its arithmetic, its codes, its file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from einops import rearrange

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from fitted_codecs import BLOCK, DEPTH, blocks_of, fitted, video, written
from safetensors import safe_open
from safetensors.numpy import load_file, save

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError, SpacepatchError
from spacepatch.latents import load_encoder
from spacepatch.latents.encoders import CONSTANTS, MAX_LATENT, LatentEncoder
from spacepatch.latents.fitting import fit_codec
from spacepatch.latents.linear import (
    BASIS_STEP,
    CODE_STEP,
    MEAN_STEP,
    codec_of,
    cut_blocks,
    join_blocks,
    nearest_codes,
)

CLIP = video(6, 21, 35, seed=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that gives codes, in two stages."""
    pytest.importorskip("sklearn")
    return written(tmp_path_factory.mktemp("coded"), codebook=40, residual=2)


def failure(kind: type[SpacepatchError], path: Path, **options: Any) -> str:
    with pytest.raises(kind) as error:
        load_encoder(f"linear:{path}", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def whole(values: np.ndarray, step: float) -> np.ndarray:
    """`values` as Python's integers, which no sum rounds, in units of `step`."""
    units = values / step
    assert np.array_equal(units, np.rint(units))
    return units.astype(np.int64).astype(object)


# --- blocks ------------------------------------------------------------------------------------


def test_blocks_are_cut_as_the_pattern_says() -> None:
    pattern = "(t k) (h p) (w q) c -> t h w (k p q c)"
    expected = rearrange(CLIP, pattern, k=2, p=3, q=5)
    assert np.array_equal(cut_blocks(CLIP, BLOCK), expected)


@pytest.mark.parametrize("block", [(1, 1, 1), (2, 3, 5), (6, 21, 35), (3, 7, 1)])
def test_blocks_join_to_the_frames_they_were_cut_from(block: tuple[int, int, int]) -> None:
    assert np.array_equal(join_blocks(cut_blocks(CLIP, block), block), CLIP)


# --- latents -----------------------------------------------------------------------------------


def test_an_encoder_says_what_it_takes_and_gives(path: Path) -> None:
    encoder: LatentEncoder = load_encoder(f"linear:{path}")
    assert encoder.name == "linear:codec.safetensors"
    assert (encoder.kind, encoder.channels, encoder.codebook_size) == ("latents", 12, None)
    assert (str(encoder.rule), encoder.stride, encoder.multiple) == ("2k", (2, 3, 5), (3, 5))
    assert encoder.encode(CLIP).shape == (3, 7, 7, 12)
    assert encoder.encode(CLIP).dtype == np.float32
    # See `test_a_latent_knows_nothing_of_other_blocks`.
    assert encoder.is_local
    assert encoder.constants == dict.fromkeys(CONSTANTS) | {"scaling_factor": 1.0}


def test_latents_are_the_scaled_products_of_blocks_and_basis(path: Path) -> None:
    tensors = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    centred = rearrange(CLIP, "(t k) (h p) (w q) c -> t h w (k p q c)", k=2, p=3, q=5)
    expected = (centred - tensors["mean"]) @ tensors["basis"] / tensors["scale"]
    assert np.allclose(load_encoder(f"linear:{path}").encode(CLIP), expected, atol=1e-6)


def test_no_bit_of_a_coefficient_is_rounded() -> None:
    codec, _ = fitted()
    blocks = blocks_of(CLIP)
    centred = blocks.astype(np.int64).astype(object) * 2**12 - whole(codec.mean, MEAN_STEP)
    exact = centred @ whole(codec.basis, BASIS_STEP)
    found = whole(codec.transform(blocks), MEAN_STEP * BASIS_STEP)
    assert (found == exact).all()


def test_a_latent_knows_nothing_of_other_blocks(path: Path) -> None:
    encoder = load_encoder(f"linear:{path}")
    together = encoder.encode(CLIP)
    for t, h, w in np.ndindex(together.shape[:3]):
        alone = CLIP[2 * t : 2 * t + 2, 3 * h : 3 * h + 3, 5 * w : 5 * w + 5]
        assert encoder.encode(alone).tobytes() == together[t, h, w].tobytes()


def test_frames_of_any_strides_encode_alike(path: Path) -> None:
    encoder = load_encoder(f"linear:{path}")
    turned = np.asfortranarray(CLIP)
    assert np.array_equal(encoder.encode(turned), encoder.encode(CLIP))


def test_all_channels_give_back_every_pixel(tmp_path: Path) -> None:
    encoder = load_encoder(f"linear:{written(tmp_path, channels=DEPTH)}")
    assert np.array_equal(encoder.decode(encoder.encode(CLIP)), CLIP)


def test_pixels_that_a_decode_would_put_out_of_range_are_cut(path: Path) -> None:
    encoder = load_encoder(f"linear:{path}")
    bright = encoder.encode(np.full((2, 3, 5, 3), 255, np.uint8))
    assert (encoder.decode(bright * 3) >= encoder.decode(bright)).all()
    assert encoder.decode(bright * 3).max() == 255
    assert encoder.decode(bright * -3).min() == 0


def test_latents_have_unit_variance_over_what_was_learned(path: Path) -> None:
    learned = [index for index in range(3000) if index % 8 != 7]
    frames = blocks_of(video(20, 60, 75))[learned]
    latents = fitted()[0].transform(frames) / fitted()[0].scale
    assert np.allclose(latents.std(axis=0), 1, atol=1e-3)
    assert np.allclose(latents.mean(axis=0), 0, atol=1e-3)


def test_no_block_at_all_gives_a_latent_beyond_the_limit() -> None:
    # Learned from blocks that hardly differ, so that others lie thousands of deviations away.
    dull = blocks_of(video(20, 60, 75)) // 64 + 100
    codec, _ = fit_codec(dull, block=BLOCK, channels=DEPTH)
    for sign in (1, -1):
        farthest = np.where(sign * codec.basis.T > 0, 255, 0).astype(np.uint8)
        coefficients = np.diag(codec.transform(farthest))
        deviations = codec.transform(dull).std(axis=0)
        assert np.abs(coefficients / deviations).max() > MAX_LATENT
        assert np.abs(coefficients / codec.scale).max() <= MAX_LATENT


# --- codes -------------------------------------------------------------------------------------


def test_an_encoder_with_a_codebook_gives_codes(coded: Path) -> None:
    encoder = load_encoder(f"linear:{coded}")
    codes = encoder.encode(CLIP)
    assert (encoder.kind, encoder.channels, encoder.codebook_size) == ("codes", 2, 40)
    assert codes.shape == (3, 7, 7, 2)
    assert codes.dtype == np.int64
    assert 0 <= codes.min() <= codes.max() < 40


def test_codes_are_the_nearest_of_all(coded: Path) -> None:
    codec = codec_of(coded.read_bytes(), name="codec")
    assert codec.codebooks is not None
    left = whole(np.rint(codec.transform(blocks_of(CLIP)) / CODE_STEP) * CODE_STEP, CODE_STEP)
    expected = []
    for codebook in codec.codebooks:
        books = whole(codebook, CODE_STEP)
        distances = ((left[:, None] - books[None]) ** 2).sum(axis=2)
        expected.append([min(range(40), key=row.__getitem__) for row in distances])
        left = left - books[expected[-1]]
    found = load_encoder(f"linear:{coded}").encode(CLIP).reshape(-1, 2)
    assert np.array_equal(found, np.array(expected).T)


def test_of_codes_as_near_the_first_is_taken() -> None:
    codebook = np.array([[3.0, 0], [1, 0], [-1, 0], [1, 0]])
    points = np.array([[0.0, 5], [1, 1], [2, 7], [-0.5, 0]])
    assert nearest_codes(points, codebook).tolist() == [1, 1, 0, 2]


def test_decoded_codes_are_the_sum_of_their_stages(coded: Path) -> None:
    tensors = {name: value.astype(np.float64) for name, value in load_file(coded).items()}
    codes = load_encoder(f"linear:{coded}").encode(CLIP)
    books = tensors["codebooks"]
    latents = books[0][codes[..., 0]] + books[1][codes[..., 1]]
    values = np.clip(np.rint(latents @ tensors["basis"].T + tensors["mean"]), 0, 255)
    pattern = "t h w (k p q c) -> (t k) (h p) (w q) c"
    expected = rearrange(values, pattern, k=2, p=3, q=5, c=3)
    assert np.array_equal(load_encoder(f"linear:{coded}").decode(codes), expected)


def test_a_decoded_code_encodes_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    encoder = load_encoder(f"linear:{written(tmp_path, codebook=8)}")
    codes = np.arange(8).reshape(1, 2, 4, 1)
    decoded = encoder.decode(codes)
    assert decoded is not None
    assert np.array_equal(encoder.encode(decoded), codes)


def test_codes_beyond_the_codebook_are_refused(coded: Path) -> None:
    for codes in (np.full((1, 1, 1, 2), 40), np.full((1, 1, 1, 2), -1)):
        with pytest.raises(EncodeError, match=r"must be 0 \.\. 39"):
            load_encoder(f"linear:{coded}").decode(codes)


# --- what it does not take ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(5, 21, 35, 3), (6, 20, 35, 3), (6, 21, 34, 3), (6, 21, 35, 4), (0, 21, 35, 3)]
)
def test_frames_that_are_no_whole_blocks_are_refused(path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodeError) as error:
        load_encoder(f"linear:{path}").encode(np.zeros(shape, np.uint8))
    assert "\n" not in str(error.value)


def test_latents_of_other_channels_are_refused(path: Path) -> None:
    with pytest.raises(EncodeError, match="12"):
        load_encoder(f"linear:{path}").decode(np.zeros((1, 2, 2, 16), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "linear encoders run on the cpu"),
        ({"dtype": "bfloat16"}, "float32 only"),
        ({"posterior": "sample"}, "leave it at mean"),
        ({"tiles": True}, "--encode-tiles: linear:"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(
    path: Path, options: dict[str, Any], message: str
) -> None:
    assert message in failure(ConfigError, path, **options)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "none.safetensors" in failure(ConfigError, tmp_path / "none.safetensors")


# --- the file ----------------------------------------------------------------------------------


def test_a_codec_comes_back_from_its_file_as_it_was(path: Path, coded: Path) -> None:
    for file, settings in ((path, {}), (coded, {"codebook": 40, "residual": 2})):
        codec, _ = fitted(**settings)
        found = codec_of(file.read_bytes(), name="codec")
        assert found.block == codec.block
        for name in ("mean", "basis", "scale", "codebooks"):
            assert np.array_equal(getattr(found, name), getattr(codec, name)), name


def test_a_codec_has_the_same_bytes_in_every_process(path: Path) -> None:
    again = (
        "import sys; from pathlib import Path\n"
        "from spacepatch.latents.linear import codec_bytes, codec_of\n"
        "content = Path(sys.argv[1]).read_bytes()\n"
        "assert codec_bytes(codec_of(content, name='codec')) == content\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", again, str(path)], check=True)


def test_the_file_says_what_it_is_to_any_reader_of_safetensors(coded: Path) -> None:
    with safe_open(coded, framework="np") as file:
        about = json.loads(file.metadata()["spacepatch"])
    assert about == {
        "version": 1,
        "kind": "codes",
        "rule": "2k",
        "stride": [2, 3, 5],
        "channels": 2,
        "codebook_size": 40,
        "layout": "t p q c",
    }


def test_encoding_needs_neither_torch_nor_scikit_learn(coded: Path) -> None:
    code = (
        "import hashlib, sys, numpy\n"
        "from pathlib import Path\n"
        "from spacepatch.latents import load_encoder\n"
        "sha256 = hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest()\n"
        "encoder = load_encoder(f'linear:{sys.argv[1]}', expect_sha256=[sha256])\n"
        "encoder.decode(encoder.encode(numpy.zeros((2, 3, 5, 3), numpy.uint8)))\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(coded)], check=True)


def test_another_file_is_another_encoder(path: Path, coded: Path) -> None:
    one, same, other = (load_encoder(f"linear:{file}") for file in (path, path, coded))
    assert one.identity() == same.identity()
    assert one.identity() != other.identity()
    assert json.loads(json.dumps(one.identity())) == one.identity()
    (sha256,) = one.weights.values()
    assert failure(EncodeError, coded, expect_sha256=[sha256])
    assert load_encoder(f"linear:{path}", expect_sha256=[sha256]).weights == one.weights


def test_a_damaged_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:-1], b"\xff" * 100, content[:8] + b"x" * 500):
        path.write_bytes(damaged)
        message = failure(EncodeError, path)
        assert "no codec of spacepatch fit, or damaged" in message


def test_safetensors_of_another_kind_are_refused(path: Path) -> None:
    path.write_bytes(save({"conv.weight": np.zeros((2, 2), np.float32)}))
    assert "no codec of spacepatch fit" in failure(EncodeError, path)


def test_a_codec_of_a_newer_version_is_refused_by_name(path: Path) -> None:
    content = path.read_bytes().replace(b'\\"version\\": 1', b'\\"version\\": 2')
    path.write_bytes(content)
    assert "version 2" in failure(EncodeError, path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("basis", lambda value: None, "holds no basis"),
        ("basis", lambda value: value[:-1], "basis is (89, 12), must be (90, 12)"),
        ("mean", lambda value: value * np.nan, "mean holds NaN or Inf"),
        ("scale", lambda value: value * 0, "not above 0"),
        ("codebooks", lambda value: np.zeros((2, 40, 11), np.float32), "codebooks are"),
    ],
)
def test_a_file_with_wrong_tensors_is_refused(
    path: Path, name: str, change: Any, message: str
) -> None:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[name] = change(tensors.get(name))
    kept = {key: value for key, value in tensors.items() if value is not None}
    path.write_bytes(save(kept, metadata=metadata))
    assert message in failure(EncodeError, path)


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert "pip install safetensors" in failure(MissingDependencyError, path)
