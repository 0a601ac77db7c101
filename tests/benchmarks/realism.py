"""How near the synthetic domains are to real ones: colour, edges, areas, vessels, texture.

    python -m tests.benchmarks.realism --data-root DIR
    python -m tests.benchmarks.realism --data-root DIR --sheet /tmp/sheet.png --json values.json

Every number is measured alike on real and on synthetic test images, at 512 px. A synthetic domain
is *within* a number's range when its median lies between the lowest first quartile and the
highest third quartile of the real domains. The command exits with 6 when any does not. The sheet
shows real images: keep it out of any repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from sfuda_bench.datasets import Split, find_domains, materialise_synthetic
from sfuda_bench.images.decode import read_image, read_mask

SIDE = 512
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Values = dict[str, float]


def measure(image: npt.NDArray[np.uint8], mask: Bool) -> Values:
    """Return what is compared of one image.

    Args:
        image: (512, 512, 3) uint8 RGB.
        mask: (2, 512, 512) bool, cup and disc.

    Returns:
        Colours and contrasts in gray levels, lengths as share of the disc's radius.
    """
    pixels = image.astype(np.float64)
    cup, disc = mask
    seen = pixels.sum(axis=2) > 24  # outside the field of view there is nothing to compare
    radius = float(np.sqrt(disc.sum() / np.pi))
    regions = {
        "background": ~disc & seen & (_distance(disc) < -0.25 * radius),
        "rim": disc & ~cup,
        "cup": cup,
    }
    found = _areas(cup, disc) | _vessels(pixels[..., 1], disc, seen, radius)
    for name, region in regions.items():
        if region.any():
            red, green, blue = np.median(pixels[region], axis=0)
            found[f"{name}_red"] = float(red)
            found[f"{name}_green_share"] = float(green / max(red, 1.0))
            found[f"{name}_blue_share"] = float(blue / max(red, 1.0))
    shade = ndimage.gaussian_filter(pixels[..., 1], 24)[regions["background"]]
    found["background_shading"] = float(shade.std() / max(shade.mean(), 1.0))
    for name, inside in (("disc", disc), ("cup", cup)):
        found |= _edge(name, pixels, _distance(inside) / radius, seen)
    return found | _texture(pixels[..., 1], disc, seen)


def _areas(cup: Bool, disc: Bool) -> Values:
    rows, columns = (np.flatnonzero(disc.any(axis=axis)) for axis in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    cup_rows = np.flatnonzero(cup.any(axis=1))
    cup_columns = np.flatnonzero(cup.any(axis=0))
    found = {
        "disc_area_share": float(disc.mean()),
        "cup_area_of_disc": float(cup.sum() / disc.sum()),
        "disc_height_to_width": float(height / width),
    }
    if cup_rows.size:
        found["vcdr"] = float((np.ptp(cup_rows) + 1) / height)
        shift = cup_columns.mean() - columns.mean()
        found["cup_shift"] = float(abs(shift) / np.sqrt(disc.sum() / np.pi))
    return found


def _distance(inside: Bool) -> Float:
    """Return the signed distance to the outline in px, positive inside."""
    found = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return np.asarray(found, dtype=np.float64)


def _edge(name: str, pixels: Float, depth: Float, seen: Bool) -> Values:
    """Return the contrast across an outline, and the width over which it rises."""
    found = {}
    levels = np.linspace(-0.28, 0.28, 29)
    bands = np.digitize(depth, levels)
    profile = np.array(
        [np.median(pixels[(bands == b) & seen], axis=0) for b in range(1, len(levels))]
    )
    for channel, colour in ((0, "red"), (1, "green")):
        line = profile[:, channel]
        inside, outside = np.nanmean(line[-7:]), np.nanmean(line[:7])
        found[f"{name}_contrast_{colour}"] = float(inside - outside)
    line = profile[:, 1]
    steps = np.abs(np.diff(ndimage.gaussian_filter1d(line, 1.0)))
    rise = abs(float(np.nanmean(line[-7:]) - np.nanmean(line[:7])))
    found[f"{name}_edge_width"] = rise / max(float(np.nanmax(steps)) / 0.02, 1e-6)
    return found


def _vessels(green: Float, disc: Bool, seen: Bool, radius: float) -> Values:
    """Return density and depth of dark lines: the black top-hat of the green channel."""
    smooth = ndimage.gaussian_filter(green, 1.5)
    size = max(round(0.2 * radius), 5)
    closed = ndimage.grey_closing(smooth, size=(size, size))
    depth = (closed - smooth) / np.maximum(closed, 1.0)
    inner = ndimage.binary_erosion(disc, iterations=5)
    outer = ndimage.binary_erosion(~disc & seen, iterations=9)
    found = {}
    for name, region in (("disc", inner), ("background", outer)):
        dark = region & (depth > 0.12)
        found[f"vessel_density_{name}"] = float(dark.sum() / max(region.sum(), 1))
        if dark.any():
            found[f"vessel_depth_{name}"] = float(np.quantile(depth[dark], 0.75))
    return found


def _texture(green: Float, disc: Bool, seen: Bool) -> Values:
    """Return the spread of the background at three scales, and the grain, in gray levels."""
    region = ndimage.binary_erosion(~disc & seen, iterations=9)
    found = {}
    blurred = [green, *(ndimage.gaussian_filter(green, s) for s in (1.0, 3.0, 9.0))]
    for place, name in enumerate(("fine", "middle", "coarse")):
        found[f"texture_{name}"] = _spread((blurred[place] - blurred[place + 1])[region])
    return found


def _spread(values: Float) -> float:
    """Return the standard deviation of a normal with the same middle half: lines count little."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float((high - low) / 1.349)


def measure_split(split: Split, most: int) -> list[Values]:
    """Return the values of up to ``most`` images, evenly chosen."""
    samples = [sample for sample in split.samples if sample.mask is not None]
    chosen = samples[:: max(1, len(samples) // most)][:most]
    found = []
    for sample in chosen:
        if sample.mask is None:
            continue
        image = Image.fromarray(read_image(sample.image)).resize((SIDE, SIDE))
        parts = [Image.fromarray(part).resize((SIDE, SIDE)) for part in read_mask(sample.mask)]
        mask = np.stack([np.asarray(part, dtype=bool) for part in parts])
        found.append(measure(np.asarray(image), mask))
    return found


def columns(values: Sequence[Values]) -> dict[str, Float]:
    """Return the values by name, without those that are not defined."""
    names = dict.fromkeys(name for one in values for name in one)
    every = {n: np.array([one[n] for one in values if n in one]) for n in names}
    return {name: found[np.isfinite(found)] for name, found in every.items()}


def table(
    real: dict[str, dict[str, Float]], drawn: dict[str, dict[str, Float]]
) -> list[dict[str, Any]]:
    """Return one row per number: its range over the real domains, medians, how many are within."""
    rows: list[dict[str, Any]] = []
    for name in next(iter(real.values())):
        quartiles = [np.quantile(found[name], (0.25, 0.5, 0.75)) for found in real.values()]
        low, high = min(q[0] for q in quartiles), max(q[2] for q in quartiles)
        medians = {domain: float(np.median(found[name])) for domain, found in drawn.items()}
        row: dict[str, Any] = {"name": name, "low": float(low), "high": float(high)}
        row |= {domain: float(q[1]) for domain, q in zip(real, quartiles, strict=True)}
        row |= medians | {"within": sum(low <= m <= high for m in medians.values())}
        rows.append(row)
    return rows


def print_table(
    rows: Sequence[dict[str, Any]], domains: Sequence[str], drawn: Sequence[str]
) -> None:
    """Print the table; a median outside the range has an exclamation mark."""
    print(f"{'':26}{'range':>17}  " + "".join(f"{name[:12]:>14}" for name in [*domains, *drawn]))
    for row in rows:
        span = f"{row['low']:.3g} .. {row['high']:.3g}"
        cells = [f"{row[name]:14.3g}" for name in domains]
        cells += [
            f"{row[name]:13.3g}{' ' if row['low'] <= row[name] <= row['high'] else '!'}"
            for name in drawn
        ]
        print(f"{row['name']:26}{span:>17}  " + "".join(cells))


def sheet(splits: dict[str, Split], path: Path, tile: int = 200, count: int = 7) -> None:
    """Write one picture with a row of images per domain."""
    picture = Image.new("RGB", (count * tile, len(splits) * tile), "white")
    draw = ImageDraw.Draw(picture)
    for row, (name, split) in enumerate(splits.items()):
        chosen = split.samples[:: max(1, len(split.samples) // count)][:count]
        for column, sample in enumerate(chosen):
            image = Image.fromarray(read_image(sample.image)).resize((tile, tile))
            picture.paste(image, (column * tile, row * tile))
        draw.text((4, row * tile + 4), name, "white")
    picture.save(path)


def main(words: Sequence[str] | None = None) -> int:
    """Compare and print; 6 when a synthetic median lies outside the real domains' range."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder of real domains")
    parser.add_argument("--images", type=int, default=24, help="test images per domain")
    parser.add_argument("--sheet", type=Path, help="PNG with images of every domain")
    parser.add_argument("--json", type=Path, help="file for the values")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        names = materialise_synthetic(Path(folder), size=SIDE, counts=(1, arguments.images))
        real = find_domains(arguments.data_root)
        drawn = {name: find_domains(Path(folder))[name] for name in names}
        splits = {n: d.test for n, d in {**real, **drawn}.items()}
        values = {n: columns(measure_split(s, arguments.images)) for n, s in splits.items()}
        if arguments.sheet:
            sheet(splits, arguments.sheet)
    rows = table({n: values[n] for n in real}, {n: values[n] for n in drawn})
    print_table(rows, list(real), list(drawn))
    outside = [row for row in rows if row["within"] < len(drawn)]
    print(f"{len(rows) - len(outside)} of {len(rows)} numbers within the range in every domain")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 6 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
