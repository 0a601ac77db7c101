"""What a fixed pool says about ways to choose: tables and the picture of regrets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value, write_texts
from sfuda_bench.report.scope import ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.search.objectives import CellResult

_MEAN = "avg"
_CAPTION = (
    "Every configuration and every epoch is a candidate, the unadapted source model among them; "
    "all are computed before any objective chooses, so nothing is searched with labels.",
    "Mean Dice of cup and disc on the target test images, in points. Regret: the oracle's Dice "
    "minus the chosen one's; gain: the chosen one's minus the source model's; 95 % intervals over "
    "images, paired, for fixed candidates. Harm: the chosen one is worse than the source model.",
    "Filter: candidates that collapsed are rejected first.",
)


@dataclass(frozen=True)
class PoolFindings:
    """The judged pool.

    Attributes:
        results: One row per method, pair, objective, filter and structure.
        summary: One row per method, objective and filter.
        tables: Readable ones.
        paths: Files written.
    """

    results: pd.DataFrame
    summary: pd.DataFrame
    tables: tuple[PlainTable, ...]
    paths: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers; NaN becomes null."""
        return {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in (("results", self.results), ("summary", self.summary))
        }


def judge_pool(
    trials: Mapping[str, Mapping[int, Sequence[CellResult]]],
    defaults: Mapping[str, Sequence[CellResult]],
    *,
    out: Path,
    folder: Path,
    profile: str,
    synthetic: bool,
    title: str,
    remarks: Sequence[str] = (),
) -> PoolFindings:
    """Judge every objective on a finished pool and write its files.

    Args:
        trials: Method to trial number to its cells.
        defaults: Method to the cells of its default settings.
        out: The store.
        folder: The study's folder.
        profile: Scoring profile.
        synthetic: Whether the images are drawn.
        title: Of the tables.
        remarks: Further sentences of the captions.
    """
    from sfuda_bench.search.pictures import save
    from sfuda_bench.search.pictures_effects import regret_plot
    from sfuda_bench.search.pool import analyse, read_pool, summary

    cells = _cells(trials, defaults, out, synthetic)
    results = analyse(read_pool(cells, profile))
    over_pairs = summary(results)
    drawn = (
        _summary_table(over_pairs, title, synthetic),
        _results_table(results, title, synthetic),
    )
    tables = tuple(replace(table, caption=(*table.caption, *remarks)) for table in drawn)
    paths: list[Path] = []
    for table, frame in zip(tables, (over_pairs, results), strict=True):
        numbers = frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        paths += write_texts(folder, table.name, table, numbers)
    means = results[results["structure"] == _MEAN]
    paths += save(regret_plot(means, title=title, synthetic=synthetic), folder, "regret")
    return PoolFindings(results, over_pairs, tables, tuple(paths))


def _cells(
    trials: Mapping[str, Mapping[int, Sequence[CellResult]]],
    defaults: Mapping[str, Sequence[CellResult]],
    out: Path,
    synthetic: bool,
) -> pd.DataFrame:
    """Return one line per cell; the default settings come after the last trial."""
    rows = []
    for method, by_number in trials.items():
        after = max(by_number, default=-1) + 1
        for number, results in {**by_number, after: defaults[method]}.items():
            for result in results:
                source, _, target = result.pair.partition(":")
                rows.append(
                    {
                        "method": method,
                        "trial": number,
                        "source": source,
                        "target": target,
                        "source_seed": result.source_seed,
                        "seed": result.seed,
                        "folder": str(out / result.folder),
                        "default": number == after,
                        "synthetic": synthetic,
                    }
                )
    return pd.DataFrame(rows)


def _results_table(results: pd.DataFrame, title: str, synthetic: bool) -> PlainTable:
    rows: list[tuple[Value, ...]] = []
    for row in results[results["structure"] == _MEAN].to_dict("records"):
        pair = f"{row['source']}:{row['target']}"
        rows.append(
            (
                str(row["method"]),
                f"{pair} {SYNTHETIC_MARK}" if synthetic else pair,
                _objective(row),
                _candidate(row),
                _number(row["dice"]),
                _interval(row, "regret"),
                _interval(row, "gain"),
                _number(row["relative_regret"]),
                "" if pd.isna(row["harm"]) else "yes" if row["harm"] else "no",
                _number(row["spearman"]),
                _number(row["weighted_spearman"]),
                _number(row["top_5"]),
            )
        )
    columns = (
        PlainColumn("method", "Method"),
        PlainColumn("pair", "Pair"),
        PlainColumn("objective", "Objective"),
        PlainColumn("candidate", "Trial, epoch"),
        PlainColumn("dice_points", "Dice"),
        PlainColumn("regret", "Regret"),
        PlainColumn("gain", "Gain"),
        PlainColumn("relative_regret", "Share of the oracle's gain"),
        PlainColumn("harm", "Harm"),
        PlainColumn("spearman", "Spearman"),
        PlainColumn("weighted_spearman", "Weighted"),
        PlainColumn("top_5", "Best five"),
    )
    return PlainTable("pool", title, _caption(synthetic), columns, tuple(rows), keys=3)


def _summary_table(frame: pd.DataFrame, title: str, synthetic: bool) -> PlainTable:
    rows: list[tuple[Value, ...]] = [
        (
            str(row["method"]),
            _objective(row),
            int(row["pairs"]),
            _interval(row, "regret", "mean_regret"),
            _number(row["median_regret"]),
            _number(row["worst_regret"]),
            None if pd.isna(row["harm_rate"]) else 100 * float(row["harm_rate"]),
            _number(row["mean_spearman"]),
            _number(row["mean_weighted_spearman"]),
        )
        for row in frame.to_dict("records")
    ]
    columns = (
        PlainColumn("method", "Method"),
        PlainColumn("objective", "Objective"),
        PlainColumn("pairs", "Pairs"),
        PlainColumn("mean_regret", "Mean regret"),
        PlainColumn("median_regret", "Median"),
        PlainColumn("worst_regret", "Worst"),
        PlainColumn("harm_rate_percent", "Harm rate %", decimals=0),
        PlainColumn("spearman", "Spearman"),
        PlainColumn("weighted_spearman", "Weighted"),
    )
    caption = (
        *_caption(synthetic),
        "Over pairs; no interval for fewer than 6 distinct targets.",
    )
    return PlainTable("pool-summary", title, caption, columns, tuple(rows), keys=2)


def _caption(synthetic: bool) -> tuple[str, ...]:
    marks = [f"{ORACLE_MARK} uses target labels (oracle)."]
    if synthetic:
        marks.append(f"{SYNTHETIC_MARK} synthetic images, not of patients.")
    return (*_CAPTION, *marks)


def _objective(row: Mapping[Any, Any]) -> str:
    text = f"{row['objective']}, filter" if row["filtered"] else str(row["objective"])
    return f"{text} {ORACLE_MARK}" if row["oracle"] else text


def _candidate(row: Mapping[Any, Any]) -> str | None:
    if pd.isna(row["trial"]):
        return str(row["note"]) or None
    trial, epoch = int(row["trial"]), int(row["epoch"])
    return "source model" if epoch == 0 else f"{trial}, {epoch}"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _interval(row: Mapping[Any, Any], name: str, value: str = "") -> str | None:
    middle, low, high = row[value or name], row[f"{name}_low"], row[f"{name}_high"]
    if pd.isna(middle):
        return None
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{middle:.2f}{ends}"
