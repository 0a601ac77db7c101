"""What the images of a data root are like: sizes, areas, colours and contrasts per split.

Read from the images themselves, before anything is trained: what differs between two domains
here is part of the gap that a method has to bridge.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfuda_bench.datasets import SPLITS, Domain, Sample, domain_index, read_domain
from sfuda_bench.images.decode import read_image, read_mask, resize_image
from sfuda_bench.images.statistics import (
    QUANTITIES,
    Quantity,
    SplitNumbers,
    Values,
    colour_values,
    edge_values,
    shape_values,
    spreads,
)
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value, write_plain
from sfuda_bench.report.scope import mark_words, marks_of
from sfuda_bench.running.store import write_bytes

FEATURE_SIDE = 12
_PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Eye:
    """One measured image.

    Attributes:
        domain: Canonical name.
        split: ``train`` or ``test``.
        sample: Its files.
        side_px: Its larger side.
        values: By quantity.
        features: (432,) float32: the image in 12 x 12 px, gray levels.
    """

    domain: str
    split: str
    sample: Sample
    side_px: int
    values: Values
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class DomainEyes:
    """A domain and its measured images, train before test."""

    domain: Domain
    eyes: tuple[Eye, ...]

    @property
    def title(self) -> str:
        """Its name in tables and figures, marked if its images are synthetic or cut by labels."""
        marks = marks_of(
            synthetic=self.domain.synthetic,
            positions_from_labels=self.domain.positions_from_labels,
        )
        return f"{self.domain.name} {marks}".strip()

    def of(self, split: str) -> list[Eye]:
        """Return the images of one split."""
        return [eye for eye in self.eyes if eye.split == split]

    def numbers(self, split: str) -> SplitNumbers:
        """Return means and deviations of one split."""
        eyes = self.of(split)
        sides = [eye.side_px for eye in eyes]
        return SplitNumbers(
            self.domain.name,
            split,
            len(eyes),
            sum(eye.sample.mask is not None for eye in eyes),
            (min(sides), max(sides)),
            spreads([eye.values for eye in eyes]),
        )


def measure_root(root: Path, note: Callable[[str], None] | None = None) -> list[DomainEyes]:
    """Measure every image of every domain below ``root``.

    Args:
        root: Folder of domains.
        note: Told the name of each domain before it is read.

    Raises:
        DataError: There is no domain, or an image or mask cannot be read.
    """
    found = []
    for name, folder in domain_index(root).items():
        if note is not None:
            note(name)
        domain = read_domain(folder)
        tasks = [(name, split, one) for split in SPLITS for one in domain.split(split).samples]
        with ThreadPoolExecutor() as pool:
            found.append(DomainEyes(domain, tuple(pool.map(_measure, *zip(*tasks, strict=True)))))
    return found


def _measure(domain: str, split: str, sample: Sample) -> Eye:
    image = read_image(sample.image)
    values = colour_values(image)
    if sample.mask is not None:
        mask = read_mask(sample.mask)
        values |= shape_values(mask) | edge_values(image, mask)
    features = resize_image(image, FEATURE_SIDE).astype(np.float32).ravel()
    return Eye(domain, split, sample, max(image.shape[:2]), values, features)


def write_domains(out: Path, domains: Sequence[DomainEyes]) -> list[Path]:
    """Write ``tables/domains.*``, ``tables/domain-quantities.*`` and ``images.csv``.

    Args:
        out: Folder to write to.
        domains: From :func:`measure_root`.
    """
    written = [*write_plain(out, domains_table(domains)), *write_plain(out, _quantities(domains))]
    write_bytes(out / "images.csv", _images_csv(domains).encode())
    return [*written, out / "images.csv"]


def domains_table(domains: Sequence[DomainEyes]) -> PlainTable:
    """Return the table of means, one row per split; the CSV has the deviations too.

    Args:
        domains: From :func:`measure_root`.
    """
    columns = [
        PlainColumn("domain", "domain"),
        PlainColumn("split", "split"),
        PlainColumn("images", "images"),
        PlainColumn("masks", "masks"),
        PlainColumn("roi_center", "crops centred by"),
        PlainColumn("side_px", "side [px]"),
    ]
    for quantity in QUANTITIES:
        columns += [
            PlainColumn(f"{quantity.key}_mean", quantity.title, quantity.decimals),
            PlainColumn(f"{quantity.key}_sd", f"{quantity.title} sd", printed=False),
        ]
    rows = [_row(domain, split) for domain in domains for split in SPLITS]
    return PlainTable(
        "domains", "Images of the data root.", _caption(domains), tuple(columns), rows=tuple(rows)
    )


def _row(domain: DomainEyes, split: str) -> tuple[Value, ...]:
    numbers = domain.numbers(split)
    low, high = numbers.sides_px or (0, 0)
    row: list[Value] = [
        domain.title,
        split,
        numbers.images,
        numbers.masks,
        domain.domain.roi_center,
        str(low) if low == high else f"{low} to {high}",
    ]
    for quantity in QUANTITIES:
        spread = numbers.values.get(quantity.key)
        mean, deviation = (spread.mean, spread.sd) if spread else (None, None)
        row += [_scaled(mean, quantity), _scaled(deviation, quantity)]
    return tuple(row)


def _quantities(domains: Sequence[DomainEyes]) -> PlainTable:
    """Return the long table: how each quantity is distributed in each split."""
    columns = (
        PlainColumn("quantity", "quantity"),
        PlainColumn("domain", "domain"),
        PlainColumn("split", "split"),
        PlainColumn("n", "n"),
        PlainColumn("mean", "mean", 3),
        PlainColumn("sd", "sd", 3),
        *(PlainColumn(f"p{part}", f"{part} %", 3) for part in _PERCENTILES),
    )
    rows = []
    for quantity in QUANTITIES:
        for domain in domains:
            for split in SPLITS:
                values = defined(domain.of(split), quantity)
                if values.size:
                    deviation = float(values.std(ddof=1)) if values.size > 1 else None
                    percentiles = (float(np.percentile(values, part)) for part in _PERCENTILES)
                    start = (quantity.title, domain.title, split, int(values.size))
                    rows.append((*start, float(values.mean()), deviation, *percentiles))
    title = "How the images of each split are distributed."
    return PlainTable("domain-quantities", title, _caption(domains), columns, tuple(rows), keys=3)


def defined(eyes: Sequence[Eye], quantity: Quantity) -> npt.NDArray[np.float64]:
    """Return a quantity of those images for which it is defined, as printed."""
    known = [eye.values[quantity.key] for eye in eyes if quantity.key in eye.values]
    found = np.array(known, dtype=np.float64)
    scaled: npt.NDArray[np.float64] = found[np.isfinite(found)] * quantity.factor
    return scaled


def _scaled(value: float | None, quantity: Quantity) -> float | None:
    return None if value is None else value * quantity.factor


def _caption(domains: Sequence[DomainEyes]) -> tuple[str, ...]:
    sentences = [
        "Means over images; colours over the field of view, in gray levels of 0 to 255.",
        "The disc's diameter is that of a circle of its area; the contrast at an edge is the "
        "median green level just inside minus just outside.",
    ]
    return (*sentences, *(f"{words}." for words in domain_mark_words(domains)))


def domain_mark_words(domains: Sequence[DomainEyes]) -> tuple[str, ...]:
    """Return what the marks in the names of these domains mean."""
    return mark_words(
        synthetic=any(domain.domain.synthetic for domain in domains),
        positions_from_labels=any(domain.domain.positions_from_labels for domain in domains),
    )


def _images_csv(domains: Sequence[DomainEyes]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["domain", "split", "image", "side_px", *(q.key for q in QUANTITIES)])
    for eye in (eye for domain in domains for eye in domain.eyes):
        numbers = [f"{eye.values[q.key]:.6f}" if q.key in eye.values else "" for q in QUANTITIES]
        writer.writerow([eye.domain, eye.split, eye.sample.stem, eye.side_px, *numbers])
    return stream.getvalue()
