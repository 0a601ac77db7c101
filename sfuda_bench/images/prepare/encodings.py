"""What the gray values of a mask file are declared to mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sfuda_bench.datasets import BinaryMasks, Contours, LabelMask, RawMask, Tissue
from sfuda_bench.errors import UsageError

TISSUES: tuple[Tissue, ...] = get_args(Tissue)
COMMON: tuple[dict[int, Tissue], ...] = (
    {0: "cup", 128: "rim", 255: "background"},
    {255: "cup", 128: "rim", 0: "background"},
    {2: "cup", 1: "rim", 0: "background"},
    {1: "cup", 2: "rim", 0: "background"},
    {0: "cup", 1: "rim", 2: "background"},
)
"""Declarations in use, for the advice that follows a wrong one."""


@dataclass(frozen=True)
class Encoding:
    """The user's declaration, instead of the data set's.

    Args:
        values: Meaning of gray values, for masks of one file.
        structure: Whether a structure is bright or dark, for one file per structure.
    """

    values: Mapping[int, Tissue] | None = None
    structure: Literal["bright", "dark"] | None = None

    def redeclare(self, mask: RawMask) -> RawMask:
        """Return ``mask`` with this declaration.

        Raises:
            UsageError: The declaration does not fit the kind of mask.
        """
        if isinstance(mask, LabelMask) and self.values is not None:
            return LabelMask(mask.file, self.values)
        if isinstance(mask, BinaryMasks) and self.structure is not None:
            return BinaryMasks(mask.cup, mask.disc, self.structure)
        if self.values is None and self.structure is None:
            return mask
        raise UsageError(
            "--encoding does not fit these masks",
            hint="0=cup,128=rim,255=background for one file; bright or dark for a file each "
            "of cup and disc; none for soft maps and outlines",
        )


def parse_encoding(text: str) -> Encoding:
    """Parse ``--encoding``: ``bright``, ``dark``, or ``GRAY=TISSUE`` with commas.

    Raises:
        UsageError: A word is unknown, a gray value no byte, or a tissue missing.
    """
    if text in ("bright", "dark"):
        return Encoding(structure=cast(Literal["bright", "dark"], text))
    values: dict[int, Tissue] = {}
    for part in text.split(","):
        gray, _, tissue = (word.strip() for word in part.partition("="))
        if not gray.isdecimal() or int(gray) > 255 or tissue not in TISSUES:
            raise UsageError(
                f"--encoding: '{part.strip()}' is not GRAY=TISSUE with a gray value of 0 to 255 "
                f"and one of {', '.join(TISSUES)}",
                hint="e.g. --encoding 0=cup,128=rim,255=background",
            )
        values[int(gray)] = tissue
    absent = [tissue for tissue in TISSUES if tissue not in values.values()]
    if absent:
        raise UsageError(
            f"--encoding: no gray value is declared as {' or '.join(absent)}",
            hint="e.g. --encoding 0=cup,128=rim,255=background",
        )
    return Encoding(values=values)


def describe(values: Mapping[int, Tissue]) -> str:
    """Return a declaration as ``--encoding`` takes it."""
    return ",".join(f"{gray}={tissue}" for gray, tissue in values.items())


def name_of(mask: RawMask) -> str:
    """Return how a mask is declared, for the manifest."""
    if isinstance(mask, LabelMask):
        return describe(mask.values) if mask.values is not None else "undeclared"
    if isinstance(mask, BinaryMasks):
        return f"two files, structure {mask.structure}"
    if isinstance(mask, Contours):
        return "contours"
    return "soft maps" if hasattr(mask, "graders") else "drawn outlines"
