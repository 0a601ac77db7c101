"""The grammar of derived domains, and how pair selectors use it."""

from __future__ import annotations

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.selectors import parse_pairs
from sfuda_bench.severity import Derived, expand, is_derived, split_name

KNOBS = ("blur", "noise")
DOMAINS = ["base", "clinic"]


def canonical(name: str) -> str:
    return {"alias": "base"}.get(name.lower(), name.lower())


def knobs(name: str) -> tuple[str, ...]:
    return KNOBS if canonical(name.partition("@")[0]) == "base" else ()


def pairs(text: str, domains: list[str] = DOMAINS) -> list[str]:
    return [str(pair) for pair in parse_pairs(text, domains, canonical, (), knobs)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("base@blur=0.4", ["base@blur=0.4"]),
        ("base@blur=.40", ["base@blur=0.4"]),
        ("base@blur=1.0", ["base@blur=1"]),
        ("base@noise=0.25+blur=0.5", ["base@blur=0.5+noise=0.25"]),
        ("base@0", ["base@0"]),
        ("base@blur=0", ["base@0"]),
        ("base@blur=0+noise=0.5", ["base@noise=0.5"]),
        ("base@blur=0..1/2", ["base@0", "base@blur=0.5", "base@blur=1"]),
        ("base@blur=0.5..1/3", [f"base@blur={v}" for v in ("0.5", "0.667", "0.833", "1")]),
        (
            "base@blur=0..1/1+noise=0.2..0.4/1",
            [
                "base@noise=0.2",
                "base@noise=0.4",
                "base@blur=1+noise=0.2",
                "base@blur=1+noise=0.4",
            ],
        ),
        ("base@*=0..1/1", ["base@0", "base@blur=1", "base@0", "base@noise=1"]),
        ("base@*=0.5+noise=1", ["base@blur=0.5+noise=1"]),
    ],
)
def test_what_a_pattern_stands_for(pattern: str, names: list[str]) -> None:
    found = expand(pattern, KNOBS)
    assert [derived.name for derived in found] == names
    for derived in found:
        assert split_name(derived.name) == derived
        assert is_derived(derived.name)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("base@", "expected KNOB=SEVERITY"),
        ("base@blur", "expected KNOB=SEVERITY"),
        ("base@haze=1", "no knob 'haze'; knobs: blur, noise"),
        ("base@blr=1", "no knob 'blr' .did you mean 'blur'"),
        ("base@Blur=1", "the knob in lower case"),
        ("base@blur=1+blur=0.5", "given twice"),
        ("base@blur=1.5", "expected 0 to 1"),
        ("base@blur=-1", "expected 0 to 1"),
        ("base@blur=0.1234", "at most three digits"),
        ("base@blur=1..0/5", "LOW..HIGH/STEPS"),
        ("base@blur=0..1/0", "1 to 99 steps"),
        ("base@blur=0..1/100", "1 to 99 steps"),
        ("base@blur=0..1", "LOW..HIGH/STEPS"),
        ("base@blur=nan", "expected 0 to 1"),
    ],
)
def test_a_malformed_pattern_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        expand(pattern, KNOBS)
    assert "blur" in f"{error.value.message}{error.value.hint}"


def test_a_pattern_is_no_name() -> None:
    for name in ("base@*=1", "base@blur=0..1/2"):
        with pytest.raises(UsageError, match="stands for several domains"):
            split_name(name)
    assert split_name("base") == Derived("base", {})


def test_names_are_safe_for_file_systems() -> None:
    for derived in expand("base@blur=0..1/7+noise=0..1/3", KNOBS):
        assert not set(derived.name) & set('/\\:*?"<>|, ')


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base:base@blur=0.5", ["base:base@blur=0.5"]),
        ("alias:ALIAS@blur=.5", ["base:base@blur=0.5"]),
        ("base:base@blur=0..1/2", ["base:base@0", "base:base@blur=0.5", "base:base@blur=1"]),
        ("base:base@*=0..1/1", ["base:base@0", "base:base@blur=1", "base:base@noise=1"]),
        ("clinic:base@blur=0..1/1", ["clinic:base", "clinic:base@blur=1"]),
        ("*:base@blur=1", ["base:base@blur=1", "clinic:base@blur=1"]),
        ("base@blur=0..1/1:clinic", ["base:clinic", "base@blur=1:clinic"]),
        ("all", ["base:clinic", "clinic:base"]),
        ("all".replace("all", "*:*"), ["base:clinic", "clinic:base"]),
    ],
)
def test_pairs_with_derived_domains(text: str, found: list[str]) -> None:
    assert pairs(text) == found


def test_the_unturned_base_has_one_name_per_source() -> None:
    """Equal images under two names would be one cell in two places."""
    assert pairs("base:base@blur=0,base:base@noise=0,base:base@0") == ["base:base@0"]
    assert pairs("clinic:base@0,clinic:base") == ["clinic:base"]


def test_derived_domains_need_no_folder_of_their_base() -> None:
    assert pairs("clinic:base@blur=1", ["clinic"]) == ["clinic:base@blur=1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base@0:base", "two different domains"),
        ("base@blur=1:base@blur=1", "two different domains"),
        ("base:clinic@blur=1", "no domain 'clinic@blur=1'"),
        ("base:base@haze=1", "no knob 'haze'"),
    ],
)
def test_bad_pairs_of_derived_domains_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pairs(text)


def test_a_folder_of_the_users_own_may_have_an_at_sign() -> None:
    assert pairs("base:me@home", ["base", "me@home"]) == ["base:me@home"]
