from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sfuda_bench.report.numbers import command_name, numbers_tex, write_numbers
from sfuda_bench.report.tables import store_tables

COMMAND = re.compile(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}")


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("standard", "rim_one_r3"), "SfStandardRimOneRThree"),
        (("cpr-2023", "CPR + CBAM"), "SfCprTwoZeroTwoThreeCPRCBAM"),
        (("a→b", "β = 0.5"), "SfABZeroFive"),
    ],
)
def test_a_name_has_letters_only(parts: tuple[str, ...], name: str) -> None:
    assert command_name(*parts) == name


def test_every_number_of_the_table_has_its_own_command(make_store: Callable[..., Any]) -> None:
    store = make_store()
    tables = store_tables(store.out)
    lines = numbers_tex(tables).splitlines()
    found = [match for line in lines if (match := COMMAND.fullmatch(line))]
    names = [match[1] for match in found]
    assert len(names) == len(set(names)) == len(lines) - 2
    assert len(names) == 3 * sum(len(b.rows) * len(b.rows[0].cells) for b in tables[0].blocks)
    values = {match[1]: match[2] for match in found}
    assert values["SfStandardDrishtiGsRimOneRThreeCprCbamDiceCupMean"] == "80.00"
    assert values["SfStandardDrishtiGsRimOneRThreeTentOnlineDiceCupMean"] == "--"


def test_labels_that_differ_in_punctuation_keep_apart(make_store: Callable[..., Any]) -> None:
    (table,) = store_tables(make_store().out)
    block = table.blocks[0]
    twins = tuple(replace(row, label=label) for row, label in zip(block.rows, "+-", strict=False))
    text = numbers_tex([replace(table, blocks=(replace(block, rows=twins),))])
    names = re.findall(r"newcommand\{\\(\w+)\}", text)
    assert len(names) == len(set(names)) == 36
    assert names[0].endswith("VariantA")


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    texts = {
        write_numbers(make_store(name, shuffle).out)[0].read_bytes()
        for name, shuffle in (("a", None), ("b", 1), ("c", 2))
    }
    assert len(texts) == 1
