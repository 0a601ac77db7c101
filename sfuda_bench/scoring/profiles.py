"""Scoring profiles: everything that turns one stored prediction into different numbers.

A profile is data. The same predictions can be scored under every profile at any time, and
a score is only comparable with scores of the same profile.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.postprocess import PostProcessing, postprocess

EmptyPolicy = Literal["worst", "exclude"]
AsdDefinition = Literal["directed", "pooled"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One complete set of scoring rules.

    Attributes:
        name: What ``--profile`` and the tables call it.
        version: Raised whenever the profile's numbers change.
        threshold: A pixel belongs to a structure where prob > threshold, strictly.
        cup_threshold: The cup's own threshold, or ``None`` for the same.
        postprocessing: What is done to each thresholded structure.
        smooth: Added above and below the Dice fraction.
        empty_policy: What a case is worth when the prediction or the truth is empty.
            ``worst``: one empty scores Dice 0, NSD 0 and the evaluation grid's diagonal as
            every distance; both empty score 1, 1 and 0. Nothing is dropped.
            ``exclude``: distances and NSD are NaN, so the case leaves their means and is
            counted; Dice is the (smoothed) formula, and 1 when both are empty.
        asd_definition: Which ASSD the tables print as ASD: ``directed`` (mean of the two
            directed means) or ``pooled``. Both are always computed.
        nsd_tolerance_share: Tolerance of NSD as a share of the true disc's vertical
            diameter, for cup and disc alike (fundus images carry no millimetres).
        description: One sentence for captions and ``--help``; changes no number.
    """

    name: str
    version: int
    threshold: float
    smooth: float
    empty_policy: EmptyPolicy
    asd_definition: AsdDefinition
    nsd_tolerance_share: float = 0.02
    cup_threshold: float | None = None
    postprocessing: PostProcessing = "none"
    description: str = ""

    def digest_fields(self) -> dict[str, Any]:
        """Return the JSON-able fields that decide the numbers, for a score key.

        A rule that came after scores had been stored is left out where it changes nothing.
        """
        fields = asdict(self)
        del fields["description"]
        for name, plain in _ADDED.items():
            if fields[name] == plain:
                del fields[name]
        return fields

    def segment(self, prob: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return what a predicted probability counts as.

        Args:
            prob: (2, G, G), cup first, on the evaluation grid.

        Returns:
            (2, G, G) bool.
        """
        if self.cup_threshold is None:
            return postprocess(prob > self.threshold, self.postprocessing)
        cup, disc = prob[0] > self.cup_threshold, prob[1] > self.threshold
        return postprocess(np.stack([cup, disc]), self.postprocessing)


_ADDED = {"cup_threshold": None, "postprocessing": "none"}


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile(
                name="standard",
                version=1,
                threshold=0.5,
                smooth=0.0,
                empty_policy="worst",
                asd_definition="directed",
                description="threshold 0.5, plain Dice, an empty mask scores the worst value",
            ),
            # DPL and CPR, utils/metrics.py and train_target.py of the released code. NSD is
            # our addition: their code has none. Where every case is empty their ASD divides
            # by zero; here its mean is NaN.
            Profile(
                name="cpr-2023",
                version=1,
                threshold=0.75,
                smooth=1.0,
                empty_policy="exclude",
                asd_definition="directed",
                description="threshold 0.75, smoothed Dice, empty masks dropped from distances",
            ),
            # DPL's own script scores with the same rules as CPR's; what sets it apart is how it
            # runs the network (batch statistics, dropout), which is part of a cell's inference.
            Profile(
                name="dpl-2021",
                version=1,
                threshold=0.75,
                smooth=1.0,
                empty_policy="exclude",
                asd_definition="directed",
                description="the rules of DPL's released script, equal to those of cpr-2023",
            ),
            # BEAL, test.py and utils/Utils.py at 945cad3. Distances are our addition: it has none.
            Profile(
                name="beal-2019",
                version=1,
                threshold=0.75,
                smooth=1.0,
                empty_policy="exclude",
                asd_definition="directed",
                postprocessing="beal",
                description="threshold 0.75, five medians, erosion, largest component, filled",
            ),
            # The same script where the data set's name starts with D (also Domain2 and so on):
            # thresholds chosen for one target. Stored codes resolve prob to 1/256.
            Profile(
                name="beal-2019-drishti",
                version=1,
                threshold=0.5,
                cup_threshold=0.1,
                smooth=1.0,
                empty_policy="exclude",
                asd_definition="directed",
                postprocessing="beal",
                description="beal-2019 with the thresholds it has for Drishti-GS, tuned on it",
            ),
        )
    }
)


def get_profile(name: str) -> Profile:
    """Return the profile of that name.

    Raises:
        UsageError: If there is none; names the closest one.
    """
    if name in PROFILES:
        return PROFILES[name]
    close = difflib.get_close_matches(name, PROFILES, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"unknown scoring profile {name!r}{guess}",
        hint=f"use --profile with one of: {', '.join(PROFILES)}",
    )
