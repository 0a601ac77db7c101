"""Scores of stored predictions: one row per image and structure, one per eye."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_float_dtype

from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.scoring import metrics
from sfuda_bench.scoring.codes import STRUCTURES, upsample
from sfuda_bench.scoring.profiles import Profile
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio, vertical_extent_px

SCORER_VERSION = 1
"""Part of every score key; raised whenever a number below changes."""

ENGINES = ("core", "medpy")
DISTANCES = ("assd_directed_px", "assd_pooled_px", "hd95_px")
CASE_COLUMNS = (
    "image",
    "structure",
    "dice",
    *DISTANCES,
    "nsd",
    "empty_prediction",
    "empty_truth",
    "disc_diameter_px",
    "area_prediction",
    "area_truth",
)
EYE_COLUMNS = ("image", "vcdr_prediction", "vcdr_truth", "vcdr_error")

BoolArray = NDArray[np.bool_]
Row = dict[str, Any]


def score_image(
    codes: NDArray[np.uint8], mask: BoolArray, profile: Profile, engine: str = "core"
) -> tuple[list[Row], Row]:
    """Return the scores of one image under a profile.

    Args:
        codes: (2, S, S) uint8 stored prediction (``codes.encode``), cup first.
        mask: (2, G, G) bool ground truth on the evaluation grid, cup first.
        profile: The scoring rules.
        engine: ``core`` (ours) or ``medpy``, an independent reference: then Dice without
            smoothing and all three distances are medpy's; smoothed Dice, NSD and what an
            empty mask is worth stay ours.

    Returns:
        The cup's and the disc's case (``CASE_COLUMNS`` without the image; distances in
        pixels of the evaluation grid, areas as shares of it) and the eye's row
        (``EYE_COLUMNS`` without the image; ``vcdr_error`` is prediction minus truth).

    Raises:
        UsageError: If the engine is unknown.
        EnvironmentProblem: If medpy is asked for and cannot be imported.
        ValueError: If a shape or dtype is wrong.

    Undefined:
        ``disc_diameter_px`` is NaN when the true disc is empty, and the NSD tolerance is
        then 0. A vCDR is NaN when its disc is empty.
    """
    _check(codes, mask, engine)
    prediction = profile.segment(upsample(codes, mask.shape[-1]))
    diameter_px = float(vertical_extent_px(mask[1]))
    cases = [
        {
            "structure": structure,
            **_case(prediction[channel], mask[channel], diameter_px, profile, engine),
        }
        for channel, structure in enumerate(STRUCTURES)
    ]
    return cases, _eye(prediction, mask)


def score_set(
    codes: NDArray[np.uint8],
    masks: BoolArray,
    images: Sequence[str],
    profile: Profile,
    engine: str = "core",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of a set of images; no image's score depends on another.

    Args:
        codes: (N, 2, S, S) uint8, see ``score_image``.
        masks: (N, 2, G, G) bool.
        images: N names.
        profile: The scoring rules.
        engine: ``core`` or ``medpy``.

    Returns:
        Cases (2 N rows, ``CASE_COLUMNS``) and eyes (N rows, ``EYE_COLUMNS``), in the order
        of the images.

    Raises:
        UsageError: If the engine is unknown.
        EnvironmentProblem: If medpy is asked for and cannot be imported.
        ValueError: If the three lengths differ, or a shape or dtype is wrong.
    """
    _check_engine(engine)
    if not len(codes) == len(masks) == len(images):
        raise ValueError(
            f"{len(codes)} predictions, {len(masks)} masks and {len(images)} image names"
        )
    cases: list[Row] = []
    eyes: list[Row] = []
    for image, code, mask in zip(images, codes, masks, strict=True):
        image_cases, eye = score_image(code, mask, profile, engine)
        cases += [{"image": image, **case} for case in image_cases]
        eyes.append({"image": image, **eye})
    return pd.DataFrame(cases, columns=[*CASE_COLUMNS]), pd.DataFrame(eyes, columns=[*EYE_COLUMNS])


def average_selections(cases: pd.DataFrame, k: int) -> pd.DataFrame:
    """Return each case's mean over the last k epochs (selection ``average-last-k``).

    Columns are told apart by type: floats are scores and are averaged (a NaN distance
    leaves the mean, as in the profile that made it), booleans are flags and hold if they
    held at any of the epochs, and the rest names the case.

    Args:
        cases: Rows of ``score_set`` with an integer ``epoch``. Epoch 0, the unadapted
            source model, never enters.
        k: Number of epochs, at least 1.

    Returns:
        One row per case in the order of the input, without ``epoch`` and ``selection``.

    Raises:
        UsageError: If ``epoch`` is missing, or a case has fewer than k adapted epochs:
            an average over fewer would carry the wrong name.
    """
    _check_epochs(cases)
    if k < 1:
        raise UsageError(f"average-last-k needs k of at least 1, got {k}")
    cases = cases.drop(columns="selection", errors="ignore")
    scores = [name for name in cases.columns if is_float_dtype(cases[name])]
    flags = [name for name in cases.columns if is_bool_dtype(cases[name])]
    keys = [name for name in cases.columns if name not in {"epoch", *scores, *flags}]
    by_case: dict[str, Any] = {"by": keys, "sort": False, "dropna": False, "observed": True}
    adapted = cases[cases["epoch"] > 0].sort_values("epoch", kind="stable")
    last = adapted.groupby(**by_case).tail(k).groupby(**by_case)
    recorded = int(last.size().min()) if len(adapted) else 0
    if recorded < k:
        raise UsageError(
            f"average-last-{k} needs {k} epochs after adaptation began, {recorded} recorded",
            hint=f"use average-last-{recorded}" if recorded else "run with --track epochs",
        )
    averaged = last.agg(dict.fromkeys(scores, "mean") | dict.fromkeys(flags, "any"))
    # Merging onto the input's own cases restores their order, whatever the epochs' order.
    result = cases[keys].drop_duplicates().merge(averaged.reset_index(), on=keys)
    return result[[name for name in cases.columns if name != "epoch"]]


def oracle_epoch(cases: pd.DataFrame) -> int:
    """Return the epoch with the best mean over images of (cup Dice + disc Dice) / 2.

    It reads the target test labels, so it is an upper bound and never a result. Epoch 0,
    the unadapted source model, is a candidate; a tie goes to the earlier epoch.

    Args:
        cases: Rows of ``score_set`` of one cell with an integer ``epoch``.

    Raises:
        UsageError: If ``epoch`` is missing or there are no rows.
    """
    _check_epochs(cases)
    ordered = cases.sort_values(["epoch", "structure", "image"])
    by_structure = ordered.groupby(["epoch", "structure"])["dice"].mean()
    # Rounded, so that a tie is a tie in spite of the last bits of a sum.
    average = by_structure.groupby("epoch").mean().round(12)
    return int(cast(int, average.idxmax()))


def _case(
    prediction: BoolArray, truth: BoolArray, disc_diameter_px: float, profile: Profile, engine: str
) -> Row:
    empty = (not prediction.any(), not truth.any())
    tolerance_px = profile.nsd_tolerance_share * disc_diameter_px
    if any(empty):
        scores = _score_empty(prediction, truth, profile)
    elif engine == "medpy":
        scores = _score_medpy(prediction, truth, profile, tolerance_px)
    else:
        scores = _score_core(prediction, truth, profile, tolerance_px)
    return {
        **scores,
        "empty_prediction": empty[0],
        "empty_truth": empty[1],
        "disc_diameter_px": disc_diameter_px or math.nan,
        "area_prediction": float(prediction.mean()),
        "area_truth": float(truth.mean()),
    }


def _score_core(
    prediction: BoolArray, truth: BoolArray, profile: Profile, tolerance_px: float
) -> Row:
    distances = metrics.surface_distances(prediction, truth)
    return {
        "dice": metrics.dice(prediction, truth, profile.smooth),
        "assd_directed_px": metrics.assd_directed(distances),
        "assd_pooled_px": metrics.assd_pooled(distances),
        "hd95_px": metrics.hd95(distances),
        "nsd": metrics.nsd(distances, tolerance_px),
    }


def _score_medpy(
    prediction: BoolArray, truth: BoolArray, profile: Profile, tolerance_px: float
) -> Row:
    """Return the same scores with what medpy defines computed by medpy."""
    medpy = _import_medpy()
    scores = _score_core(prediction, truth, profile, tolerance_px)
    if profile.smooth == 0:
        scores["dice"] = float(medpy.dc(prediction, truth))
    directed_px = (medpy.asd(prediction, truth), medpy.asd(truth, prediction))
    scores["assd_directed_px"] = float(sum(directed_px) / 2)
    scores["assd_pooled_px"] = float(medpy.assd(prediction, truth))
    scores["hd95_px"] = float(medpy.hd95(prediction, truth))
    return scores


def _score_empty(prediction: BoolArray, truth: BoolArray, profile: Profile) -> Row:
    """Return what the profile's policy gives a case with at least one empty mask."""
    both = not (prediction.any() or truth.any())
    if profile.empty_policy == "exclude":
        overlap = 1.0 if both else metrics.dice(prediction, truth, profile.smooth)
        return {"dice": overlap, **dict.fromkeys(DISTANCES, math.nan), "nsd": math.nan}
    worst = 1.0 if both else 0.0
    distance_px = 0.0 if both else math.hypot(*truth.shape)
    return {"dice": worst, **dict.fromkeys(DISTANCES, distance_px), "nsd": worst}


def _eye(prediction: BoolArray, mask: BoolArray) -> Row:
    vcdr_prediction = vertical_cup_to_disc_ratio(prediction)
    vcdr_truth = vertical_cup_to_disc_ratio(mask)
    return {
        "vcdr_prediction": vcdr_prediction,
        "vcdr_truth": vcdr_truth,
        "vcdr_error": vcdr_prediction - vcdr_truth,
    }


def _import_medpy() -> Any:
    # Imported only when asked for: medpy is slow to import, and GPL code that is called but
    # never copied or built upon.
    try:
        return importlib.import_module("medpy.metric.binary")
    except ImportError as error:
        raise EnvironmentProblem(
            f"the engine 'medpy' cannot be imported: {error}", hint="pip install 'medpy>=0.5.2'"
        ) from error


def _check(codes: NDArray[np.uint8], mask: BoolArray, engine: str) -> None:
    _check_engine(engine)
    if mask.dtype != np.bool_ or mask.ndim != 3 or mask.shape[1] != mask.shape[2]:
        raise ValueError(f"mask must be bool (2, G, G), got {mask.dtype} {mask.shape}")
    if codes.ndim != 3 or not len(codes) == len(mask) == len(STRUCTURES):
        raise ValueError(
            f"codes and mask must have the channels {STRUCTURES}, got {codes.shape} {mask.shape}"
        )


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise UsageError(
            f"unknown scoring engine {engine!r}, expected one of {', '.join(ENGINES)}",
            hint="rescore --engine core",
        )


def _check_epochs(cases: pd.DataFrame) -> None:
    if "epoch" not in cases.columns or cases.empty:
        raise UsageError(
            "selecting among epochs needs the scores of every epoch, and none were recorded",
            hint="run with --track epochs",
        )
