"""The vertical cup-to-disc ratio: how far a method's clinical number is from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from sfuda_bench.frames import read_parquet
from sfuda_bench.report.plain import PlainColumn, PlainTable
from sfuda_bench.report.records import CellRecord
from sfuda_bench.report.scope import Scope, chosen
from sfuda_bench.report.summary import statistic

LARGE_ERROR = 0.1
REFERRAL = 0.6
_LIMITS = 1.96  # standard deviations around the bias that hold 95 % of normal errors
_DIGITS = 12  # a ratio's difference of exactly 0.1 stays one in spite of binary fractions

COLUMNS = (
    PlainColumn("pair", "pair"),
    PlainColumn("method", "method"),
    PlainColumn("eyes", "eyes"),
    PlainColumn("undefined", "undefined"),
    PlainColumn("mae", "MAE", 3),
    PlainColumn("bias", "bias", 3, signed=True),
    PlainColumn("limit_low", "95 % low", 3, signed=True),
    PlainColumn("limit_high", "95 % high", 3, signed=True),
    PlainColumn("large_error_percent", f"|error| > {LARGE_ERROR} [%]", 1),
    PlainColumn("referral_agreement_percent", "referral agreement [%]", 1),
)


@dataclass(frozen=True)
class Agreement:
    """Predicted against true ratios.

    Attributes:
        eyes: Predictions of eyes whose true ratio is defined.
        undefined: Those without a predicted ratio, because no disc was predicted.
        mae: Mean absolute error of the defined predictions.
        bias: Mean of prediction minus truth.
        limit_low: Lower 95 % limit of agreement.
        limit_high: Upper 95 % limit of agreement.
        large_error_percent: Share of eyes with an absolute error above ``LARGE_ERROR``.
        referral_agreement_percent: Share of eyes on the same side of ``REFERRAL`` as the truth.
    """

    eyes: int | None = None
    undefined: int | None = None
    mae: float | None = None
    bias: float | None = None
    limit_low: float | None = None
    limit_high: float | None = None
    large_error_percent: float | None = None
    referral_agreement_percent: float | None = None


def agreement(prediction: Sequence[float], truth: Sequence[float]) -> Agreement:
    """Compare ratios, one prediction per eye and run.

    An undefined prediction (NaN) has no error, so it leaves the means; it counts as a large
    error and as a wrong referral, because the eye was not measured.

    Args:
        prediction: Predicted ratios.
        truth: True ratios in the same order; an eye without one is left out.

    Undefined:
        ``None`` where no eye remains; limits need two.
    """
    pairs = [(p, t) for p, t in zip(prediction, truth, strict=True) if not math.isnan(t)]
    if not pairs:
        return Agreement(eyes=0, undefined=0)
    errors = [round(p - t, _DIGITS) for p, t in pairs if not math.isnan(p)]
    undefined = len(pairs) - len(errors)
    large = undefined + sum(abs(error) > LARGE_ERROR for error in errors)
    agreed = sum((p >= REFERRAL) == (t >= REFERRAL) for p, t in pairs if not math.isnan(p))
    bias = statistic(errors)
    spread = None if bias.std is None else _LIMITS * bias.std
    return Agreement(
        eyes=len(pairs),
        undefined=undefined,
        mae=statistic([abs(error) for error in errors]).mean,
        bias=bias.mean,
        limit_low=None if bias.mean is None or spread is None else bias.mean - spread,
        limit_high=None if bias.mean is None or spread is None else bias.mean + spread,
        large_error_percent=100 * large / len(pairs),
        referral_agreement_percent=100 * agreed / len(pairs),
    )


def vcdr_table(scope: Scope, profile: str) -> PlainTable | None:
    """Build the table of one profile, or ``None`` when no eye was scored under it.

    Args:
        scope: The cells.
        profile: Name of the profile.
    """
    rows: list[tuple[str | int | float | None, ...]] = []
    for pair in scope.pairs:
        for row in scope.rows:
            cells = scope.cells_of(row, pair)
            found = _agreement_of(cells, profile, scope.selection) if cells else None
            rows.append(
                (scope.pair_name(pair), scope.row_name(row), *astuple(found or Agreement()))
            )
    if all(row[2] is None for row in rows):
        return None
    caption = (
        f"Scoring profile: {profile}. Selection: {scope.selection}.",
        "Error is prediction minus truth; every run's prediction of an eye counts once. "
        "Limits of agreement: bias ± 1.96 sample standard deviations.",
        "Undefined: no disc was predicted; such an eye leaves MAE, bias and limits, and counts as "
        "a large error and as a wrong referral.",
        f"Referral: vCDR >= {REFERRAL}.",
        *scope.marks,
    )
    title = "Vertical cup-to-disc ratio (vCDR) against the truth."
    return PlainTable(f"vcdr-{profile}", title, caption, COLUMNS, tuple(rows))


def _agreement_of(cells: Sequence[CellRecord], profile: str, selection: str) -> Agreement | None:
    prediction: list[float] = []
    truth: list[float] = []
    for cell in cells:
        path = cell.folder / f"eyes-{profile}.parquet"
        if not path.is_file():
            return None
        eyes = read_parquet(path)
        eyes = eyes[eyes["selection"] == chosen(cell, selection)]
        if eyes.empty:
            return None
        prediction += [float(value) for value in eyes["vcdr_prediction"].tolist()]
        truth += [float(value) for value in eyes["vcdr_truth"].tolist()]
    return agreement(prediction, truth)
