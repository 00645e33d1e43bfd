"""Which of the sources: sample, limit and split."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.listings import Listing, SourceTable
from spacepatch.selection import parse_share, parse_split, select_sources
from spacepatch.sources import make_source_id


def select(sources, **asked):
    return tuple(select_sources(Listing(SourceTable(sources), 0), **asked).sources)


def some(count: int, prefix: str = "v") -> tuple[Source, ...]:
    found = [f"{prefix}{number}.mp4" for number in range(count)]
    return tuple(Source(n, n, 0, make_source_id(n, ordinal=0), 1) for n in found)


@given(
    count=st.integers(1, 60),
    shares=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_larger_sample_contains_the_smaller_one_in_the_same_order(count, shares, seed) -> None:
    low, high = sorted(shares)
    sources = some(count)
    small = select(sources, seed=seed, sample=f"{low}%")
    large = select(sources, seed=seed, sample=f"{high}%")
    assert len(small) == math.ceil(count * low / 100)
    assert set(small) <= set(large)
    assert list(large) == [source for source in sources if source in set(large)]


def test_a_sample_by_count_takes_that_many_and_depends_on_the_seed() -> None:
    sources = some(200)
    chosen = [select(sources, seed=seed, sample="20") for seed in (0, 0, 1)]
    assert [len(picked) for picked in chosen] == [20, 20, 20]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != sources[:20]


def test_a_sample_larger_than_all_is_all() -> None:
    assert select(some(3), seed=0, sample="100") == some(3)


def test_a_source_stays_in_a_percentage_when_others_leave() -> None:
    sources = some(100)
    half = select(sources, seed=3, sample="50%")
    assert set(select(half, seed=3, sample="25")) == set(select(sources, seed=3, sample="25"))


def test_limit_takes_the_first_after_the_sample() -> None:
    sources = some(100)
    sampled = select(sources, seed=0, sample="30")
    assert select(sources, seed=0, limit=5) == sources[:5]
    assert select(sources, seed=0, sample="30", limit=5) == sampled[:5]


@pytest.mark.parametrize(
    "text", ["x", "-1", "-1%", "-0.5%", "101%", "1.5", "%", "nan%", "1/0%", ""]
)
def test_a_bad_sample_names_itself(text: str) -> None:
    with pytest.raises(ConfigError, match=r"sample: .* is no count") as error:
        select(some(3), seed=0, sample=text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("7", 7), ("1%", 2), ("0.1%", 1), ("0%", 0)])
def test_a_share_is_rounded_up(text: str, count: int) -> None:
    assert parse_share("sample", text, 150) == count


def test_split_shares_come_out_as_asked() -> None:
    split = select(some(5000), seed=0, split="train=0.9,val=0.06,test=0.04")
    for name, share in [("train", 0.9), ("val", 0.06), ("test", 0.04)]:
        found = sum(source.split == name for source in split) / 5000
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 5000), name


def test_a_source_keeps_its_split_whatever_else_is_listed() -> None:
    few, many = some(50), some(400, "w") + some(50) + some(30, "z")
    splits = {s.name: s.split for s in select(many, seed=1, split="train=0.7,val=0.3", limit=460)}
    alone = select(few, seed=1, split="train=0.7,val=0.3")
    assert {s.split for s in alone} == {"train", "val"}
    assert all(splits[s.name] == s.split for s in alone)


def test_split_changes_nothing_but_the_split() -> None:
    split = select(some(20), seed=1, split="a=1/3,b=2/3")
    assert tuple(replace(source, split="") for source in split) == some(20)


def test_a_larger_share_only_adds_to_the_first_split() -> None:
    small = select(some(300), seed=1, split="a=0.2,b=0.8")
    large = select(some(300), seed=1, split="a=0.4,b=0.6")
    in_small = {s.name for s in small if s.split == "a"}
    assert in_small < {s.name for s in large if s.split == "a"}


@pytest.mark.parametrize(
    "text",
    "train train= train=x train=0.5 a=0.5,b=0.6 a=0.5,a=0.5 a/b=1 =1 a=-1,b=2 a=nan,b=1 a=1/0 é=1"
    " a=1, x23456789012345678901234567890123=1".split(),
)
def test_a_bad_split_is_an_error_that_says_what(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^split: "):
        parse_split(text)
