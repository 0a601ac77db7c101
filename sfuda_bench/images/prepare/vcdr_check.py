"""Compare masks with the graders' own vertical cup-to-disc ratios, where owners publish them.

The ratios were measured by the graders, not from the masks: they check the decoding of masks and
our measure of the ratio independently of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import read_mask
from sfuda_bench.images.prepare.manifest import read_manifest
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio

SUSPECT_DIFFERENCE = 0.15
"""Difference to every grader above which an eye is named."""
WRONG_MEAN_DIFFERENCE = 0.1
"""Mean absolute difference above which masks are taken to be misread."""


@dataclass(frozen=True)
class EyeRatio:
    """One eye's ratios.

    Args:
        name: The eye.
        ours: From the mask.
        graders: The graders' own.
    """

    name: str
    ours: float
    graders: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Ours minus the graders' mean."""
        return self.ours - fmean(self.graders)

    @property
    def outside(self) -> float:
        """How far ours lies outside the graders' range; 0 within it."""
        return max(min(self.graders) - self.ours, self.ours - max(self.graders), 0.0)


@dataclass(frozen=True)
class Agreement:
    """How well masks agree with graders.

    Args:
        eyes: Every eye with graders' ratios.
        mean_difference: Ours minus the graders' mean.
        mean_absolute: Mean of its absolute value.
        largest: The largest absolute difference.
        within: Number of eyes whose ratio lies within the graders' range, up to 0.01.
        graders_mean_absolute: Mean absolute difference of one grader from the mean of the others;
            NaN with one grader.
        suspects: Eyes that differ from every grader by more than :data:`SUSPECT_DIFFERENCE`.
    """

    eyes: tuple[EyeRatio, ...]
    mean_difference: float
    mean_absolute: float
    largest: float
    within: int
    graders_mean_absolute: float
    suspects: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the masks can be what the graders saw."""
        return self.mean_absolute <= WRONG_MEAN_DIFFERENCE

    @property
    def sentence(self) -> str:
        """The agreement in one sentence."""
        text = (
            f"vCDR of {len(self.eyes)} eyes: ours minus the graders' mean "
            f"{self.mean_difference:+.3f}, absolute {self.mean_absolute:.3f}, "
            f"largest {self.largest:.3f}, "
            f"{self.within} within the graders' range"
        )
        if self.graders_mean_absolute == self.graders_mean_absolute:  # not NaN
            text += f"; a grader differs from the others by {self.graders_mean_absolute:.3f}"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return the agreement for ``--json``."""
        graders = self.graders_mean_absolute
        return {
            "eyes": [
                {"name": eye.name, "ours": round(eye.ours, 6), "graders": list(eye.graders)}
                for eye in self.eyes
            ],
            "mean_difference": self.mean_difference,
            "mean_absolute": self.mean_absolute,
            "largest": self.largest,
            "within": self.within,
            "graders_mean_absolute": graders if graders == graders else None,
            "suspects": list(self.suspects),
            "holds": self.holds,
        }


def compare(eyes: Sequence[EyeRatio]) -> Agreement | None:
    """Summarise; ``None`` when no eye has graders' ratios."""
    rated = tuple(eye for eye in eyes if eye.graders and eye.ours == eye.ours)
    if not rated:
        return None
    differences = [eye.difference for eye in rated]
    others = [
        abs(ratio - fmean(eye.graders[:k] + eye.graders[k + 1 :]))
        for eye in rated
        for k, ratio in enumerate(eye.graders)
        if len(eye.graders) > 1
    ]
    return Agreement(
        eyes=rated,
        mean_difference=fmean(differences),
        mean_absolute=fmean(map(abs, differences)),
        largest=max(map(abs, differences)),
        within=sum(eye.outside <= 0.01 for eye in rated),
        graders_mean_absolute=fmean(others) if others else float("nan"),
        suspects=tuple(eye.name for eye in rated if eye.outside > SUSPECT_DIFFERENCE),
    )


def check_domain(folder: Path) -> Agreement | None:
    """Compare the written masks of a prepared domain with the ratios in its manifest.

    Returns:
        The agreement, or ``None`` when the owners publish no ratios.

    Raises:
        DataError: There is no manifest, or a mask cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: not a prepared domain", hint="sfuda-bench data prepare")
    return compare([_ratio(folder, eye) for eye in manifest["eyes"] if eye.get("graders_vcdr")])


def _ratio(folder: Path, eye: Mapping[str, Any]) -> EyeRatio:
    mask = read_mask(folder / eye["split"] / "ROIs" / "mask" / f"{eye['name']}.png")
    return EyeRatio(eye["name"], vertical_cup_to_disc_ratio(mask), tuple(eye["graders_vcdr"]))
