"""What is typed or written by hand: taken for what it says, or refused by name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfuda_bench.datasets import canonical_name
from sfuda_bench.errors import UsageError
from sfuda_bench.selectors import Pair, parse_pairs, parse_seeds
from sfuda_bench.settings import resolve
from tests.fuzz import texts
from tests.fuzz.outcome import command

_names = st.sampled_from(texts.DOMAINS)


@given(st.randoms(use_true_random=False))
def test_values_of_set_are_taken_within_their_bounds_or_refused(rng: random.Random) -> None:
    texts.settings_values(rng)


@given(st.randoms(use_true_random=False))
def test_files_of_settings_are_read_or_refused(folder: Path, rng: random.Random) -> None:
    texts.settings_file(rng, folder)


@given(st.randoms(use_true_random=False))
def test_study_files_are_read_or_refused(folder: Path, rng: random.Random) -> None:
    texts.study_file(rng, folder)


@given(st.randoms(use_true_random=False))
def test_selectors_are_parsed_or_refused(rng: random.Random) -> None:
    texts.selectors(rng)


@pytest.mark.parametrize(
    "text", ["0..1000000000", "0..9999999999999999999", "9" * 5000, "1.." + "9" * 5000]
)
def test_ranges_of_seeds_that_nobody_means_are_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds") as caught:
        parse_seeds(text)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "end",
    [
        "syn_a@" + "+".join(f"{knob}=0..1/99" for knob in "abcdefgh"),
        "syn_a@*=0..1/99+a=0..1/99+b=0..1/99",
    ],
)
def test_a_pattern_of_more_domains_than_anybody_can_draw_is_refused(end: str) -> None:
    with pytest.raises(UsageError, match="more than 10000"):
        parse_pairs(f"syn_a:{end}", texts.DOMAINS, canonical_name, knobs=lambda name: [*"abcdefgh"])


def test_two_patterns_whose_pairs_are_too_many_are_refused() -> None:
    end = "syn_a@a=0..1/99+b=0..1/9"
    with pytest.raises(UsageError, match="pairs"):
        parse_pairs(f"{end}:{end}", texts.DOMAINS, canonical_name, knobs=lambda name: [*"ab"])


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6))
def test_seeds_are_read_back_from_their_list(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds))) == list(dict.fromkeys(seeds))


@given(st.integers(0, 10**9), st.integers(0, 200))
def test_a_range_of_seeds_is_every_integer_of_it(first: int, more: int) -> None:
    assert parse_seeds(f"{first}..{first + more}") == list(range(first, first + more + 1))


@given(st.lists(st.tuples(_names, _names).filter(lambda p: p[0] != p[1]), min_size=1))
def test_pairs_are_read_back_from_their_texts(given_pairs: list[tuple[str, str]]) -> None:
    pairs = sorted({Pair(*pair) for pair in given_pairs})
    text = ",".join(map(str, pairs))
    assert parse_pairs(text, texts.DOMAINS, canonical_name) == pairs


@pytest.mark.parametrize("data", [b"a = " + b"[" * 50_000, b"\xff\xfe", b"a = " + b"9" * 5000])
def test_a_file_of_settings_that_breaks_the_parser_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "deep.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"deep\.toml"):
        resolve("quick", config_file=path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--seeds", "0..1000000000"],
        ["run", "--jobs", "²"],
        ["run", "--jobs", "9" * 5000],
        ["run", "--timeout", "nan"],
        ["plan", "--set", "cpr.radius=nan"],
        ["plan", "--image-size", "9" * 5000],
        ["plan", "--image-size", "-1"],
        ["data", "verify", "--data-root", "x" * 5000],
        ["status", "--out", "x" * 5000],
        ["study", "status", "../../etc"],
        ["claim", "\ud800 > \0 on cup dice"],
        ["ls", "\x1b[31m"],
        ["source", "import", "no\0such", "--domain", "a"],
        ["why", "", "--out", "."],
    ],
)
def test_odd_words_on_the_command_line_are_refused_in_our_words(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command(arguments)
    assert ran.code in (2, 3, 5)
    assert "error: " in ran.stderr
