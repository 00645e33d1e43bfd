"""Frame rules, against a list of every number that fits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spacepatch.framerules import FrameRule, parse_rule

RULES = ["1+4k", "1+8k", "1+6k", "1+k", "4k", "2k", "k"]


def listed(text: str) -> dict[int, list[list[int]]]:
    """By number of frames: the frames of each latent. One latent more at a time, up to frame 60."""
    first, step = text.startswith("1+"), int(text.removeprefix("1+").removesuffix("k") or 1)
    cells = [[0]] if first else []
    made = {1: list(cells)} if first else {}
    while (start := sum(map(len, cells))) < 60:
        cells.append([start + offset for offset in range(step)])
        made[start + step] = list(cells)
    return made


@pytest.mark.parametrize("text", RULES)
def test_every_number_of_frames_has_its_latents_and_their_frames(text: str) -> None:
    rule, wanted = parse_rule(text), listed(text)
    for num in range(1, 41):
        assert rule.fits(num) == (num in wanted)
        if num in wanted:
            assert rule.num_latents(num) == len(wanted[num])
            assert [list(range(*span)) for span in rule.sources(num)] == wanted[num]


@pytest.mark.parametrize("text", RULES)
def test_frames_are_padded_to_the_next_that_fits_or_trimmed_to_the_last(text: str) -> None:
    rule, fitting = parse_rule(text), listed(text)
    for num in range(1, 41):
        assert rule.fit(num, "repeat") == (num, min(n for n in fitting if n >= num) - num)
        assert rule.fit(num, "drop") == (max((n for n in fitting if n <= num), default=0), 0)


def test_the_rule_of_wan_makes_3_latents_of_9_frames_and_of_6_frames_2_or_after_a_pad_3() -> None:
    rule = parse_rule("1+4k")
    assert rule.num_latents(9) == 3
    assert rule.fit(6, "drop") == (5, 0)
    assert rule.fit(6, "repeat") == (6, 3)
    assert rule.sources(9) == [(0, 1), (1, 5), (5, 9)]


def test_nothing_becomes_nothing() -> None:
    for text in RULES:
        assert not parse_rule(text).fits(0)
        assert parse_rule(text).fit(0, "repeat") == parse_rule(text).fit(0, "drop") == (0, 0)


@pytest.mark.parametrize("text", RULES)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_rule(text)) == text


def test_other_spellings_mean_the_same_rule() -> None:
    assert parse_rule(" 1 + 4k ") == FrameRule(1, 4)
    assert parse_rule("any") == parse_rule("1k") == FrameRule(0, 1)
    assert parse_rule("1+1k") == FrameRule(1, 1)


@pytest.mark.parametrize("text", ["", "4", "2+4k", "1+0k", "0k", "-4k", "4k+1", "1+4.0k", "k4"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no frame rule, such as 1"):
        parse_rule(text)


@pytest.mark.parametrize("num", [-3, 0, 2, 4, 8])
def test_frames_that_do_not_fit_have_no_latents(num: int) -> None:
    with pytest.raises(ValueError, match=f"{num} frames do not fit the rule 1\\+4k"):
        FrameRule(1, 4).num_latents(num)
    with pytest.raises(ValueError, match="do not fit"):
        FrameRule(1, 4).sources(num)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="first is 2"):
        FrameRule(2, 4)
    with pytest.raises(ValueError, match="step is 0"):
        FrameRule(0, 0)
    with pytest.raises(ValueError, match="tail is 'pad'"):
        FrameRule(0, 4).fit(3, "pad")


def test_rules_need_no_torch() -> None:
    program = "import sys, spacepatch.latents; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
