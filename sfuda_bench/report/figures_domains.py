"""Figures of a data root: contact sheets, distributions, and images side by side by likeness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sfuda_bench.datasets import SPLITS
from sfuda_bench.images.decode import read_image, read_mask, resize_image, resize_mask
from sfuda_bench.images.statistics import QUANTITIES
from sfuda_bench.report import style
from sfuda_bench.report.domains import DomainEyes, Eye, defined, domain_mark_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TILE, _COLUMNS, _GAP = 128, 8, 3
_DISTRIBUTIONS = {
    *("disc_scale", "vcdr", "red", "green", "blue", "green_sd"),
    *("disc_contrast", "cup_contrast"),
}
_EMBEDDED = 300  # images per domain: t-SNE takes time, and more points only cover each other
_PERPLEXITY = 30
_CUP_COLOUR, _DISC_COLOUR = (0, 255, 0), (0, 255, 255)

Pixels = npt.NDArray[np.uint8]


def write_domain_figures(
    out: Path, domains: Sequence[DomainEyes], note: Callable[[str], None] | None = None
) -> list[Path]:
    """Draw the figures of a data root into ``DIR/figures``, a PDF and a PNG each.

    Args:
        out: Folder to write to; figures show patients' images.
        domains: From :func:`~sfuda_bench.report.domains.measure_root`.
        note: Told the name of each figure before it is drawn.
    """
    written: list[Path] = []
    with style.figure_style():
        for name, draw in _drawings(domains):
            if note is not None:
                note(name)
            figure = draw()
            if figure is None:
                continue
            style.freeze_layout(figure)
            written += style.save(figure, out / "figures", style.slug(name))
    return written


def _drawings(domains: Sequence[DomainEyes]) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    for domain in domains:
        yield f"images-{domain.domain.name}", lambda domain=domain: contact_sheet(domain)  # type: ignore[misc]  # the default binds the loop's value
    yield "distributions", lambda: distributions(domains)
    yield "likeness", lambda: likeness(domains)


def contact_sheet(domain: DomainEyes) -> Figure:
    """Draw eight train and eight test images, and again with the outlines of disc and cup.

    Args:
        domain: A measured domain.
    """
    rows = [_strip(domain.of(split), outlined) for split in SPLITS for outlined in (False, True)]
    sheet = np.concatenate(rows)
    width = 7.2
    figure = style.new_figure(width, 0.45 + width * sheet.shape[0] / sheet.shape[1])
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="none")
    axes.set_xticks([])
    pitch = _TILE + _GAP
    labels = [f"{split}{part}" for split in SPLITS for part in ("", ", outlined")]
    axes.set_yticks(
        [pitch * (row + 0.5) for row in range(len(rows))], labels, rotation=90, va="center"
    )
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    style.set_title(figure, f"Images of {domain.title}{_explained([domain])}")
    return figure


def _strip(eyes: Sequence[Eye], outlined: bool) -> Pixels:
    """Return one row of images, chosen evenly in the order of their names."""
    row = np.full((_TILE + _GAP, _COLUMNS * (_TILE + _GAP), 3), 255, dtype=np.uint8)
    for column, place in enumerate(_evenly(len(eyes), _COLUMNS)):
        left = column * (_TILE + _GAP)
        row[:_TILE, left : left + _TILE] = _tile(eyes[place], outlined)
    return row


def _evenly(count: int, most: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most)).round()})


def _tile(eye: Eye, outlined: bool) -> Pixels:
    tile = resize_image(read_image(eye.sample.image), _TILE).copy()
    if outlined and eye.sample.mask is not None:
        cup, disc = resize_mask(read_mask(eye.sample.mask), _TILE)
        for inside, colour in ((disc, _DISC_COLOUR), (cup, _CUP_COLOUR)):
            around = np.pad(inside, 1)
            core = around[2:, 1:-1] & around[:-2, 1:-1] & around[1:-1, 2:] & around[1:-1, :-2]
            tile[inside & ~core] = colour
    return tile


def distributions(domains: Sequence[DomainEyes]) -> Figure | None:
    """Draw how disc scale, vCDR, colours and contrasts are distributed in each domain.

    Boxes span the middle half, whiskers 5 to 95 %; a filled dot is the mean of train, an open
    one that of test.

    Args:
        domains: Measured domains.

    Returns:
        ``None`` without images.
    """
    wanted = [quantity for quantity in QUANTITIES if quantity.key in _DISTRIBUTIONS]
    shown = [q for q in wanted if any(defined(domain.eyes, q).size for domain in domains)]
    if not shown:
        return None
    bands = -(-len(shown) // 2)
    figure = style.new_figure(7.2, 0.7 + bands * (0.55 + 0.2 * len(domains)))
    for axes, quantity in zip(style.grid(figure, len(shown), 2, sharey=True), shown, strict=True):
        for place, domain in enumerate(domains):
            colour = style.PALETTE[place % len(style.PALETTE)]
            values = defined(domain.eyes, quantity)
            if values.size:
                _box(axes, values, place, colour)
            for split, face in zip(SPLITS, (colour, "white"), strict=True):
                part = defined(domain.of(split), quantity)
                if part.size:
                    axes.plot(part.mean(), place, "o", ms=3.5, mfc=face, mec=colour, mew=0.9)
        axes.set_title(quantity.title)
        axes.set_yticks(range(len(domains)), [domain.title for domain in domains])
        axes.set_ylim(len(domains) - 0.4, -0.6)
    title = "Distributions per domain; dots: means of train (filled) and test (open)"
    style.set_title(figure, f"{title}{_explained(domains)}")
    return figure


def _box(axes: Axes, values: npt.NDArray[np.float64], place: int, colour: str) -> None:
    axes.boxplot(
        [values],
        positions=[place],
        orientation="horizontal",
        widths=0.55,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.3, "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 1.4},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        manage_ticks=False,
    )


def likeness(domains: Sequence[DomainEyes]) -> Figure | None:
    """Draw a t-SNE of the images in 12 x 12 px, coloured by domain; no label is used.

    Args:
        domains: Measured domains.

    Returns:
        ``None`` for fewer than ten images.
    """
    eyes: list[list[Eye]] = []
    for domain in domains:
        eyes.append([domain.eyes[place] for place in _evenly(len(domain.eyes), _EMBEDDED)])
    features = np.stack([eye.features for chosen in eyes for eye in chosen])
    if len(features) < 10:
        return None
    points = embed(features)
    figure = style.new_figure(5.2, 4.4)
    axes = figure.add_subplot()
    start = 0
    for place, (domain, chosen) in enumerate(zip(domains, eyes, strict=True)):
        colour = style.PALETTE[place % len(style.PALETTE)]
        own = points[start : start + len(chosen)]
        start += len(chosen)
        for split, face in zip(SPLITS, (colour, "none"), strict=True):
            part = own[[eye.split == split for eye in chosen]]
            label = f"{domain.title} {split}"
            axes.scatter(
                part[:, 0],
                part[:, 1],
                s=14,
                facecolor=face,
                edgecolor=colour,
                linewidth=0.7,
                label=label,
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.2)
    title = "Likeness of images (t-SNE of 12 x 12 px, axes without meaning)"
    style.set_title(figure, f"{title}{_explained(domains)}")
    return figure


def embed(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a t-SNE in two dimensions, the same for the same features on one machine.

    Args:
        features: (n, d) float32, n at least 3.

    Returns:
        (n, 2) float32.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    parts = min(20, *scaled.shape)
    reduced = PCA(parts, svd_solver="full").fit_transform(scaled)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    return np.asarray(found, dtype=np.float32)


def _explained(domains: Sequence[DomainEyes]) -> str:
    """Return what the marks in a figure's labels mean, as the end of its title."""
    return "".join(f"; {words}" for words in domain_mark_words(domains))
