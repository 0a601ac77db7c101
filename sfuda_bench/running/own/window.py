"""Which part of its images a stored model was given: a central window, or the whole of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sfuda_bench.running.own.models import OwnModel
from sfuda_bench.running.store import read_json

FIELD = "roi_crop_px"
Origin = Literal["flag", "setting", "record", "unknown"]
_ORIGINS: Mapping[str, str] = {
    "flag": "as --roi-crop-px says",
    "setting": "as the settings say",
    "record": "as the model's record says",
    "unknown": "nothing says which window the model was given",
}


@dataclass(frozen=True)
class Window:
    """A central window of images, and how it is known.

    Attributes:
        side_px: Its side, px; 0 for whole images.
        origin: What it follows from.
    """

    side_px: int
    origin: Origin

    @property
    def known(self) -> bool:
        """Whether anything says it."""
        return self.origin != "unknown"

    def __str__(self) -> str:
        """Return what a user is told of it."""
        return f"window: {window_words(self.side_px)} ({_ORIGINS[self.origin]})"


def window_words(side_px: int) -> str:
    """Return which part of an image a window is."""
    if side_px == 0:
        return "whole images"
    return f"the central {side_px} x {side_px} px of images that are larger"


def doubt(model: OwnModel, window: Window) -> str:
    """Say that nothing tells a model's window, where a record ought to; else return nothing."""
    if window.known or model.kind == "bare":
        return ""
    return (
        f"nothing in the records of {model.file.name} says which window of its images the model "
        "was given"
    )


def window_of(model: OwnModel) -> Window:
    """Return the window that a model was given.

    It stands in the card of a source or an adapted model, and in the ``run.json`` of a cell. An
    imported model's card lacks it: whole images are assumed then, and the origin is ``unknown``.

    Raises:
        StoreSchemaError: A record of the store is damaged.
    """
    recorded = model.card.get(FIELD)
    if recorded is None and model.kind == "cell":
        run = model.file.with_name("run.json")
        recorded = read_json(run).get(FIELD) if run.is_file() else None
    return Window(0, "unknown") if recorded is None else Window(int(recorded), "record")
