"""What can be wrong in a dataset of latents or codes, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from spoiled_shards import (
    Mutations,
    Shard,
    edit_json,
    in_array,
    in_document,
    in_pack,
    in_receipt,
    in_row,
    in_tokens,
    tars,
)


def first_row_of_frames(row: Any) -> list[float]:
    """Seconds of the first frames, as if each were a grid row."""
    seconds = np.linspace(0, 0.9, len(row["seconds"]))
    return [float(value) for value in seconds]


def exchange_values(tokens: np.ndarray) -> None:
    """Of two channels: all sums of all channels together stay."""
    cells = tokens.shape[1] // 6
    tokens[0, [0, cells]] = tokens[0, [cells, 0]]


def receipts_with_losses(change: Callable[[dict[str, Any]], None]) -> Callable[[Shard], None]:
    """Change every loss of every receipt."""

    def mutate(shard: Shard) -> None:
        for tar in tars(shard.folder):
            receipt = tar.with_suffix(".json")
            edit_json(receipt, lambda d: [change(loss) for loss in d["losses"]])

    return mutate


def encoder(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["encoder"].update(values)


def nudge_mean(dataset: dict[str, Any]) -> None:
    mean = dataset["encoder"]["mean"]
    mean[2] = float(np.nextafter(mean[2], 1))


def nudge_sum(receipt: dict[str, Any]) -> None:
    sums = receipt["channel_sums"]
    sums[2][1] = float(np.nextafter(sums[2][1], 0))


def one_count_more(receipt: dict[str, Any]) -> None:
    receipt["channel_sums"][0][3] += 1


LATENTS: Mutations = {
    "two values exchanged": (in_tokens(exchange_values), ".json", "channel_sums: sums of channel"),
    "a latent that is not a number": (
        in_tokens(lambda tokens: tokens.__setitem__((5, 2), np.nan)),
        ".tar: pack",
        "not finite",
    ),
    "a latent beyond the limit": (
        in_tokens(lambda tokens: tokens.__setitem__((-1, -1), -1001)),
        ".tar: pack",
        "latents up to 1001: 1000 are the most",
    ),
    "latents of another dtype": (
        lambda shard: (
            shard.put("tokens.npy", shard.array("tokens.npy").astype(np.float32)),
            shard.seal(),
        )[1],
        ".tar: pack",
        "tokens.npy is float32",
    ),
    "pack.json of another dtype": (
        in_pack(lambda d: d.update(token_dtype="float32")),
        ".tar: pack",
        "pack.json: token_dtype is 'float32'",
    ),
    "the size in cells": (
        in_row(size=lambda row: [side // 8 for side in row["size"]]),
        ".parquet: row",
        "is not that of grid",
    ),
    "a row of padding": (
        in_row(padded_frames=lambda row: row["padded_frames"] + 4),
        ".parquet: row",
        "of 1 latents, which cover",
    ),
    "padding as long as a row": (
        in_row(padded_frames=4),
        ".parquet: row",
        "has 4 padded frames, with tubelets of 4 frames",
    ),
    "a frame instead of a row called lost": (
        in_row(
            valid_frames=lambda row: row["valid_frames"] - 1,
            corrupt_frames=lambda row: row["corrupt_frames"] + 1,
        ),
        ".parquet: row",
        "keeps",
    ),
    "other seconds": (in_row(seconds=first_row_of_frames), ".parquet: row", "seconds are not"),
    "a sum that is nearly right": (in_receipt(nudge_sum), ".json", "squares of channel 1"),
    "a count of values": (in_receipt(one_count_more), ".parquet", "channel_sums of the receipt"),
    "no sums": (
        in_receipt(lambda d: d.update(channel_sums=None)),
        ".json",
        "channel_sums is missing",
    ),
    "sums of another shape": (
        in_receipt(lambda d: d["channel_sums"].pop()),
        ".json",
        "channel_sums is no table of 3 x 6",
    ),
    "sums that are no numbers": (
        in_receipt(lambda d: d["channel_sums"][1].__setitem__(0, float("nan"))),
        ".json",
        "no numbers",
    ),
    "a receipt without the encoder": (
        in_receipt(lambda d: d.update(encoder=None, channel_sums=None)),
        ".json",
        "encoder is None, the plan says",
    ),
    "a receipt of another rule": (
        in_receipt(encoder(rule="1+4k")),
        ".json",
        "'rule': '1+4k'",
    ),
    "a receipt of no rule": (in_receipt(encoder(rule="often")), ".json", "is no frame rule"),
    "a receipt whose stride is not that of its rule": (
        in_receipt(encoder(rule="2k")),
        ".json",
        "rule 2k is not that of stride",
    ),
    "a receipt of codes": (in_receipt(encoder(kind="codes")), ".json", "codebook_size of codes"),
    "a receipt of integers": (
        in_receipt(lambda d: d.update(token_dtype="uint16")),
        ".json",
        "token_dtype of latents is uint16",
    ),
    "pixels that are not there": (
        in_receipt(lambda d: d.update(pixel_tokens=7)),
        ".json",
        "pixel_tokens is 7, with members",
    ),
    "a measured mean": (in_document("dataset.json", nudge_mean), "dataset.json", "encoder: mean"),
    "a measured deviation": (
        in_document("dataset.json", lambda d: d["encoder"]["std"].reverse()),
        "dataset.json",
        "encoder: std",
    ),
    "no mean": (
        in_document("dataset.json", lambda d: d["encoder"].pop("mean")),
        "dataset.json",
        "encoder: mean is missing",
    ),
    "the encoder of the dataset": (
        in_document("dataset.json", encoder(weights={})),
        "dataset.json",
        "encoder: weights is not that of the plan",
    ),
    "no encoder of the dataset": (
        in_document("dataset.json", lambda d: d.update(encoder=None)),
        "dataset.json",
        "encoder is missing, in the plan it is given",
    ),
    "constants of the dataset": (
        in_document("dataset.json", lambda d: d["constants"].update(scaling_factor=0.18215)),
        "dataset.json",
        "constants is",
    ),
    "pixels of the dataset": (
        in_document("dataset.json", lambda d: d.update(pixels={"tubelet": [1, 8, 8]})),
        "dataset.json",
        "pixels is",
    ),
    "pixels for a kind": (
        in_document("dataset.json", lambda d: d.update(kind="pixels")),
        "dataset.json",
        "kind is 'pixels', the settings say 'latents'",
    ),
    "the identity in the plan": (
        in_document("plan.json", lambda d: d["encoder"]["identity"].update(version=9)),
        "plan.json",
        "fingerprints: token",
    ),
    "the channels in the plan": (
        in_document("plan.json", encoder(channels=3)),
        "plan.json",
        "layout is not that",
    ),
    "the name in the plan": (
        in_document("plan.json", encoder(name="linear:other.safetensors")),
        "plan.json",
        "encoder: name is",
    ),
    "the kind in the plan": (
        in_document("plan.json", encoder(kind="codes", codebook_size=9)),
        "plan.json",
        "makes codes, not latents",
    ),
    "a local encoder that looks back": (
        in_document("plan.json", encoder(rule="1+4k")),
        "plan.json",
        "is_local is true, though its rule is 1+4k",
    ),
    "a multiple that is none of the stride": (
        in_document("plan.json", encoder(multiple=[8, 12])),
        "plan.json",
        "multiple (8, 12) is none of stride (4, 8, 8)",
    ),
    "a hash in the plan": (
        in_document("plan.json", encoder(weights={"a.safetensors": "12"})),
        "plan.json",
        "of a.safetensors is '12'",
    ),
    "no encoder in the plan": (
        in_document("plan.json", lambda d: d.update(encoder=None)),
        "plan.json",
        "encoder is null, the settings say",
    ),
    "an encoder in the plan that is none": (
        in_document("plan.json", lambda d: d["encoder"].pop("stride")),
        "plan.json",
        "damaged",
    ),
    "a loss of pixels": (
        receipts_with_losses(lambda loss: loss.update(reason="tail_dropped")),
        ".json",
        "tail_dropped, with an encoder",
    ),
}

CODES: Mutations = {
    "a code beyond the codebook": (
        in_tokens(lambda tokens: tokens.__setitem__((3, 0), 300)),
        ".tar: pack",
        "has code 300, of a codebook of 300",
    ),
    "codes of another dtype": (
        lambda shard: (
            shard.put("tokens.npy", shard.array("tokens.npy").astype(np.uint32)),
            shard.seal(),
        )[1],
        ".tar: pack",
        "tokens.npy is uint32",
    ),
    "a larger codebook": (
        in_receipt(encoder(codebook_size=2**16 + 1)),
        ".json",
        "'codebook_size': 65537",
    ),
    "sums of codes": (
        in_receipt(lambda d: d.update(channel_sums=[[1], [1], [1]])),
        ".json",
        "channel_sums is given, without latents",
    ),
    "a mean of codes": (
        in_document("dataset.json", lambda d: d["encoder"].update(mean=[0.5])),
        "dataset.json",
        "encoder: mean",
    ),
    "trimmed frames lost at another stage": (
        receipts_with_losses(lambda loss: loss.update(stage="decode")),
        ".json",
        "encoder_trim at stage decode, not encode",
    ),
    "codes that are not finite": (
        receipts_with_losses(lambda loss: loss.update(stage="encode", reason="nonfinite_latent")),
        ".json",
        "nonfinite_latent, of codes",
    ),
}


def cut_pixels(shard: Shard) -> None:
    shard.put("pixels.npy", shard.array("pixels.npy")[:-1])
    shard.seal()


def pixels_of_another_dtype(shard: Shard) -> None:
    shard.put("pixels.npy", shard.array("pixels.npy").astype(np.int16))
    shard.seal()


def another_tubelet(shard: Shard) -> None:
    """Each of half the width, and twice as many."""
    table = shard.array("pixel_segments.npy")
    table[:, [0, 1, 4]] *= 2
    table[:, 7] //= 2
    pixels = shard.array("pixels.npy")
    shard.put("pixel_segments.npy", table)
    shard.put("pixels.npy", pixels.reshape(2 * len(pixels), -1))
    shard.seal()


def called_corrupt(row: Any) -> Any:
    return row["valid_frames"] - 4


def in_table(place: tuple[int, int]) -> Callable[[Shard], None]:
    return in_array("pixel_segments.npy", lambda table, _: table.__setitem__(place, 99))


ALSO: Mutations = {
    "a pixel token fewer": (cut_pixels, ".tar: pack", "pixels.npy is uint8"),
    "pixels of another dtype": (pixels_of_another_dtype, ".tar: pack", "pixels.npy is int16"),
    "another offset": (in_table((1, 0)), ".tar: pack", "pixel_segments.npy has offset 99"),
    "another number": (in_table((0, 1)), ".tar: pack", "pixel_segments.npy has num_kept 99"),
    "another grid": (in_table((0, 2)), ".tar: pack", "pixel_segments.npy has T 99"),
    "another patch": (in_table((0, 6)), ".tar: pack", "pixel_segments.npy has patch_h 99"),
    "another tubelet throughout": (another_tubelet, ".tar: pack", "has patch_w 4"),
    "a table of another shape": (
        lambda shard: (
            shard.put("pixel_segments.npy", shard.array("pixel_segments.npy")[:-1]),
            shard.seal(),
        )[1],
        ".tar: pack",
        "pixel_segments.npy is int32",
    ),
    "no pixel tokens in the receipt": (
        in_receipt(lambda d: d.update(pixel_tokens=0)),
        ".json",
        "pixel_tokens is 0",
    ),
    "another number in the receipt": (
        in_receipt(lambda d: d.update(pixel_tokens=d["pixel_tokens"] + 1)),
        ".json",
        "its packs have",
    ),
    "another longest pack": (
        in_receipt(lambda d: d.update(pack_pixel_tokens=d["pack_pixel_tokens"] + 1)),
        ".json",
        "pack_pixel_tokens is",
    ),
    "another number in the dataset": (
        in_document("dataset.json", lambda d: d["pixels"].update(tokens=1)),
        "dataset.json",
        "pixels is",
    ),
    "a lost row within": (
        in_row(valid_frames=called_corrupt, corrupt_frames=4),
        ".parquet: row",
        "a clip whose pixels are stored too ends before",
    ),
    "another pixel tubelet in the plan": (
        in_document("plan.json", lambda d: d["layout"].update(pixel_tubelet=[3, 8, 8])),
        "plan.json",
        "layout is not that",
    ),
}

CAUSAL: Mutations = {
    "a lost row within": (
        in_row(valid_frames=called_corrupt, corrupt_frames=4),
        ".parquet: row",
        "a clip of this encoder ends before the first of them",
    ),
    "seconds of rows that are all alike": (
        in_row(seconds=lambda row: [0.5 * place for place in range(len(row["seconds"]))]),
        ".parquet: row",
        "seconds are not",
    ),
    "the rule of the dataset": (
        in_document("dataset.json", encoder(rule="4k")),
        "dataset.json",
        "encoder: rule is not",
    ),
    "another posterior": (
        in_document("plan.json", lambda d: d["encoder"]["identity"].update(posterior="sample")),
        "plan.json",
        "posterior is 'sample', the settings say 'mean'",
    ),
}
