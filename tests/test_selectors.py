"""The grammar of --methods, --pairs and --seeds, as tables."""

from __future__ import annotations

import itertools

import pytest

from sfuda_bench.datasets import canonical_name
from sfuda_bench.errors import UsageError
from sfuda_bench.selectors import Pair, parse_methods, parse_pairs, parse_seeds

DOMAINS = ["drishti_gs", "my_clinic", "refuge_train", "refuge_val"]
EVERY = [f"{s}:{t}" for s, t in itertools.permutations(DOMAINS, 2)]


def pairs(text: str, domains: list[str] = DOMAINS) -> list[str]:
    return [str(pair) for pair in parse_pairs(text, domains, canonical_name)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", EVERY),
        (" all ", EVERY),
        ("*:*", EVERY),
        ("refuge_train:*", [p for p in EVERY if p.startswith("refuge_train:")]),
        ("*:drishti_gs", [p for p in EVERY if p.endswith(":drishti_gs")]),
        ("* -> drishti_gs", [p for p in EVERY if p.endswith(":drishti_gs")]),
        ("drishti_gs:refuge_val", ["drishti_gs:refuge_val"]),
        ("drishti_gs->refuge_val", ["drishti_gs:refuge_val"]),
        (" drishti_gs -> refuge_val ", ["drishti_gs:refuge_val"]),
        ("Domain3:Domain1", ["refuge_train:drishti_gs"]),
        ("domain1->DOMAIN4", ["drishti_gs:refuge_val"]),
        ("DRISHTI_GS:my_clinic", ["drishti_gs:my_clinic"]),
        ("my_clinic:Domain1,Domain1:my_clinic", ["drishti_gs:my_clinic", "my_clinic:drishti_gs"]),
        ("Domain1:my_clinic,drishti_gs->my_clinic,", ["drishti_gs:my_clinic"]),
        ("drishti_gs:my_clinic,*:my_clinic", [p for p in EVERY if p.endswith(":my_clinic")]),
    ],
)
def test_what_a_pair_selector_matches(text: str, expected: list[str]) -> None:
    assert pairs(text) == expected


def test_the_order_follows_the_names_and_nothing_else() -> None:
    for domains in itertools.permutations(DOMAINS):
        assert pairs("all", list(domains)) == EVERY
    assert pairs("refuge_val:drishti_gs,drishti_gs:refuge_val") == [
        "drishti_gs:refuge_val",
        "refuge_val:drishti_gs",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("drishti_gs:drishti_gs", "two different domains"),
        ("Domain1:drishti_gs", "two different domains"),
        ("refuge:drishti_gs", "'refuge' is ambiguous.*refuge_train and refuge_val"),
        ("*:REFUGE", "ambiguous"),
        ("refuge_vall:drishti_gs", "no domain 'refuge_vall'.*did you mean 'refuge_val'"),
        ("*:my_clinik", "no domain 'my_clinik'.*did you mean 'my_clinic'"),
        ("rim_one_r3:*", "no domain 'rim_one_r3' here.*present: drishti_gs, my_clinic"),
        ("drishti_gs", "expected source:target"),
        ("a:b:c", "expected source:target"),
        (":drishti_gs", "expected source:target"),
        ("drishti_gs:", "expected source:target"),
        ("all,drishti_gs:my_clinic", "--pairs all: expected source:target"),
        ("", "matches no pair"),
        (" , ", "matches no pair"),
        ("drishti_gs:my_clinic,nope:my_clinic", "no domain 'nope'"),
    ],
)
def test_a_bad_pair_selector_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        pairs(text)
    assert caught.value.hint
    if "ambiguous" not in says:
        assert "--pairs" in caught.value.message


@pytest.mark.parametrize("domains", [[], ["drishti_gs"]])
def test_too_few_domains_match_no_pair(domains: list[str]) -> None:
    with pytest.raises(UsageError, match=r"matches no pair; domains present: (none|drishti_gs)"):
        pairs("all", domains)


def test_a_pair_prints_as_it_is_written() -> None:
    assert str(Pair("a", "b")) == "a:b"
    assert sorted([Pair("b", "a"), Pair("a", "c"), Pair("a", "b")])[0] == Pair("a", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpr", ["cpr"]),
        ("cpr,source_only", ["cpr", "source_only"]),
        (" source_only , cpr ,", ["source_only", "cpr"]),
        ("CPR,cpr,Cpr_Cbam", ["cpr", "cpr_cbam"]),
    ],
)
def test_methods_keep_the_given_order_without_repeats(text: str, expected: list[str]) -> None:
    assert parse_methods(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--methods names no method"),
        (",", "--methods names no method"),
        ("crp_cbam", "unknown name 'crp_cbam' among the methods.*did you mean 'cpr_cbam'"),
        ("cpr,zzz", "unknown name 'zzz'.*known: .*cpr"),
    ],
)
def test_a_bad_method_list_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_methods(text)
    assert caught.value.hint == "sfuda-bench ls methods"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("0..2", [0, 1, 2]),
        ("3..3", [3]),
        ("0..2,5", [0, 1, 2, 5]),
        ("5, 0 .. 2".replace(" .. ", ".."), [5, 0, 1, 2]),
        ("1,1,0..1", [1, 0]),
        ("007", [7]),
    ],
)
def test_seeds(text: str, expected: list[int]) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "-1", "a", "1.5", "2..1", "..2", "0..", "0..1..2", "1;2"]
)
def test_bad_seeds_name_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"--source-seeds .*expected integers"):
        parse_seeds(text, "--source-seeds")
