from __future__ import annotations

from pathlib import Path

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.report.published import (
    NOT_STATED,
    PARTS,
    PublishedValue,
    published_folder,
    read_published,
)

VALUES = [value for values in read_published().values() for value in values]
VALID = """\
name = "t"
title = "T"
source = "Paper, Table 1, page 5"
profile = "standard"
protocol = "offline"
selection = "last"
[setting]
source_model = "own"
[[result]]
method = "m"
pair = "a:b"
metric = "dice"
cup = 80.10
"""


def read(tmp_path: Path, text: str) -> list[PublishedValue]:
    (tmp_path / "t.toml").write_text(text, "utf-8")
    return read_published(tmp_path)["t"]


def find(table: str, method: str, pair: str, metric: str) -> dict[str, float]:
    source, target = pair.split(":")
    return {
        value.structure: value.value
        for value in VALUES
        if (value.table, value.method, value.metric) == (table, method, metric)
        and value.pair == (source, target)
        and value.selection != "epoch-1"
    }


@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{v.table}-{v.method}-{v.structure}")
def test_every_number_has_a_source_and_a_possible_value(value: PublishedValue) -> None:
    assert len(value.source) > 5
    assert value.structure in PARTS
    assert value.std is None or 0 < value.std < 100
    if value.metric == "dice":
        assert 40 < value.value < 100  # a fraction in place of percent would be seen here


def test_averages_are_those_of_cup_and_disc() -> None:
    """Where all three are printed; a slip of the pen would break the sum."""
    groups: dict[tuple[object, ...], dict[str, PublishedValue]] = {}
    for value in VALUES:
        key = (value.table, value.method, value.pair, value.metric, value.selection, value.source)
        groups.setdefault((*key, value.notes), {})[value.structure] = value
    full = [group for group in groups.values() if set(group) == set(PARTS)]
    assert len(full) >= 18
    for group in full:
        mean = (group["cup"].value + group["disc"].value) / 2
        tolerance = 0.5 * 10.0 ** -group["avg"].decimals + 0.005 + 1e-9
        assert group["avg"].value == pytest.approx(mean, abs=tolerance), group["avg"]


def test_the_reports_table_is_complete() -> None:
    drishti_rim, refuge_drishti = "drishti_gs:rim_one_r3", "refuge_val:drishti_gs"
    expected = {
        ("cpr", drishti_rim, "dice"): (73.43, 94.50, 83.97),
        ("cpr", drishti_rim, "asd"): (11.83, 5.04, 8.43),
        ("cpr_cbam", drishti_rim, "dice"): (73.84, 94.94, 84.39),
        ("cpr_cbam", drishti_rim, "asd"): (9.96, 4.63, 7.30),
        ("cpr", refuge_drishti, "dice"): (80.10, 93.36, 86.73),
        ("cpr", refuge_drishti, "asd"): (13.41, 7.27, 10.34),
        ("cpr_cbam", refuge_drishti, "dice"): (83.76, 96.55, 90.15),
        ("cpr_cbam", refuge_drishti, "asd"): (11.00, 3.86, 7.43),
    }
    for key, numbers in expected.items():
        assert find("table1", *key) == dict(zip(PARTS, numbers, strict=True)), key
    assert sum(value.table == "table1" for value in VALUES) == 24


def test_numbers_of_threads_and_readmes_are_as_seen() -> None:
    cpr = find("cpr-readme", "cpr", "drishti_gs:rim_one_r3", "dice")
    assert cpr == {"cup": 75.03, "disc": 95.03, "avg": 85.03}
    dpl = find("dpl-issues", "dpl", "refuge_train:drishti_gs", "asd")
    assert dpl == {"cup": 12.3657, "disc": 4.0131, "avg": 8.1894}


def test_the_five_sources_average_to_the_printed_mean() -> None:
    for method, mean in (("source_only", 65.86), ("entropy_min", 68.13)):
        values = [v for v in VALUES if v.table == "dehocta" and v.method == method]
        first = {v.pair[0]: v.value for v in values if v.notes.endswith("Round 1.")}
        assert first.pop("five") == mean
        assert sum(first.values()) / 5 == pytest.approx(mean, abs=0.011)


def test_digits_are_kept_as_printed(tmp_path: Path) -> None:
    (value,) = read(tmp_path, VALID)
    assert (value.value, value.decimals) == (80.1, 2)
    assert value.pair == ("a", "b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "Paper, Table 1, page 5"\n', "", "lacks source"),
        ('source = "Paper, Table 1, page 5"', 'source = " "', "lacks source"),
        ('profile = "standard"', 'profile = "beal-1900"', "profile = 'beal-1900'"),
        ('metric = "dice"', 'metric = "iou"', "metric = 'iou'"),
        ("cup = 80.10", "cup = 180.1", "cup = 180.1"),
        ("cup = 80.10", 'cup = "80"', "expected a number"),
        ("cup = 80.10", "", "no number"),
        ("cup = 80.10", "cupp = 80.10", "unknown key 'cupp'"),
        ('pair = "a:b"', 'pair = "a-b"', "expected source:target"),
        ('source_model = "own"', 'source_model = "mine"', "source_model = 'mine'"),
        ('name = "t"', "name = ", "not readable"),
        ("[[result]]", VALID[VALID.index("[[result]]") :] + "[[result]]", "twice"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(UsageError, match=message):
        read(tmp_path, VALID.replace(old, new, 1))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(VALID, "utf-8")
    (tmp_path / "b.toml").write_text(VALID, "utf-8")
    with pytest.raises(UsageError, match="taken"):
        read_published(tmp_path)


def test_what_a_source_does_not_state_is_not_filled_in() -> None:
    assert {v.selection for v in VALUES if v.table == "table1"} == {NOT_STATED}
    assert all(NOT_STATED in v.pair for v in VALUES if v.table in ("abstracts", "leaderboards"))
    assert (published_folder() / "README.md").is_file()
