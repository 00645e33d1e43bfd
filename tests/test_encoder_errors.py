"""What a user is told whose encoder cannot be used: one line, and what to do."""

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from encoded_runs import codec

FAST = ["--fps", "1", "--short-side", "64"]


@pytest.fixture(scope="module")
def clip(sample_clips: Path) -> Path:
    return sample_clips / "square_320x320.mp4"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript encoder of 4 frames and 8 x 8 pixels a latent, with its TOML."""
    import torch

    class Pool(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool3d(x, (4, 8, 8))

    folder = tmp_path_factory.mktemp("scripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Pool(), torch.zeros(1, 3, 4, 16, 16)).save(folder / "encoder.jit")
    (folder / "encoder.toml").write_text(
        'kind = "latents"\nframes = "4k"\nstride = [4, 8, 8]\nchannels = 3\n'
    )
    return folder


def refusal(cli: Any, *args: str | Path, code: int) -> str:
    done = cli("tokenize", *args, *FAST)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_names_no_encoder_is_answered_with_those_there_are(
    spacepatch_cli: Any, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = refusal(spacepatch_cli, clip, "--out", out, "--encoder", "difusers:x", code=2)
    assert "did you mean diffusers?" in line
    line = refusal(spacepatch_cli, clip, "--out", out, "--encoder", f"tae:{tmp_path}/no", code=2)
    assert f"tae:{tmp_path}/no" in line and "no such folder or file" in line
    line = refusal(
        spacepatch_cli, clip, "--out", out, "--encoder", codec(tmp_path), "--kind", "codes", code=2
    )
    assert "makes latents, not codes" in line
    assert not list(tmp_path.glob("out/*"))


def test_a_damaged_or_other_weight_file_is_refused_by_its_hash(
    spacepatch_cli: Any, clip: Path, tmp_path: Path
) -> None:
    spec, out = codec(tmp_path), tmp_path / "out"
    path = Path(spec.removeprefix("linear:"))
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    options = [clip, "--out", out, "--encoder", spec, "--expect-sha256", sha256]
    assert spacepatch_cli("tokenize", *options, *FAST).returncode == 0
    document = json.loads((out / "dataset.json").read_text())
    assert document["encoder"]["weights"] == {path.name: sha256}
    # One bit of a weight.
    flipped = bytearray(content)
    flipped[-1000] ^= 1
    path.write_bytes(flipped)
    line = refusal(spacepatch_cli, *options, code=1)
    assert path.name in line and hashlib.sha256(flipped).hexdigest() in line
    # Without a hash to hold it against, the plan remembers what it was made with.
    line = refusal(spacepatch_cli, clip, "--out", out, "--encoder", spec, code=1)
    assert "encoder" in line and "--overwrite" in line
    path.write_bytes(content[:-100])
    line = refusal(spacepatch_cli, clip, "--out", out, "--encoder", spec, code=1)
    assert str(path) in line and "damaged" in line


def test_another_name_of_the_same_weights_is_the_same_encoder(
    spacepatch_cli: Any, clip: Path, tmp_path: Path
) -> None:
    out, spec = tmp_path / "out", codec(tmp_path)
    assert spacepatch_cli("tokenize", clip, "--out", out, "--encoder", spec, *FAST).returncode == 0
    renamed = tmp_path / "renamed.safetensors"
    Path(spec.removeprefix("linear:")).rename(renamed)
    again = ["tokenize", clip, "--out", out, "--encoder", f"linear:{renamed}", *FAST]
    done = spacepatch_cli(*again)
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stderr


def test_a_script_runs_only_where_it_is_trusted_and_keeps_its_word(
    spacepatch_cli: Any, clip: Path, scripts: Path, tmp_path: Path
) -> None:
    options = [clip, "--out", tmp_path / "out", "--encoder", f"torchscript:{scripts}"]
    assert "--trust-encoder" in refusal(spacepatch_cli, *options, code=2)
    toml = scripts / "encoder.toml"
    right = toml.read_text()
    for wrong, words in (('"1+4k"', "does not|must be"), ('"4 frames"', "frame rule")):
        toml.write_text(right.replace('"4k"', wrong))
        line = refusal(spacepatch_cli, *options, "--trust-encoder", code=1 if "+" in wrong else 2)
        assert any(word in line for word in words.split("|")), line
    toml.write_text(right)
    done = spacepatch_cli("tokenize", *options, "--trust-encoder", *FAST)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    clip: Path, tmp_path: Path
) -> None:
    from tiny_autoencoders import save_tiny

    save_tiny("AutoencoderKL", tmp_path / "vae")
    for missing, spec in (
        ("diffusers", f"diffusers:{tmp_path / 'vae'}"),
        ("safetensors", codec(tmp_path)),
        ("torch", f"tae:{tmp_path / 'vae'}"),
    ):
        # Workers start as the parent did: they run this file too.
        script = tmp_path / f"without_{missing}.py"
        script.write_text(
            f"import sys; sys.modules[{missing!r}] = None\n"
            "from spacepatch.cli import main\n"
            "if __name__ == '__main__': main()\n"
        )
        command = [sys.executable, script, "tokenize", clip, "--encoder", spec, *FAST]
        done = subprocess.run(
            [*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert missing in line and "pip install" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--crop", "60x60"], ["crop 60x60", "16x16"]),
        (["--kind", "latents", "--patch", "1x1x1", "--crop", "60x60"], ["crop 60x60", "8x8"]),
        (["--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["--posterior", "sample"], ["posterior", "mean"]),
        (["--encode-tiles"], ["encode-tiles"]),
        (["--codes", "--latent-dtype", "float32"], ["latent_dtype", "codes"]),
        (
            ["--layout", "c p q", "--also", "pixels", "--pixel-patch", "4x16x16"],
            ["pixel_patch", "t"],
        ),
    ],
)
def test_settings_that_the_encoder_does_not_have_are_told_before_anything_is_written(
    spacepatch_cli: Any, clip: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    size = 16 if "--codes" in flags else None
    flags = [flag for flag in flags if flag != "--codes"]
    spec = codec(tmp_path, codebook=size)
    options = [clip, "--out", tmp_path / "out", "--encoder", spec, *flags]
    line = refusal(spacepatch_cli, *options, code=2)
    assert all(word in line for word in words), line
    assert not list(tmp_path.glob("out/*"))


def test_cutting_to_fit_is_not_for_latents_that_begin_with_a_single_frame(
    spacepatch_cli: Any, clip: Path, tmp_path: Path
) -> None:
    from tiny_autoencoders import save_tiny

    save_tiny("AutoencoderKLWan", tmp_path / "wan")
    options = [clip, "--out", tmp_path / "out", "--encoder", f"diffusers:{tmp_path / 'wan'}"]
    assert "cut_to_fit" in refusal(spacepatch_cli, *options, "--cut-to-fit", code=2)


def test_an_encoder_of_another_stride_than_the_presets_is_told_and_used(
    spacepatch_cli: Any, clip: Path, tmp_path: Path
) -> None:
    options = [clip, "--encoder", codec(tmp_path, codebook=16), "--preset", "videogpt"]
    for command in (["plan"], ["tokenize", "--out", tmp_path / "out"]):
        done = spacepatch_cli(*command, *options)
        assert done.returncode == 0, done.stderr
        line, *planned = done.stderr.splitlines()
        assert len(planned) == (command[0] == "tokenize")
        assert line.startswith("note: ") and "4x8x8" in line and "4x4x4" in line
