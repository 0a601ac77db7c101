"""Tables of an ablation: readable ones as Markdown and LaTeX, every number as CSV."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value, write_texts
from sfuda_bench.report.scope import ORACLE_MARK, SYNTHETIC_MARK, pair_label
from sfuda_bench.report.summary import MISSING
from sfuda_bench.search.effects import PARTS

Pair = tuple[str, str]
SYNTHETIC_SENTENCE = f"{SYNTHETIC_MARK} synthetic images, not of patients."
INTERVALS = (
    "95 % intervals over test images, paired by image: t for one run, hierarchical bootstrap "
    "(source seeds, seeds, images) for several."
)
OVER_PAIRS = "No interval over pairs is given for fewer than 6 distinct targets."
_STAGES = ("coverage", "purity", "dice", "area_bias")


def save_table(folder: Path, table: PlainTable, numbers: pd.DataFrame) -> list[Path]:
    """Write a readable table and, as its CSV, every number behind it.

    Args:
        folder: Of the study.
        table: What readers see.
        numbers: What machines read; columns with units or as described by their function.
    """
    csv = numbers.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    return write_texts(folder, table.name, table, csv)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's lines as dicts by column name."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def pair_name(pair: Pair, synthetic: Collection[Pair]) -> str:
    """Return how tables print a pair, or the mean over pairs; synthetic ones are marked."""
    if pair == ("all", "all"):
        return "mean over pairs"
    return f"{pair_label(pair)} {SYNTHETIC_MARK}" if pair in synthetic else pair_label(pair)


def estimate(value: float, low: float, high: float, decimals: int = 2) -> str:
    """Return ``+1.23 [+0.40, +2.06]``, without what is undefined."""
    if value is None or math.isnan(value):
        return MISSING
    # Adding 0.0 after rounding keeps a minus sign off a zero.
    texts = [f"{round(number, decimals) + 0.0:+.{decimals}f}" for number in (value, low, high)]
    return texts[0] if math.isnan(low) else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def effects_table(
    frame: pd.DataFrame,
    verdicts: pd.DataFrame,
    kinds: Sequence[str],
    name: str,
    title: str,
    caption: Sequence[str],
    synthetic: Collection[Pair],
) -> PlainTable:
    """Return one row per contrast and pair: the change of cup, disc and average Dice.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.effects`.
        verdicts: From :func:`~sfuda_bench.search.effects.inert`.
        kinds: Kinds of contrasts that are shown.
        name: Stem of its files.
        title: First sentence of the caption.
        caption: Further sentences.
        synthetic: Pairs that are marked.
    """
    shown = frame[frame["kind"].isin(kinds)]
    notes = {
        (row["kind"], row["name"]): row["verdict"]
        for row in records(verdicts)
        if "inert" in row["verdict"]
    }
    rows: list[tuple[Value, ...]] = []
    for (kind, contrast), part in shown.groupby(["kind", "name"], sort=False):
        for (source, target), found in part.groupby(["source", "target"], sort=False):
            by_structure = {row["structure"]: row for row in records(found)}
            texts = [_estimate_of(by_structure.get(structure)) for structure in PARTS]
            average = by_structure["avg"]
            remarks = [notes.get((str(kind), str(contrast)), ""), _pair_note(average)]
            rows.append(
                (
                    average["title"] if kind != "step" else f"{average['title']} (step)",
                    pair_name((str(source), str(target)), synthetic),
                    *texts,
                    _p_value(average["p_holm"]),
                    int(average["n_images"]),
                    "; ".join(filter(None, remarks)),
                )
            )
    columns = (
        PlainColumn("part", "part"),
        PlainColumn("pair", "pair"),
        *(PlainColumn(structure, f"{structure} [points]") for structure in PARTS),
        PlainColumn("p_holm", "p Holm, avg"),
        PlainColumn("n_images", "images"),
        PlainColumn("note", "note"),
    )
    return PlainTable(name, title, tuple(caption), columns, tuple(rows))


def _estimate_of(row: Mapping[str, Any] | None) -> str:
    return MISSING if row is None else estimate(row["effect"], row["ci_low"], row["ci_high"])


def _p_value(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _pair_note(row: Mapping[str, Any]) -> str:
    """Return what keeps a number from being given; that an interval is missing is no news."""
    note = str(row["note"])
    return "" if note.startswith("fewer than") else note


def rows_table(
    frame: pd.DataFrame,
    methods: Mapping[str, str],
    name: str,
    title: str,
    caption: Sequence[str],
    synthetic: Collection[Pair],
) -> PlainTable:
    """Return the mean Dice of every row of the study in every pair.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.means`.
        methods: Row to method.
        name: Stem of its files.
        title: First sentence of the caption.
        caption: Further sentences.
        synthetic: Pairs that are marked.
    """
    rows: list[tuple[Value, ...]] = []
    for (source, target), pair in frame.groupby(["source", "target"], sort=False):
        for row, found in pair.groupby("row", sort=False):
            by_structure = {part["structure"]: part for part in records(found)}
            texts = [_mean_of(by_structure[structure]) for structure in PARTS]
            average = by_structure["avg"]
            place = pair_name((str(source), str(target)), synthetic)
            counts = (int(average["n_images"]), int(average["runs"]))
            rows.append((place, str(row), methods[str(row)], *texts, *counts))
    columns = (
        PlainColumn("pair", "pair"),
        PlainColumn("row", "row"),
        PlainColumn("method", "method"),
        *(PlainColumn(f"dice_{structure}", f"{structure} Dice [%]") for structure in PARTS),
        PlainColumn("n_images", "images"),
        PlainColumn("runs", "runs"),
    )
    return PlainTable(name, title, tuple(caption), columns, tuple(rows), keys=3)


def _mean_of(row: Mapping[str, Any]) -> str:
    if math.isnan(row["dice"]):
        return MISSING
    ends = "" if math.isnan(row["ci_low"]) else f" [{row['ci_low']:.1f}, {row['ci_high']:.1f}]"
    return f"{row['dice']:.2f}{ends}"


def shares_table(
    frame: pd.DataFrame,
    name: str,
    caption: Sequence[str],
    synthetic: Collection[Pair],
) -> PlainTable:
    """Return how much of each gain its control has, per pair, for the mean of cup and disc.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.shares`.
        name: Stem of its files.
        caption: Further sentences.
        synthetic: Pairs that are marked.
    """
    rows: list[tuple[Value, ...]] = []
    for found in records(frame):
        gains = [
            estimate(found[part], found[f"{part}_low"], found[f"{part}_high"])
            for part in ("gain", "control", "rest", "without")
        ]
        share = MISSING
        if not math.isnan(found["share"]):
            ends = f" [{found['share_low']:.0f}, {found['share_high']:.0f}]"
            share = f"{found['share']:.0f} %{ends}"
        place = pair_name((found["source"], found["target"]), synthetic)
        rows.append((found["name"], place, found["structure"], *gains, share, found["note"]))
    columns = (
        PlainColumn("name", "method"),
        PlainColumn("pair", "pair"),
        PlainColumn("structure", "structure"),
        PlainColumn("gain", "gain [points]"),
        PlainColumn("control", "of it: control"),
        PlainColumn("rest", "beyond the control"),
        PlainColumn("without", "gain without it"),
        PlainColumn("share", "share of the control"),
        PlainColumn("note", "note"),
    )
    title = "How much of the gain over the baseline the control has already."
    return PlainTable(name, title, tuple(caption), columns, tuple(rows), keys=3)


def inert_table(frame: pd.DataFrame, name: str) -> PlainTable:
    """Return how often a part left the adapted network bit for bit as it was.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.inert`.
        name: Stem of its files.
    """
    rows = tuple(
        (
            row["title"] if row["kind"] != "step" else f"{row['title']} (step)",
            row["verdict"],
            row["identical"],
            row["compared"],
            row["same_key"],
        )
        for row in records(frame)
    )
    columns = (
        PlainColumn("part", "part"),
        PlainColumn("verdict", "verdict"),
        PlainColumn("identical", "identical networks"),
        PlainColumn("compared", "compared"),
        PlainColumn("same_key", "equal settings"),
    )
    title = "Parts that changed nothing: adapted networks with and without them, byte for byte."
    caption = (
        "Inert: every adapted network was identical with the part and without it.",
        "Equal settings: the preset has the same value at both positions, so it is one cell.",
    )
    return PlainTable(name, title, caption, columns, rows, keys=1)


def funnel_means(funnel: pd.DataFrame) -> pd.DataFrame:
    """Return the funnel per row, pair, structure and stage: mean over images, then over runs.

    Args:
        funnel: ``row``, ``source``, ``target``, ``source_seed``, ``seed``, ``stage``,
            ``order``, ``image``, ``structure``, ``coverage``, ``purity``, ``dice``,
            ``area_bias``, the last four as shares.

    Returns:
        The same per row, pair, stage and structure, in percent.

    Undefined:
        The purity of an image of which nothing is kept is left out; if there is none: NaN.
    """
    keys = ["row", "source", "target", "structure", "order", "stage"]
    values = list(_STAGES)
    rows = {row: place for place, row in enumerate(dict.fromkeys(funnel["row"].tolist()))}
    runs = funnel.groupby([*keys, "source_seed", "seed"], sort=True)[values].mean()
    averaged = runs.groupby(keys, sort=True)[values].mean() * 100
    frame = averaged.reset_index()
    frame["place"] = frame["row"].map(rows)
    ordered = frame.sort_values(["place", "source", "target", "structure", "order"])
    return ordered.drop(columns="place").reset_index(drop=True)


def funnel_table(
    frame: pd.DataFrame, name: str, caption: Sequence[str], synthetic: Collection[Pair]
) -> PlainTable:
    """Return the pseudo-label funnel, marked as using target labels.

    Args:
        frame: From :func:`funnel_means`.
        name: Stem of its files.
        caption: Further sentences.
        synthetic: Pairs that are marked.
    """
    rows: list[tuple[Value, ...]] = []
    for found in records(frame):
        place = pair_name((found["source"], found["target"]), synthetic)
        numbers = [None if math.isnan(found[key]) else float(found[key]) for key in _STAGES]
        rows.append(
            (f"{found['row']} {ORACLE_MARK}", place, found["structure"], found["stage"], *numbers)
        )
    columns = (
        PlainColumn("row", "row"),
        PlainColumn("pair", "pair"),
        PlainColumn("structure", "structure"),
        PlainColumn("stage", "stage"),
        PlainColumn("coverage", "coverage [%]", 1),
        PlainColumn("purity", "purity [%]", 2),
        PlainColumn("dice", "label Dice [%]", 2),
        PlainColumn("area_bias", "area bias [%]", 1, signed=True),
    )
    title = f"Pseudo-labels from stage to stage {ORACLE_MARK}."
    notes = (
        f"{ORACLE_MARK} uses target labels (oracle): a diagnosis, nothing that a method sees.",
        "Coverage: pixels kept. Purity: kept pixels whose label is right. Dice: of the label on "
        "all pixels. Area bias: labelled area against the true one. Means over images.",
        *caption,
    )
    return PlainTable(name, title, notes, columns, tuple(rows), keys=4)
