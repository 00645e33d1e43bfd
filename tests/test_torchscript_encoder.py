"""TorchScript encoders, as Cosmos-Tokenizer ships them, with a TOML that says what they do.

The scripts are means over blocks, which numpy finds too.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spacepatch.errors import ConfigError, EncodeError

VIDEO = {"kind": "latents", "frames": "1+4k", "stride": [4, 8, 8], "channels": 3}
CODES = {"kind": "codes", "frames": "1+4k", "stride": [4, 8, 8], "codebook_size": 256}
IMAGE = {"kind": "latents", "frames": "any", "stride": [1, 8, 8], "channels": 3, "input": "image"}

MEANS = """
def forward(self, x):
    y = x.reshape(1, 3, x.size(2), x.size(3) // 8, 8, x.size(4) // 8, 8).mean([4, 6])
    later = y[:, :, 1:].reshape(1, 3, (y.size(2) - 1) // 4, 4, y.size(3), y.size(4)).mean(3)
    return torch.cat([y[:, :, :1], later], 2), torch.zeros(1)
"""
REPEATS = """
def forward(self, z):
    later = z[:, :, 1:].repeat_interleave(4, 2)
    return torch.cat([z[:, :, :1], later], 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
"""
GREENS = MEANS.replace(
    "return torch.cat([y[:, :, :1], later], 2)",
    "return ((torch.cat([y[:, 1, :1], later[:, 1]], 1) + 1) * 127.5).round().long()",
)
GREYS = """
def forward(self, codes):
    z = codes.to(torch.float32)[:, None].repeat_interleave(3, 1) / 127.5 - 1
    later = z[:, :, 1:].repeat_interleave(4, 2)
    return torch.cat([z[:, :, :1], later], 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
"""
IMAGE_MEANS = """
def forward(self, x):
    return x.reshape(x.size(0), 3, x.size(2) // 8, 8, x.size(3) // 8, 8).mean([3, 5])
"""

FRAMES = np.random.default_rng(0).integers(0, 256, (13, 16, 24, 3), dtype=np.uint8)

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Save scripts and their TOML in a folder."""

    def make(settings: dict[str, Any], encoder: str, decoder: str | None = None) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        save_script(folder / "encoder.jit", encoder)
        if decoder is not None:
            save_script(folder / "decoder.jit", decoder)
            settings = {**settings, "decoder": "decoder.jit"}
        write_toml(folder, settings)
        return folder

    return make


def save_script(path: Path, source: str) -> None:
    """Save a module with this `forward`."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # A class of its own: one class has one `forward`.
        module: Any = type("Script", (torch.jit.ScriptModule,), {})()
        module.define(source)
        torch.jit.save(module, path)


def write_toml(folder: Path, settings: dict[str, Any]) -> None:
    # A list or a string of JSON is one of TOML too.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (folder / "encoder.toml").write_text("".join(lines))


def load(where: Path, *, trust: bool = True, **options: Any) -> Any:
    from spacepatch.latents import load_encoder

    return load_encoder(f"torchscript:{where}", trust=trust, **options)


def block_means(frames: np.ndarray) -> np.ndarray:
    """``(T', H/8, W/8, 3)`` float64 of -1 to 1: of the first frame, then of 4 at a time."""
    num, height, width, _ = frames.shape
    x = frames.astype(np.float64) / 255 * 2 - 1
    y = x.reshape(num, height // 8, 8, width // 8, 8, 3).mean((2, 4))
    later = y[1:].reshape((num - 1) // 4, 4, *y.shape[1:]).mean(1)
    return np.concatenate([y[:1], later])


def test_latents_are_the_first_that_comes_out(make: Make) -> None:
    encoder = load(make(VIDEO, MEANS))
    made = encoder.encode(FRAMES)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, block_means(FRAMES), rtol=0, atol=1e-6)
    assert (str(encoder.rule), encoder.stride, encoder.multiple) == ("1+4k", (4, 8, 8), (8, 8))
    assert (encoder.kind, encoder.channels, encoder.codebook_size) == ("latents", 3, None)
    assert encoder.decode(made) is None


def test_every_number_of_frames_gives_the_latents_of_the_rule_or_is_refused(make: Make) -> None:
    encoder = load(make(VIDEO, MEANS))
    for num_frames in range(1, 41):
        frames = FRAMES[np.arange(num_frames) % 13]
        if num_frames % 4 == 1:
            assert len(encoder.encode(frames)) == 1 + (num_frames - 1) // 4
        else:
            with pytest.raises(
                EncodeError, match=f"{num_frames} frames do not fit the rule 1\\+4k"
            ):
                encoder.encode(frames)


def test_frames_of_other_sides_are_refused_not_cropped(make: Make) -> None:
    encoder = load(make({**VIDEO, "multiple": [16, 8]}, MEANS))
    assert encoder.encode(FRAMES).shape == (4, 2, 3, 3)
    with pytest.raises(EncodeError, match="H and W must be multiples of 16 and 8"):
        encoder.encode(FRAMES[:, :8])


def test_a_decoder_gives_frames_of_the_clip(make: Make) -> None:
    encoder = load(make(VIDEO, MEANS, REPEATS))
    levels = np.repeat(np.repeat((block_means(FRAMES) + 1) * 127.5, 8, 1), 8, 2)
    expected = np.concatenate([levels[:1], np.repeat(levels[1:], 4, 0)])
    made = encoder.decode(encoder.encode(FRAMES))
    assert made.shape == FRAMES.shape
    assert made.dtype == np.uint8
    assert np.abs(made - expected).max() < 0.51


def test_codes_are_whole_numbers_and_come_back(make: Make) -> None:
    encoder = load(make(CODES, GREENS, GREYS))
    expected = np.round((block_means(FRAMES)[..., 1:2] + 1) * 127.5)
    made = encoder.encode(FRAMES)
    assert made.dtype == np.int64
    assert made.shape == (4, 2, 3, 1)
    assert np.abs(made - expected).max() <= 1
    assert (encoder.kind, encoder.channels, encoder.codebook_size) == ("codes", 1, 256)
    back = encoder.decode(made)
    assert back.shape == FRAMES.shape
    assert np.array_equal(back[0, ::8, ::8, 0], made[0, ..., 0])


def test_codes_as_floats_are_taken_while_they_are_whole(make: Make) -> None:
    expected = load(make(CODES, GREENS)).encode(FRAMES)
    assert np.array_equal(
        load(make(CODES, GREENS.replace("long", "float"))).encode(FRAMES), expected
    )
    with pytest.raises(EncodeError, match="codes are no whole numbers"):
        load(make(CODES, GREENS.replace("round().long()", "float() + 0.25")))


@pytest.mark.parametrize(("size", "shift"), [(100, 0), (256, -300)])
def test_codes_beyond_the_codebook_are_refused(make: Make, size: int, shift: int) -> None:
    source = GREENS.replace("long()", f"long() + {shift}")
    folder = make({**CODES, "codebook_size": size}, source)
    with pytest.raises(EncodeError, match=rf"must be 0 .. codebook_size - 1 = {size - 1}"):
        load(folder).encode(np.full((5, 16, 16, 3), 200, np.uint8))


def test_images_go_in_by_batches_of_one_size_to_the_bit_alike(make: Make) -> None:
    means = load(make(IMAGE, IMAGE_MEANS), batch=4)
    for num_frames in (1, 3, 4, 5, 13):
        frames = FRAMES[:num_frames]
        expected = np.concatenate([block_means(frame[None]) for frame in frames])
        np.testing.assert_allclose(means.encode(frames), expected, rtol=0, atol=1e-6)
    sizes = load(make(IMAGE, IMAGE_MEANS.replace("return x", "return 0 * x.size(0) + x")), batch=4)
    assert np.array_equal(sizes.encode(FRAMES)[:3], sizes.encode(FRAMES[:3]))
    # What a script sees of the batch: always four frames.
    counts = IMAGE_MEANS.rstrip() + " * 0 + x.size(0)\n"
    assert (load(make(IMAGE, counts), batch=4).encode(FRAMES) == 4).all()


def test_latents_of_images_are_of_their_own_frames_and_those_of_video_may_not_be(
    make: Make,
) -> None:
    images = load(make(IMAGE, IMAGE_MEANS), batch=4)
    before = images.encode(FRAMES)
    for place in range(len(FRAMES)):
        other = FRAMES.copy()
        other[place] = 255 - other[place]
        same = (images.encode(other) == before).all((1, 2, 3))
        assert np.flatnonzero(~same).tolist() == [place]
    assert images.is_local
    assert not load(make(VIDEO, MEANS)).is_local


def test_pixels_are_scaled_as_the_toml_says(make: Make) -> None:
    encoder = load(make({**VIDEO, "pixels": [0, 1]}, MEANS, REPEATS))
    white = np.full((5, 8, 8, 3), 255, np.uint8)
    assert (encoder.encode(white) == 1).all()
    assert (encoder.encode(0 * white) == 0).all()
    assert np.array_equal(encoder.decode(encoder.encode(white)), white)


def test_it_computes_in_the_dtype_that_is_asked_for(make: Make) -> None:
    folder = make(VIDEO, MEANS)
    half, exact = load(folder, dtype="bfloat16"), load(folder)
    made = half.encode(FRAMES)
    assert made.dtype == np.float32
    assert 0 < np.abs(made - exact.encode(FRAMES)).max() < 0.02
    assert half.identity() == exact.identity() | {"dtype": "bfloat16"}


def test_code_of_an_archive_does_not_run_without_trust(make: Make) -> None:
    folder = make(VIDEO, MEANS)
    with pytest.raises(ConfigError, match=r"can run any code: .* give --trust-encoder$"):
        load(folder, trust=False)


def test_a_script_that_is_not_what_its_toml_says_is_known_before_any_video(make: Make) -> None:
    with pytest.raises(
        EncodeError, match=r"became latents \(2, 2, 2, 3\), must be \(2, 2, 2, 16\)"
    ):
        load(make({**VIDEO, "channels": 16}, MEANS))
    with pytest.raises(EncodeError, match=r"takes no clip of 4 frames of 16 x 16 in float32"):
        load(make({**VIDEO, "frames": "4k"}, MEANS))
    with pytest.raises(EncodeError, match=r"takes no clip of 1 frames of 16 x 16 in float32"):
        load(make(IMAGE, MEANS))


def test_weights_are_hashed_and_checked_before_their_code_runs(make: Make) -> None:
    folder = make(VIDEO, MEANS, REPEATS)
    names = ("encoder.jit", "decoder.jit")
    weights = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert load(folder, expect_sha256=list(weights.values())).weights == weights
    with pytest.raises(EncodeError, match="which --expect-sha256 does not name"):
        load(folder, expect_sha256=["0" * 64])


def test_a_torn_archive_is_refused(make: Make) -> None:
    folder = make(VIDEO, MEANS)
    path = folder / "encoder.jit"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EncodeError, match=r"encoder.jit: is no whole TorchScript archive"):
        load(folder)


def test_missing_files_are_named(make: Make, tmp_path: Path) -> None:
    folder = make(VIDEO, MEANS)
    (folder / "encoder.toml").unlink()
    with pytest.raises(ConfigError, match=r"encoder.toml: missing; write there"):
        load(folder)
    write_toml(folder, {**VIDEO, "decoder": "decoder.jit"})
    with pytest.raises(EncodeError, match=r"decoder.jit: cannot be read"):
        load(folder)
    (folder / "encoder.jit").unlink()
    with pytest.raises(ConfigError, match=r"holds no encoder.jit$"):
        load(folder)
    with pytest.raises(ConfigError, match="no such folder or file"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frams": "1+4k"}, "no such key frams; did you mean frames?"),
        ({"kind": None}, "kind is missing"),
        ({"kind": "pixels"}, "kind is 'pixels': Input should be 'latents' or 'codes'"),
        ({"frames": "1+4"}, "'1+4' is no frame rule, such as 1+4k, 4k or any"),
        ({"frames": "1+8k"}, "stride begins with 4, but frames is '1+8k'"),
        ({"stride": [4, 8]}, "stride.2 is missing"),
        ({"stride": [4, 8, 0]}, "stride.2 is 0: Input should be greater than or equal to 1"),
        ({"multiple": [8, 12]}, "multiple (8, 12) is none of stride (8, 8)"),
        ({"channels": None}, "kind 'latents' needs channels, and no codebook_size"),
        ({"codebook_size": 9}, "kind 'latents' needs channels, and no codebook_size"),
        ({"input": "image"}, "frames is '1+4k', must be 'any' with input 'image'"),
        ({"pixels": [1, 1]}, "pixels are both 1.0"),
        ({"decoder": "../d.jit"}, "decoder is '../d.jit', must be the name of a file beside it"),
    ],
)
def test_a_wrong_key_of_the_toml_is_named(make: Make, change: dict[str, Any], message: str) -> None:
    folder = make(VIDEO, MEANS)
    write_toml(folder, {key: v for key, v in {**VIDEO, **change}.items() if v is not None})
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert str(caught.value) == f"{folder / 'encoder.toml'}: {message}"


def test_settings_that_a_script_does_not_have_are_refused(make: Make) -> None:
    folder = make(VIDEO, MEANS)
    with pytest.raises(ConfigError, match="--posterior sample: a script has no posterior"):
        load(folder, posterior="sample")
    with pytest.raises(ConfigError, match=r"--encode-batch 2: .* encodes a clip at once"):
        load(folder, batch=2)
    with pytest.raises(ConfigError, match="--encode-tiles: a script has no tiles"):
        load(folder, tiles=True)


def test_constants_are_those_of_the_toml_and_change_no_latent(make: Make) -> None:
    plain = load(make(VIDEO, MEANS))
    constants = {"latents_mean": [0.1, 0.2, 0.3], "latents_std": [1.0, 2.0, 3.0]}
    scaled = load(make({**VIDEO, **constants, "scaling_factor": 0.5}, MEANS))
    assert scaled.constants == {**constants, "scaling_factor": 0.5, "shift_factor": None}
    assert set(plain.constants.values()) == {None}
    assert scaled.identity()["settings"] == plain.identity()["settings"]
    assert np.array_equal(scaled.encode(FRAMES), plain.encode(FRAMES))


def test_name_and_identity_hold_no_path(make: Make) -> None:
    folder = make(VIDEO, MEANS)
    encoder = load(folder / "encoder.jit")
    assert encoder.name == "torchscript:model"
    assert str(folder) not in json.dumps(encoder.identity())
