"""VideoGPT, Image Transformer, diffusion, GAN, CLIP, SigLIP and captioning learn from the shards
that their docstrings make."""

from __future__ import annotations

import math
from typing import Any

import pytest
import recipes
import torch
import torch.nn.functional as F  # noqa: N812
from recipes import ShardsOf

from spacepatch.loader import PackDataset, collate

RECIPES = ("videogpt", "image_transformer", "diffusion", "gan", "contrastive", "captioning")


def first_batch(packs: PackDataset, num_packs: int = 2) -> dict[str, Any]:
    return collate([packs[index] for index in range(num_packs)])


# --- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "arguments", "most", "most_of_spoiled"),
    [
        ("videogpt", "--batch-size 2 --steps 40", 0.5, 0.5),
        ("image_transformer", "--batch-size 2 --steps 40", 0.8, 0.92),
        ("diffusion", "--batch-size 2 --steps 70", 0.78, 0.96),
        ("diffusion", "--batch-size 2 --steps 30 --objective ddpm", 0.6, math.inf),
        ("diffusion", "--batch-size 2 --steps 45 --objective edm", 0.9, math.inf),
        ("gan", "--batch-size 4 --steps 160", 0.9, 0.6),
        ("contrastive", "--steps 50 --loss clip", 0.7, 0.6),
        ("contrastive", "--steps 70 --loss siglip", 0.75, 0.8),
        ("captioning", "--batch-size 2 --steps 85", 0.2, 0.75),
    ],
)
def test_a_recipe_learns_from_the_tokens(
    recipe: str, arguments: str, most: float, most_of_spoiled: float, shards_of: ShardsOf
) -> None:
    """Limits are above the worst of seeds 0 to 2. To denoise, ddpm and edm first learn what is true
    of any latents, spoiled or not."""
    main = recipes.load(recipe).main
    measured = main([str(shards_of(recipe)), "--json", *arguments.split()])
    assert measured["loss_after"] < most * measured["loss_before"]
    assert measured["loss_after"] < measured.get("entropy", math.inf)
    # All but the tokens is the same there, and is not what it learned.
    assert measured["loss_after"] < most_of_spoiled * measured["loss_spoiled"]
    assert measured["loader_tokens_per_second"] > 0 < measured["step_tokens_per_second"]
    assert 0 <= measured["padding"] < 0.3


def test_the_entropy_of_codes_is_that_of_how_often_each_comes(shards_of: ShardsOf) -> None:
    packs = PackDataset(shards_of("videogpt"))
    codes = torch.cat([pack["tokens"][pack["segment_ids"] > 0, 0].long() for pack in packs])
    shares = torch.bincount(codes, minlength=64) / len(codes)
    expected = -sum(float(share * share.log()) for share in shares if share > 0)
    assert recipes.load("videogpt").entropy(packs, 64) == pytest.approx(expected, rel=1e-5)


# --- what they read --------------------------------------------------------------------------


def test_recipes_open_their_shards_and_no_source(shards_of: ShardsOf) -> None:
    opened = recipes.opened_by({recipe: shards_of(recipe) for recipe in RECIPES})
    for recipe in RECIPES:
        assert any(path.parent == shards_of(recipe) for path in opened[recipe])
        ours = [path for path in opened[recipe] if path.is_relative_to(recipes.SAMPLES)]
        assert {path.suffix for path in ours} <= {".py"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_short_and_needs_torch_and_spacepatch_alone(recipe: str) -> None:
    assert len(recipes.recipe_path(recipe).read_text("utf-8").splitlines()) < 150
    assert recipes.foreign_imports(recipe) == set()


def test_readme_has_a_row_for_each_recipe() -> None:
    assert set(RECIPES) <= set(recipes.rows_of(recipes.TRAIN / "README.md"))


# --- nothing is predicted from itself --------------------------------------------------------


def changed_at(tokens: torch.Tensor, place: tuple[int, ...], to: int) -> torch.Tensor:
    other = tokens.clone()
    other[place] = to
    assert other[place] != tokens[place]
    return other


def test_videogpt_sees_the_codes_before_it_and_no_others(shards_of: ShardsOf) -> None:
    module = recipes.load("videogpt")
    packs = PackDataset(shards_of("videogpt"))
    batch = first_batch(packs)
    torch.manual_seed(0)
    model = module.VideoGPT(64)
    codes = batch["tokens"][..., 0].long()
    _, second, third = batch["cu_seqlens"][0].tolist()[:3]
    place = second + 10
    with torch.no_grad():
        before = model(codes, batch)
        after = model(changed_at(codes, (0, place), (int(codes[0, place]) + 1) % 64), batch)
    differs = (before != after).any(dim=-1)
    # A code is seen from the one after it on, to the end of its segment.
    assert differs[0, place + 1 : third].all()
    differs[0, place + 1 : third] = False
    assert not differs.any()


def test_image_transformer_sees_near_pixels_and_channels_before_it(shards_of: ShardsOf) -> None:
    module = recipes.load("image_transformer")
    packs = PackDataset(shards_of("image_transformer"))
    batch = first_batch(packs)
    torch.manual_seed(0)
    model = module.ImageTransformer(3, reach=2)
    pixels = batch["tokens"].long()
    start, stop = batch["cu_seqlens"][0].tolist()[1:3]
    place = start + 5 * 16 + 8  # row 5, column 8 of the second picture
    other = changed_at(pixels, (0, place, 1), (int(pixels[0, place, 1]) + 9) % 256)
    with torch.no_grad():
        differs = (model(pixels, batch) != model(other, batch)).any(dim=-1)
    # Its own green tells of its blue; then it is seen by what follows in the picture.
    assert differs[0, place].tolist() == [False, False, True]
    assert differs[0, place + 1].all()
    positions = batch["positions"][0]
    row, column = positions[place, 1:].tolist()
    # The input of a pixel is the one before it, and two layers see twice as far.
    reach = 2 * 2
    seen = differs[0].any(dim=-1)
    assert not seen[:place].any() and not seen[stop:].any() and not differs[1:].any()
    rows, columns = positions[start:stop, 1] - row, positions[start:stop, 2] - (column + 1)
    beyond = (rows > reach) | (columns.abs() > reach)
    assert not (seen[start:stop] & beyond)[place - start + 1 :].any()
    assert seen[start:stop][rows == reach].any()


def test_a_caption_is_read_from_its_own_picture_and_the_bytes_before(shards_of: ShardsOf) -> None:
    module = recipes.load("captioning")
    packs = PackDataset(shards_of("captioning"))
    batch = first_batch(packs)
    torch.manual_seed(0)
    model = module.Captioner(packs.document["token_width"])
    read, ids, positions = module.texts_of(batch)
    captions = [one["extra"]["caption"] for one in batch["segments"][0]]
    text = bytes(read[0][ids[0] > 0].tolist()).decode()
    assert text == "".join(f"\x02{caption}\x03" for caption in captions)

    pixels = packs.normalize(batch["tokens"])
    place = int((ids[0] == 2).nonzero()[7])
    other_text = changed_at(read, (0, place), 88)
    own = batch["segment_ids"] == 2
    own[1] = False
    other_picture = torch.where(own[..., None], -pixels, pixels)
    with torch.no_grad():
        logits = model(pixels, batch, read, ids, positions)
        by_text = model(pixels, batch, other_text, ids, positions) != logits
        by_picture = model(other_picture, batch, read, ids, positions) != logits
    expected = torch.zeros_like(ids, dtype=torch.bool)
    expected[0] = ids[0] == 2
    assert torch.equal(by_picture.any(dim=-1), expected)
    expected[0, :place] = False
    assert torch.equal(by_text.any(dim=-1), expected)


# --- diffusion -------------------------------------------------------------------------------


def noised(objective: str, *, oracle: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Errors, levels and ids, of a network that knows the latents, or that returns zeros."""
    module = recipes.load("diffusion")
    torch.manual_seed(0)
    ids = torch.tensor([[1] * 300 + [2] * 200 + [3] * 100] * 4)
    deviation = 0.5 if objective == "edm" else 1.0
    x = deviation * torch.randn(4, 600, 8, dtype=torch.float64)
    levels = []

    def answer(noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        levels.append(level)
        if not oracle:
            return torch.zeros_like(noisy)
        if objective == "flow":
            return (noisy - (1 - level) * x) / level - x
        if objective == "ddpm":
            kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
            a = kept[(level * 1000).round().long()]
            return (noisy - a.sqrt() * x) / (1 - a).sqrt()
        sigma = (4 * level).exp()
        # Table 1 of the paper: D = c_skip y + c_out F, where noisy is c_in y.
        root = (sigma**2 + deviation**2).sqrt()
        c_skip, c_out = deviation**2 / root**2, sigma * deviation / root
        return (x - c_skip * noisy * root) / c_out

    more = {"data": deviation} if objective == "edm" else {}
    errors = getattr(module, objective)(x, ids, answer, **more)
    return errors, levels[0], ids


@pytest.mark.parametrize("objective", ["flow", "ddpm", "edm"])
def test_who_knows_the_latents_has_no_loss(objective: str) -> None:
    errors, levels, ids = noised(objective, oracle=True)
    assert errors.max() < 1e-4
    for row, level in zip(ids, levels[..., 0], strict=True):
        of_segments = [level[row == segment].unique() for segment in (1, 2, 3)]
        assert [len(one) for one in of_segments] == [1, 1, 1]
    assert len(levels.unique()) == 12


@pytest.mark.parametrize(("objective", "expected"), [("flow", 2), ("ddpm", 1), ("edm", 1)])
def test_who_knows_nothing_has_the_variance_of_what_is_asked(objective: str, expected: int) -> None:
    errors, _, _ = noised(objective, oracle=False)
    # Of e - x, of e, and by the weights of EDM 1 at every level (its appendix B.6).
    assert float(errors.mean()) == pytest.approx(expected, rel=0.05)


def test_sigma_data_is_the_deviation_of_all_latents(shards_of: ShardsOf) -> None:
    packs = PackDataset(shards_of("diffusion"))
    values = torch.cat([pack["tokens"][pack["segment_ids"] > 0].flatten() for pack in packs])
    expected = float(values.double().std(correction=0))
    assert recipes.load("diffusion").sigma_data(packs) == pytest.approx(expected, rel=1e-3)


# --- CLIP, SigLIP ----------------------------------------------------------------------------


def test_pairs_are_right_where_captions_are_equal() -> None:
    module = recipes.load("contrastive")
    torch.manual_seed(0)
    logits = torch.randn(5, 5)
    alone = torch.eye(5, dtype=torch.bool)
    straight = torch.arange(5)
    expected = (F.cross_entropy(logits, straight) + F.cross_entropy(logits.T, straight)) / 2
    torch.testing.assert_close(module.clip_loss(logits, alone), expected)

    same = alone.clone()
    same[0, 3] = same[3, 0] = True
    signed = [
        math.log1p(math.exp(-(1 if same[i, j] else -1) * float(logits[i, j])))
        for i in range(5)
        for j in range(5)
    ]
    assert float(module.siglip_loss(logits, same)) == pytest.approx(sum(signed) / 5, rel=1e-5)
    # Both right ones are as likely as each other at best, and the loss is then log 2 for these.
    best = torch.where(same, 50.0, 0.0)
    expected = torch.tensor(2 / 5 * math.log(2))
    torch.testing.assert_close(module.clip_loss(best, same), expected)


def test_a_caption_is_the_same_beside_longer_ones() -> None:
    torch.manual_seed(0)
    captions = recipes.load("contrastive").Captions()
    with torch.no_grad():
        alone = captions(["a tall picture"])
        beside = captions(["a tall picture", "a wide picture of a blue sky", "tall a picture"])
    torch.testing.assert_close(alone[0], beside[0])
    assert not torch.allclose(beside[0], beside[2], atol=1e-3)


def test_a_picture_is_the_same_beside_others(shards_of: ShardsOf) -> None:
    packs = PackDataset(shards_of("contrastive"))
    batch = first_batch(packs)
    torch.manual_seed(0)
    pictures = recipes.load("contrastive").Pictures(packs.document["token_width"])
    pixels = packs.normalize(batch["tokens"])
    own = batch["segment_ids"] == 2
    own[1] = False
    with torch.no_grad():
        before = pictures(pixels, batch)
        after = pictures(torch.where(own[..., None], pixels, torch.randn_like(pixels)), batch)
    assert len(before) == sum(map(len, batch["segments"]))
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2:], after[2:])


# --- GAN -------------------------------------------------------------------------------------


def test_a_gan_cuts_pictures_as_the_shards_are_cut(shards_of: ShardsOf) -> None:
    module = recipes.load("gan")
    packs = PackDataset(shards_of("gan"))
    pack = packs[0]
    tokens = packs.normalize(pack["tokens"])
    assert pack["grid_thw"][0].tolist() == [1, 4, 4]
    # The middle of each token is a patch; 4 x 4 of them are the picture that it was cut from.
    middles = tokens.view(-1, 16, 3, 8, 8)[:, :, :, 2:6, 2:6]
    pictures = middles.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 16, 16)
    cut = module.cut_overlapping(pictures, patch=4, halo=2)
    torch.testing.assert_close(cut.flatten(0, 1), tokens)

    batch = first_batch(packs)
    made = module.Generator([1, 4, 4], patch=4, halo=2)(batch)
    assert made.shape == batch["tokens"].shape
    real = batch["segment_ids"] > 0
    assert not made[~real].any()
    borders = made[real].view(-1, 16, 3, 8, 8)[:, :4, :, :2]
    assert (borders == -1).all()  # black beyond the upper edge


def test_a_discriminator_scores_each_picture_by_itself(shards_of: ShardsOf) -> None:
    packs = PackDataset(shards_of("gan"))
    batch = first_batch(packs)
    torch.manual_seed(0)
    discriminator = recipes.load("gan").Discriminator(packs.document["token_width"])
    tokens = packs.normalize(batch["tokens"])
    own = batch["segment_ids"] == 2
    own[1] = False
    with torch.no_grad():
        before = discriminator(tokens, batch)
        after = discriminator(torch.where(own[..., None], tokens, -tokens), batch)
    assert len(before) == sum(map(len, batch["segments"]))
    assert (before == after).nonzero().flatten().tolist() == [1]


def test_the_penalty_is_of_the_slope_of_each_picture(shards_of: ShardsOf) -> None:
    module = recipes.load("gan")
    batch = first_batch(PackDataset(shards_of("gan")))
    ids = batch["segment_ids"]
    # Scores that rise by 3 in one value of each token: over 16 tokens, by 3 * 4.
    slope = torch.zeros(192)
    slope[7] = 3.0

    def score(tokens: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        return (tokens @ slope)[batch["segment_ids"] > 0]

    one, other = torch.randn(2, *ids.shape, 192)
    penalty = float(module.penalty(score, one, other, batch))
    assert penalty == pytest.approx((12 - 1) ** 2, rel=1e-5)


def test_the_sliced_distance_is_that_of_sorted_values() -> None:
    module = recipes.load("gan")
    one = torch.randn(50, 4)
    assert float(module.sliced_distance(one, one[torch.randperm(50)])) < 1e-6
    # Moved by v, the distance along d is |v . d|: in 4 dimensions |d_0| is 4 / (3 pi) on average.
    moved = one + torch.tensor([2.0, 0.0, 0.0, 0.0])
    torch.manual_seed(0)
    distance = float(module.sliced_distance(one, moved))
    assert distance == pytest.approx(2 * 4 / (3 * math.pi), rel=0.1)


def test_a_gan_trains_by_hinge_too(shards_of: ShardsOf) -> None:
    arguments = ["--json", "--steps", "12", "--batch-size", "2", "--loss", "hinge"]
    measured = recipes.load("gan").main([str(shards_of("gan")), *arguments])
    assert measured["loss"] == "hinge"
    assert measured["loss_before"] != measured["loss_after"] < 1
