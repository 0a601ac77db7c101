"""Every benchmark runs at its smallest size, and what it compares is equal there."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks import __main__ as command  # noqa: E402
from tests.benchmarks import harness  # noqa: E402

WITHOUT_RESULT = {"report"}  # its reference only reads what ours reads and computes from
SLOW = {"report", "scaling"}


@pytest.fixture(autouse=True)
def torch_state() -> Iterator[None]:
    """Put back the global settings that a benchmark run changes."""
    threads, checks = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(checks)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in command.names()],
)
def test_a_benchmark_runs_and_its_results_equal_the_reference(name: str) -> None:
    rows = importlib.import_module(f"tests.benchmarks.bench_{name}").rows(full=False)
    assert rows
    for row in rows:
        assert row.reference > 0 and row.ours > 0, row.name
        assert row.equal, f"{row.name}: {row.difference} > {row.allowed}"
    if name not in WITHOUT_RESULT:
        assert any(not math.isnan(row.difference) for row in rows)


def test_a_missed_aim_or_another_result_shows_in_the_table() -> None:
    missed = harness.Row("slow", 2.0, 1.0, 2.0, aim=3.0, difference=0.0, allowed=0.0)
    differs = harness.Row("wrong", 2.0, 1.0, 2.0, aim=2.0, difference=0.1, allowed=1e-3)
    assert not missed.met and missed.equal and differs.met and not differs.equal
    for table in (harness.plain_table([missed, differs]), harness.markdown_table([missed])):
        assert "NO" in table
    assert "DIFFERS" in harness.plain_table([differs])


def test_repetitions_alternate_and_the_ratio_is_that_of_pairs() -> None:
    calls: list[str] = []
    harness.interleaved(lambda: calls.append("plain"), lambda: calls.append("ours"), 3)
    assert calls == ["plain", "ours"] * 4
    timing = harness.Timing((4.0, 40.0, 6.0), (2.0, 10.0, 3.0))
    row = timing.row("pairs")
    assert (row.reference, row.ours, row.ratio, row.spread) == (6.0, 3.0, 2.0, (2.0, 4.0))


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def one_after_another() -> None:
        for _ in range(5):
            torch.ones(250_000)

    def together() -> list[torch.Tensor]:
        return [torch.ones(250_000) for _ in range(5)]

    assert harness.peak_mb(one_after_another) == pytest.approx(1.0, rel=0.01)
    assert harness.peak_mb(together) == pytest.approx(5.0, rel=0.01)


def test_the_command_writes_the_table_and_all_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "table.md", tmp_path / "values.json"]
    words = ["refinement", "--small", "--markdown", str(files[0]), "--json", str(files[1])]
    assert command.main(words) == 0
    assert "refinement t=4" in capsys.readouterr().out
    assert files[0].read_text("utf-8").startswith("| benchmark |")
    values = json.loads(files[1].read_text("utf-8"))
    assert values["machine"]["threads"] == 1 and values["rows"][0]["equal"] is True
    with pytest.raises(SystemExit):
        command.main(["nothing"])
