"""Weight files that are damaged, wrong, or could run code: one line that says what to do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import image_model, save, save_parts

from spacepatch.errors import ConfigError, EncodeError, SpacepatchError
from spacepatch.latents import LatentEncoder, load_encoder

FRAMES = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_parts(tmp_path / "tiny", *image_model(4))


@pytest.fixture
def encoder_file(tiny: Path) -> Path:
    return tiny / "encoder.safetensors"


def message_of(where: Path, kind: type[SpacepatchError], **settings) -> str:
    """What loading `where` says; one line."""
    with pytest.raises(kind) as caught:
        load_encoder(f"tae:{where}", **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sha256s(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def test_the_right_weights_are_loaded_in_any_order_of_their_sha256(tiny: Path) -> None:
    for expected in (sha256s(tiny), [text.upper() for text in sha256s(tiny)[::-1]]):
        assert isinstance(load_encoder(f"tae:{tiny}", expect_sha256=expected).name, str)


@pytest.mark.parametrize("name", ["encoder.safetensors", "decoder.safetensors"])
def test_a_flipped_byte_of_a_weight_is_refused_where_the_sha256_is_known(tiny, name) -> None:
    expected = sha256s(tiny)
    content = bytearray((tiny / name).read_bytes())
    # The lowest bits of a float32: no number looks wrong.
    content[-4] ^= 1
    (tiny / name).write_bytes(content)
    load_encoder(f"tae:{tiny}")
    message = message_of(tiny, EncodeError, expect_sha256=expected)
    assert f"{tiny / name}: its sha256 is {hashlib.sha256(content).hexdigest()}" in message
    assert "download it again" in message


def test_an_expected_file_that_is_not_there_is_missed(tiny: Path) -> None:
    expected = [*sha256s(tiny), "ab" * 32]
    assert f"names {'ab' * 32}, which is of none" in message_of(
        tiny, EncodeError, expect_sha256=expected
    )


@pytest.mark.parametrize("text", ["", "12ab", "g" * 64])
def test_what_is_no_sha256_is_refused(tiny: Path, text: str) -> None:
    assert "64 hex digits" in message_of(tiny, ConfigError, expect_sha256=[text])


def test_a_missing_key_is_named(encoder_file: Path) -> None:
    weights = image_model(4)[0].state_dict()
    del weights["7.conv.2.bias"]
    save(weights, encoder_file)
    message = message_of(encoder_file.parent, EncodeError)
    assert f"{encoder_file}: in the encoder, 7.conv.2.bias is missing" in message


def test_a_missing_layer_is_named(encoder_file: Path) -> None:
    save({"0.weight": torch.zeros(8, 3, 3, 3), "0.bias": torch.zeros(8)}, encoder_file)
    assert "1.conv.0.weight is missing" in message_of(encoder_file.parent, EncodeError)


@pytest.mark.parametrize("key", ["3.extra", "15.weight", "02.weight"])
def test_a_key_too_many_is_named(encoder_file: Path, key: str) -> None:
    save({**image_model(4)[0].state_dict(), key: torch.zeros(1)}, encoder_file)
    assert f"{key} is of no layer" in message_of(encoder_file.parent, EncodeError)


def test_a_shape_that_does_not_follow_is_named(encoder_file: Path) -> None:
    weights = {**image_model(4)[0].state_dict(), "6.weight": torch.zeros(8, 9, 3, 3)}
    save(weights, encoder_file)
    message = message_of(encoder_file.parent, EncodeError)
    assert "6.weight is (8, 9, 3, 3), must be (8, 8, 3, 3)" in message


def test_a_number_in_the_place_of_a_weight_is_no_crash(encoder_file: Path) -> None:
    for shape in ((), (0,), (8, 3), (0, 3, 3, 3)):
        save({**image_model(4)[0].state_dict(), "0.weight": torch.zeros(shape)}, encoder_file)
        assert "0.weight is (" in message_of(encoder_file.parent, EncodeError)


def test_parts_of_two_models_are_refused(tiny: Path) -> None:
    save(image_model(16)[1].state_dict(), tiny / "decoder.safetensors")
    message = message_of(tiny, EncodeError)
    assert "in its decoder, 1.weight is (8, 16, 3, 3), must be (8, 4, 3, 3)" in message


@pytest.mark.parametrize("key", ["model.layers.0.weight", "vae_scale", "encoder.conv_in.weight"])
def test_weights_of_something_else_are_refused(tmp_path: Path, key: str) -> None:
    path = save({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert f"{key} is no key of a tiny autoencoder" in message_of(path, EncodeError)


def test_a_pooled_branch_that_cannot_be_parted_in_groups_is_refused(encoder_file: Path) -> None:
    weights = image_model(4, pooled=True)[0].state_dict()
    save({**weights, "12.pool.0.weight": torch.zeros(30, 8, 1, 1)}, encoder_file)
    message = message_of(encoder_file.parent, EncodeError)
    assert "12.pool.0.weight is (30, 8, 1, 1), must be (28, 8, 1, 1)" in message


def test_a_decoder_alone_is_refused(tiny: Path) -> None:
    message = message_of(tiny / "decoder.safetensors", EncodeError)
    assert "holds a decoder only; give the encoder" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(encoder_file: Path, value: float) -> None:
    weights = image_model(4)[0].state_dict()
    weights["4.conv.0.weight"][1, 2, 0, 0] = value
    save(weights, encoder_file)
    message = message_of(encoder_file.parent, EncodeError)
    assert "4.conv.0.weight holds NaN or Inf: damaged; download it again" in message


def test_a_torn_file_is_refused_at_any_length(encoder_file: Path) -> None:
    content = encoder_file.read_bytes()
    for length in (0, 5, 8, 1000, len(content) // 2, len(content) - 1):
        encoder_file.write_bytes(content[:length])
        message = message_of(encoder_file.parent, EncodeError)
        assert f"{encoder_file}: is no whole safetensors file" in message


def test_a_pointer_of_git_lfs_is_called_that(encoder_file: Path) -> None:
    encoder_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "run git lfs pull" in message_of(encoder_file.parent, EncodeError)


def test_a_config_that_is_no_json_is_refused(tiny: Path) -> None:
    for text in ("{", "[1]"):
        (tiny / "config.json").write_text(text)
        assert "config.json: " in message_of(tiny, EncodeError)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    assert "holds no *.safetensors" in message_of(tmp_path, ConfigError)


def test_a_folder_of_several_models_asks_for_one(tiny: Path) -> None:
    save(image_model(4)[0].state_dict(), tiny / "other_encoder.safetensors")
    message = message_of(tiny, ConfigError)
    assert "holds 3 weight files" in message
    assert f"name the one to read, as in tae:{tiny / 'decoder.safetensors'}" in message


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(tiny: Path) -> LatentEncoder:
    """`tiny` as the authors ship it: pickles. Returns what it was."""
    plain = load_encoder(f"tae:{tiny}")
    for part, module in zip(("encoder", "decoder"), image_model(4), strict=True):
        torch.save(module.float().state_dict(), tiny / f"{part}.pth")
        (tiny / f"{part}.safetensors").unlink()
    return plain


def test_pickles_are_read_only_where_allowed(tiny: Path) -> None:
    plain = pickled(tiny)
    for where in (tiny, tiny / "encoder.pth"):
        message = message_of(where, ConfigError)
        assert "convert" in message
        assert "--allow-pickle-weights" in message
        encoder = load_encoder(f"tae:{where}", allow_pickle=True)
        assert np.array_equal(encoder.encode(FRAMES), plain.encode(FRAMES))
        assert encoder.decode(plain.encode(FRAMES)) is not None


def test_a_pickle_by_the_name_of_safetensors_is_still_a_pickle(tiny: Path) -> None:
    pickled(tiny)
    (tiny / "encoder.pth").rename(tiny / "encoder.safetensors")
    assert "is a pickle, which can run code" in message_of(tiny, ConfigError)


def test_code_in_a_pickle_does_not_run(tiny: Path, tmp_path: Path) -> None:
    pickled(tiny)
    torch.save({"0.weight": Trap(tmp_path / "sprung")}, tiny / "encoder.pth")
    message = message_of(tiny, EncodeError, allow_pickle=True)
    assert "cannot be read as weights only" in message
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_of_other_things_is_refused(tiny: Path) -> None:
    pickled(tiny)
    for thing in ([1, 2], {"epoch": 3}):
        torch.save(thing, tiny / "encoder.pth")
        assert "is no state dict" in message_of(tiny, EncodeError, allow_pickle=True)


def test_without_safetensors_the_message_says_what_to_install(tiny: Path) -> None:
    program = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from spacepatch.errors import MissingDependencyError\n"
        "from spacepatch.latents import load_encoder\n"
        "try: load_encoder('tae:' + sys.argv[1])\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tiny)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "safetensors is not installed: pip install safetensors\n"
