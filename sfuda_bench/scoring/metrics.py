"""Dice and surface distances of two binary masks, as pure functions.

Nothing here decides what an empty mask is worth: undefined values are NaN, and the profile
(``scoring.profiles``) turns them into a score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

# Distances are roots of integers, at least 1e-4 apart on any grid below 5,000 px. The slack
# only absorbs the rounding of a tolerance such as 0.02 x 150 px.
_TOLERANCE_SLACK_PX = 1e-9

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def dice(prediction: BoolArray, truth: BoolArray, smooth: float = 0.0) -> float:
    """Return the Dice coefficient (2|P and G| + smooth) / (|P| + |G| + smooth).

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        smooth: Added above and below the fraction; 1 in the code of DPL and CPR, where it
            lifts the score of small structures.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: If the shapes differ or an array is not bool.

    Undefined:
        NaN when both masks are empty and ``smooth`` is 0.
    """
    _check(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth) + smooth
    if total == 0:
        return float("nan")
    return float((2 * np.count_nonzero(prediction & truth) + smooth) / total)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The distance of each border pixel of one mask to the other mask's border.

    Attributes:
        prediction_to_truth_px: (n,) float64, one value per border pixel of the prediction.
        truth_to_prediction_px: (m,) float64, one value per border pixel of the truth.
    """

    prediction_to_truth_px: FloatArray
    truth_to_prediction_px: FloatArray

    @property
    def undefined(self) -> bool:
        """Whether a mask was empty, so that no distance exists."""
        return self.prediction_to_truth_px.size == 0

    @property
    def pooled_px(self) -> FloatArray:
        """Both directions in one list; the longer border counts more."""
        return np.concatenate([self.prediction_to_truth_px, self.truth_to_prediction_px])


def surface_distances(prediction: BoolArray, truth: BoolArray) -> SurfaceDistances:
    """Return the distances between the borders of two masks, in both directions.

    Every distance of this module derives from this one result, which costs one crop to the
    common bounding box and two Euclidean distance transforms.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        The distances between pixel centres, in pixels.

    Raises:
        ValueError: If the shapes differ or an array is not bool.

    Undefined:
        Both lists are empty when either mask is empty; every function below is then NaN.

    Source:
        The border and distance of medpy 0.5.2 (``medpy.metric.binary``, connectivity 1).
    """
    _check(prediction, truth)
    if not (prediction.any() and truth.any()):
        return SurfaceDistances(np.empty(0), np.empty(0))
    window = _bounding_box(prediction | truth)
    prediction_border = _border(prediction[window])
    truth_border = _border(truth[window])
    return SurfaceDistances(
        distance_transform_edt(~truth_border)[prediction_border],
        distance_transform_edt(~prediction_border)[truth_border],
    )


def assd_directed(distances: SurfaceDistances) -> float:
    """Return the mean of the two directed mean distances, in pixels.

    Both directions weigh the same however long the borders are. This is what the papers of
    this field print as "ASD".

    Undefined:
        NaN when a mask is empty.

    Source:
        ``medpy.metric.binary.assd`` of medpy 0.4.0, which DPL and CPR call.
    """
    if distances.undefined:
        return float("nan")
    forward = distances.prediction_to_truth_px.mean()
    backward = distances.truth_to_prediction_px.mean()
    return float((forward + backward) / 2)


def assd_pooled(distances: SurfaceDistances) -> float:
    """Return the mean over the distances of both directions together, in pixels.

    Undefined:
        NaN when a mask is empty.

    Source:
        ``medpy.metric.binary.assd`` of medpy 0.5.2.
    """
    return float("nan") if distances.undefined else float(distances.pooled_px.mean())


def hd95(distances: SurfaceDistances) -> float:
    """Return the 95th percentile of the pooled distances of both directions, in pixels.

    Other tools take the larger of two directed percentiles (MetricsReloaded) or weigh by
    surface element (surface-distance); on the same masks these differ.

    Undefined:
        NaN when a mask is empty.

    Source:
        ``medpy.metric.binary.hd95``, linear interpolation between ranks.
    """
    return float("nan") if distances.undefined else float(np.percentile(distances.pooled_px, 95))


def nsd(distances: SurfaceDistances, tolerance_px: float) -> float:
    """Return the normalised surface Dice: the share of border pixels within a tolerance.

    Border pixels count equally (as in MONAI and MetricsReloaded), not by surface element.

    Args:
        distances: Of both directions.
        tolerance_px: Largest distance, inclusive, that counts as agreement, in pixels.

    Returns:
        A fraction in [0, 1].

    Undefined:
        NaN when a mask is empty.
    """
    if distances.undefined:
        return float("nan")
    return float(np.mean(distances.pooled_px <= tolerance_px + _TOLERANCE_SLACK_PX))


def _check(prediction: BoolArray, truth: BoolArray) -> None:
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise ValueError(
            f"masks must be (H, W) of one shape, got {prediction.shape} and {truth.shape}"
        )
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")


def _bounding_box(mask: BoolArray) -> tuple[slice, slice]:
    """Return the window of a non-empty mask; it holds both borders, so all distances."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _border(mask: BoolArray) -> BoolArray:
    """Return the pixels that erosion with the 4-neighbour cross would remove.

    Outside the array is background, so object pixels on the image edge are border.
    """
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
