"""Folders, configs and weight files of diffusers: what is refused, and what the line says."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_autoencoders import save_tiny

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError

pytest.importorskip("diffusers", reason="diffusers is not installed")

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Wan of its own, to be spoiled."""
    save_tiny("AutoencoderKLWan", tmp_path / "wan")
    return tmp_path / "wan"


def load(folder: Path | str, **options: Any) -> Any:
    from spacepatch.latents import load_encoder

    return load_encoder(f"diffusers:{folder}", **options)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / WEIGHTS)
    return tensors


def save_tensors(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def test_name_and_identity_hold_no_path_and_no_file_name(folder: Path) -> None:
    encoder = load(folder)
    assert encoder.name == "diffusers:wan"
    identity = json.dumps(encoder.identity())
    assert str(folder) not in identity
    assert WEIGHTS not in identity
    assert '"tiles": false' in identity


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--encoder diffusers:.*/none: no such folder$"):
        load(tmp_path / "none")


def test_the_id_of_a_hub_is_not_downloaded_unasked() -> None:
    with pytest.raises(ConfigError, match=r"^--encoder diffusers:owner/model/vae: no such "):
        load("owner/model/vae")
    with pytest.raises(ConfigError, match="--allow-download"):
        load("owner/model")


def test_a_hub_that_does_not_answer_is_one_line() -> None:
    script = (
        "from spacepatch.errors import ConfigError\n"
        "from spacepatch.latents import load_encoder\n"
        "try:\n"
        "    load_encoder('diffusers:owner/model', allow_download=True)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": os.devnull, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **nowhere},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    assert "the hub does not give it" in done.stdout
    assert done.stdout.rstrip().endswith("download it yourself and give its folder")
    assert done.stdout.count("\n") == 1


def test_a_pipeline_is_not_its_autoencoder(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "vae")
    with pytest.raises(ConfigError, match=r"holds no config.json; did you mean diffusers:.*/vae\?"):
        load(tmp_path)


def test_an_unknown_class_is_named_with_the_nearest(folder: Path) -> None:
    rewrite(folder, lambda config: config.update(_class_name="AutoencoderKLWann"))
    with pytest.raises(ConfigError, match=r"_class_name is 'AutoencoderKLWann'.*AutoencoderKLWan$"):
        load(folder)


def test_a_config_that_builds_nothing_is_refused(folder: Path) -> None:
    rewrite(folder, lambda config: config.update(dim_mult="many"))
    with pytest.raises(EncodeError, match="AutoencoderKLWan cannot be built of it"):
        load(folder)


def test_damaged_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"_class_name": "Autoenc')
    with pytest.raises(EncodeError, match=r"config.json: cannot be read \(JSONDecodeError\)"):
        load(folder)


def test_a_stride_that_the_models_own_encode_would_drop_frames_with_is_refused(
    tmp_path: Path,
) -> None:
    save_tiny("AutoencoderKLWan", tmp_path, temperal_downsample=[False, False, True])
    with pytest.raises(ConfigError, match="makes 1 latent of 2 frames, must be of 4"):
        load(tmp_path)


def test_a_model_of_other_pixels_is_known_before_any_video(tmp_path: Path) -> None:
    save_tiny("AutoencoderKL", tmp_path, in_channels=4)
    with pytest.raises(EncodeError, match="takes no clip of RGB frames"):
        load(tmp_path)


def test_a_missing_package_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^diffusers is not installed: pip install 'spacepatch\[diffusers\]'$",
    ):
        load(folder)


def test_an_old_diffusers_without_the_class_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    monkeypatch.setattr(diffusers, "AutoencoderKLWan", None)
    with pytest.raises(MissingDependencyError, match=r"has no AutoencoderKLWan: pip install -U"):
        load(folder)


def test_sha256_of_the_weights_is_recorded_and_checked(folder: Path) -> None:
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert load(folder, expect_sha256=[sha256]).weights == {WEIGHTS: sha256}
    with pytest.raises(EncodeError, match=f"its sha256 is {sha256}, which --expect-sha256"):
        load(folder, expect_sha256=["0" * 64])


def test_one_flipped_byte_is_refused(folder: Path) -> None:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    sha256 = hashlib.sha256(content).hexdigest()
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(EncodeError, match="download it again"):
        load(folder, expect_sha256=[sha256])


def test_a_tensor_that_is_missing_or_too_many_is_named(folder: Path) -> None:
    tensors = tensors_of(folder)
    weight = tensors.pop("encoder.conv_in.weight")
    save_tensors(folder / WEIGHTS, tensors)
    with pytest.raises(EncodeError, match=r"encoder.conv_in.weight is missing$"):
        load(folder)
    save_tensors(folder / WEIGHTS, {**tensors, "encoder.conv_inn.weight": weight})
    with pytest.raises(EncodeError, match=r"encoder.conv_in.weight is missing \(and 1 more\)$"):
        load(folder)
    save_tensors(folder / WEIGHTS, {**tensors, "encoder.conv_in.weight": weight[:-1].clone()})
    with pytest.raises(EncodeError, match=r"conv_in.weight is \(3, 3, 3, 3, 3\), must be"):
        load(folder)


def test_pickles_are_refused_until_allowed_and_then_give_the_same_latents(folder: Path) -> None:
    import torch

    expected = load(folder).encode(FRAMES)
    torch.save(tensors_of(folder), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match="--allow-pickle-weights"):
        load(folder)
    assert np.array_equal(load(folder, allow_pickle=True).encode(FRAMES), expected)


class Surprise:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("surprise"),))


def test_a_pickle_that_runs_code_does_not_even_when_allowed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Surprise()}, folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(EncodeError, match="cannot be read as weights only"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "surprise").exists()


def test_weights_in_parts_are_read_by_their_index(folder: Path) -> None:
    expected = load(folder).encode(FRAMES)
    tensors = tensors_of(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {}
    for part, some in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-{part + 1:05}-of-00002.safetensors"
        save_tensors(folder / file, {name: tensors[name] for name in some})
        places |= dict.fromkeys(some, file)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    encoder = load(folder)
    assert np.array_equal(encoder.encode(FRAMES), expected)
    assert sorted(encoder.weights) == sorted(set(places.values()))
    index.write_text(json.dumps({"weight_map": {**places, "more": "../elsewhere.safetensors"}}))
    with pytest.raises(EncodeError, match=r"lists \.\./elsewhere.safetensors, which is not beside"):
        load(folder)


def test_several_weight_files_without_the_usual_one_are_not_guessed_at(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"holds no \*.safetensors"):
        load(folder)
    for name in ("one.safetensors", "two.safetensors"):
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match="holds 2 weight files"):
        load(folder)


def test_attention_as_it_was_named_until_2023_is_read(tmp_path: Path) -> None:
    save_tiny("AutoencoderKL", tmp_path)
    expected = load(tmp_path).encode(FRAMES)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = tensors_of(tmp_path)
    for new, name in old.items():
        for key in [key for key in tensors if f".{new}." in key]:
            tensors[key.replace(f".{new}.", f".{name}.")] = tensors.pop(key)
    save_tensors(tmp_path / WEIGHTS, tensors)
    assert sum(".proj_attn." in key for key in tensors) == 4
    assert np.array_equal(load(tmp_path).encode(FRAMES), expected)
