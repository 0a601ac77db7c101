"""Augmentation on the device, per sample, in batches; every draw comes from one generator.

``"dpl"`` is the set of the released DPL and CPR code: photometric (salt or pepper, gamma, eraser)
during adaptation, and geometric (scale and crop, rotation, flips, elastic) before it during source
training. ``"report"`` replaces the photometric part by Gaussian noise and contrast, which is how
written accounts of those methods word it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the name used everywhere for this module
from torch import Tensor

AugmentKind = Literal["none", "dpl", "report"]
SourceAugmentKind = Literal["none", "flip", "dpl"]
Rotation = Literal["per_sample", "fixed"]

NOISE_AMOUNT = 0.004
SALT_SHARE = 0.2
ELASTIC_GRID = 64  # cells per side on which the elastic field is drawn
_ERASER_TRIES = 32


def augment_images(images: Tensor, generator: torch.Generator, kind: AugmentKind) -> Tensor:
    """Apply a photometric set, as used during adaptation.

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.
        kind: ``"dpl"``: salt or pepper, gamma, eraser. ``"report"``: Gaussian noise, contrast,
            eraser. ``"none"``: unchanged.

    Returns:
        (B, 3, H, W) uint8; the input is left as it is.

    Raises:
        ValueError: The kind is unknown or the images are not uint8.

    Source:
        Released DPL code, dataloaders/custom_transforms.py at 634de5b, in this order.
    """
    steps = _PHOTOMETRIC.get(kind)
    if steps is None:
        raise ValueError(f"augmentation '{kind}': expected one of {', '.join(_PHOTOMETRIC)}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images of {images.dtype}: expected uint8")
    for step in steps:
        images = step(images, generator)
    return images


def augment_source(
    images: Tensor,
    masks: Tensor,
    crop_size: int,
    generator: torch.Generator,
    kind: SourceAugmentKind,
    *,
    rotation: Rotation = "per_sample",
    fixed_quarter_turns: int = 1,
) -> tuple[Tensor, Tensor]:
    """Augment labelled images for source training, image and mask together.

    Args:
        images: (B, 3, T, T) uint8; T is ``train_scale`` times the crop size.
        masks: (B, 2, T, T) bool: cup, disc.
        crop_size: Side S of what is returned, px.
        generator: Source of every draw.
        kind: ``"dpl"``: geometric, then photometric set. ``"flip"``: random crop and flips.
            ``"none"``: central crop.
        rotation: ``"per_sample"`` draws the angle for each sample; ``"fixed"`` uses
            ``fixed_quarter_turns``, as the released code draws one angle for a whole run.
        fixed_quarter_turns: 1, 2, 3 or 4 quarter turns (4 is no rotation).

    Returns:
        Images (B, 3, S, S) uint8 and masks (B, 2, S, S) bool. The cup stays inside the disc.

    Raises:
        ValueError: The kind is unknown, or shapes or types do not fit.

    Source:
        Released DPL code, train_source.py L115-125 and dataloaders/custom_transforms.py at
        634de5b. Departures: all geometric steps are one interpolation instead of three; shrinking
        has no anti-aliasing; masks are bilinear, cut at one half; what the elastic field pulls in
        from beyond the crop is the image there, not black; the angle is per sample by default.
    """
    _check_source_batch(images, masks, kind)
    geometry = _draw_geometry(
        len(images), images.shape[-1], crop_size, generator, kind, rotation, fixed_quarter_turns
    )
    if geometry is not None:
        images, masks = _sample(images, masks, geometry.to(images.device))
    if kind == "dpl":
        images = augment_images(images, generator, "dpl")
    return images, masks


# -- photometric -----------------------------------------------------------------------------


def salt_or_pepper(images: Tensor, generator: torch.Generator) -> Tensor:
    """Write salt (p 0.25), pepper (p 0.25) or nothing at random positions, all channels alike.

    Positions are drawn with replacement and never lie in the last row or column; their number is
    ``ceil(0.004 * H * W * 3 * share)`` with share 0.2 for salt and 0.8 for pepper.

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.

    Returns:
        (B, 3, H, W) uint8.

    Source:
        Released DPL code at 634de5b, where salt writes gray level 1, not 255.
    """
    batch, _, height, width = images.shape
    salt, pepper = noise_counts(height, width)
    draw = _uniform((batch,), generator, images)
    is_salt, is_noisy = draw > 0.75, draw > 0.5
    rows = (_uniform((batch, pepper), generator, images) * max(height - 1, 1)).long()
    columns = (_uniform((batch, pepper), generator, images) * max(width - 1, 1)).long()
    position = rows * width + columns
    surplus = is_salt[:, None] & (torch.arange(pepper, device=images.device) >= salt)
    position = torch.where(surplus, position[:, :1], position)
    hit = torch.zeros(batch, height * width, dtype=torch.bool, device=images.device)
    hit = hit.scatter_(1, position, True).view(batch, 1, height, width)
    value = is_salt.to(torch.uint8)[:, None, None, None]
    return torch.where(hit & is_noisy[:, None, None, None], value, images)


def noise_counts(height: int, width: int) -> tuple[int, int]:
    """Return how many positions salt and pepper draw: 630 and 2517 at 512 x 512."""
    values = NOISE_AMOUNT * height * width * 3
    return math.ceil(values * SALT_SHARE), math.ceil(values * (1.0 - SALT_SHARE))


def gamma(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change the brightness with p 0.5 by a gamma of U(0.5, 3.5): above 1 brightens.

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.

    Returns:
        (B, 3, H, W) uint8, from the table ``255 (i / 255) ** (1 / gamma)`` truncated.

    Source:
        Released DPL code at 634de5b ("adjust_light").
    """
    chosen = _coin(len(images), generator, images)
    value = 0.5 + 3.0 * _uniform((len(images),), generator, images)
    table = gamma_table(torch.where(chosen, value, torch.ones_like(value)))
    index = images.flatten(1).to(torch.int64)
    changed = table.gather(1, index).view_as(images)
    return torch.where(chosen[:, None, None, None], changed, images)


def gamma_table(value: Tensor) -> Tensor:
    """Return the gamma look-up tables.

    Args:
        value: (B,) floating, the gammas.

    Returns:
        (B, 256) uint8.
    """
    # Double precision: truncation would otherwise move levels that are whole numbers.
    level = torch.arange(256, device=value.device, dtype=torch.float64) / 255.0
    return (level.pow(1.0 / value.to(torch.float64)[:, None]) * 255.0).to(torch.uint8)


def eraser(images: Tensor, generator: torch.Generator) -> Tensor:
    """Fill one rectangle with one gray level, with p 0.5.

    The area is U(0.02, 0.06) of the image, height over width U(0.3, 0.6); the rectangle is drawn
    anew until it lies inside.

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.

    Returns:
        (B, 3, H, W) uint8.

    Source:
        Released DPL code at 634de5b.
    """
    batch, _, height, width = images.shape
    chosen = _coin(batch, generator, images)
    top, left, tall, wide = _erased_boxes(batch, height, width, generator, images)
    level = (_uniform((batch,), generator, images) * 255.0).to(torch.uint8)
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    inside = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return torch.where(inside[:, None], level[:, None, None, None], images)


def gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise with p 0.5; its standard deviation is U(0, 12.75) gray levels.

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.

    Returns:
        (B, 3, H, W) uint8.

    Source:
        Our choice of strength: no account of DPL or CPR states one.
    """
    chosen = _coin(len(images), generator, images)
    spread = 12.75 * _uniform((len(images),), generator, images) * chosen
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return _to_uint8(images + noise.to(images.device) * spread[:, None, None, None])


def contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the contrast around the image's mean with p 0.5, by a factor of U(0.5, 1.5).

    Args:
        images: (B, 3, H, W) uint8.
        generator: Source of every draw.

    Returns:
        (B, 3, H, W) uint8.

    Source:
        Our choice of strength: no account of DPL or CPR states one.
    """
    chosen = _coin(len(images), generator, images)
    drawn = 0.5 + _uniform((len(images),), generator, images)
    factor = torch.where(chosen, drawn, torch.ones_like(drawn))[:, None, None, None]
    values = images.to(torch.float32)
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    return _to_uint8(mean + (values - mean) * factor)


_Photometric = Callable[[Tensor, torch.Generator], Tensor]
_PHOTOMETRIC: dict[str, tuple[_Photometric, ...]] = {
    "none": (),
    "dpl": (salt_or_pepper, gamma, eraser),
    "report": (gaussian_noise, contrast, eraser),
}


def _erased_boxes(
    batch: int, height: int, width: int, generator: torch.Generator, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, height and width of one rectangle per sample, the first that fits."""
    draws = _uniform((4, batch, _ERASER_TRIES), generator, like)
    area = (0.02 + 0.04 * draws[0]) * height * width
    ratio = 0.3 + 0.3 * draws[1]
    wide, tall = (area / ratio).sqrt().floor(), (area * ratio).sqrt().floor()
    left, top = (draws[2] * width).floor(), (draws[3] * height).floor()
    fits = (left + wide <= width) & (top + tall <= height)
    # About 0.6 of the tries fit: that none of 32 does has a chance of 1e-13.
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    top, left, tall, wide = (x.gather(1, first)[:, 0].long() for x in (top, left, tall, wide))
    return top, left, tall, wide


# -- geometric -------------------------------------------------------------------------------


def _check_source_batch(images: Tensor, masks: Tensor, kind: str) -> None:
    if kind not in ("none", "flip", "dpl"):
        raise ValueError(f"source augmentation '{kind}': expected one of none, flip, dpl")
    if images.dtype != torch.uint8 or masks.dtype != torch.bool:
        raise ValueError(f"{images.dtype} images, {masks.dtype} masks: expected uint8 and bool")
    if images.shape[-1] != images.shape[-2] or images.shape[2:] != masks.shape[2:]:
        raise ValueError(
            f"images {tuple(images.shape)}, masks {tuple(masks.shape)}: expected equal squares"
        )


def _draw_geometry(
    batch: int,
    size: int,
    crop: int,
    generator: torch.Generator,
    kind: SourceAugmentKind,
    rotation: Rotation,
    fixed_quarter_turns: int,
) -> Tensor | None:
    """Return where each output pixel comes from, (B, S, S, 2) px, or ``None`` for as it is."""
    if kind == "none":
        if size == crop:
            return None
        offset = torch.full((batch, 2), (size - crop) // 2, dtype=torch.float32)
        return _pixel_centres(batch, crop, torch.device("cpu")) + offset[:, None, None]
    grid = _pixel_centres(batch, crop, generator.device) - crop / 2
    if kind == "dpl":
        chosen = _draw(batch, generator) > 0.5
        grid = grid + _elastic_field(batch, crop, generator) * chosen[:, None, None, None]
    flip = torch.where(_draw(2 * batch, generator).view(batch, 2) < 0.5, -1.0, 1.0)
    grid = grid * flip[:, None, None]
    scale = torch.ones(batch, 2, device=generator.device)
    if kind == "dpl":
        grid = _rotated(grid, generator, rotation, fixed_quarter_turns)
        scale = _draw_scale(batch, size, generator)
    offset = _draw_offset((scale * size).round(), crop, generator)
    return (grid + crop / 2 + offset[:, None, None]) / scale[:, None, None]


def _pixel_centres(batch: int, size: int, device: torch.device) -> Tensor:
    """Return the (x, y) centres of a square of pixels, (B, size, size, 2)."""
    centre = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1)
    return grid.expand(batch, -1, -1, -1)


def _rotated(
    grid: Tensor, generator: torch.Generator, rotation: Rotation, fixed_quarter_turns: int
) -> Tensor:
    """Turn each sample with p 0.5 by 1 to 4 quarter turns (4 is no rotation)."""
    batch = len(grid)
    turned = _draw(batch, generator) > 0.5
    turns = (_draw(batch, generator) * 4).long() + 1
    if rotation == "fixed":
        turns = torch.full_like(turns, fixed_quarter_turns)
    angle = torch.where(turned, turns, torch.zeros_like(turns)) * (math.pi / 2)
    cos, sin = angle.cos().round(), angle.sin().round()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.einsum("bij,bhwj->bhwi", matrix, grid)


def _draw_scale(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw independent width and height factors of U(0.5, 1.5) with p 0.5, (B, 2)."""
    chosen = _draw(batch, generator) > 0.5
    drawn = 0.5 + _draw(2 * batch, generator).view(batch, 2)
    whole = (drawn * size).floor() / size  # the scaled image has whole pixels
    return torch.where(chosen[:, None], whole, torch.ones_like(whole))


def _draw_offset(scaled: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """Draw the crop's corner in the scaled, padded image; (B, 2) px, negative in the padding."""
    pad = ((crop - scaled) / 2).floor().amax(dim=1, keepdim=True) + 5
    short = (scaled < crop).any(dim=1, keepdim=True)
    pad = torch.where(short, pad, torch.zeros_like(pad))
    room = scaled + 2 * pad - crop
    draw = _draw(scaled.numel(), generator).view_as(scaled)
    return (draw * (room + 1)).floor().minimum(room) - pad


def _elastic_field(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw smooth displacements, (B, size, size, 2) px, standard deviation about 4 px.

    The full-resolution recipe is U(-1, 1) noise, Gaussian filter of sigma 0.08 H with zeros
    outside, times 2 H. Filtering white noise on h cells with sigma 0.08 h times 2 h has the same
    standard deviation and the same correlation length, so a coarse grid is enlarged instead.
    """
    cells = min(ELASTIC_GRID, size)
    noise = torch.rand(2 * batch, 1, cells, cells, generator=generator, device=generator.device)
    kernel = _gaussian_kernel(0.08 * cells, generator.device)
    half = len(kernel) // 2
    smooth = F.conv2d(noise * 2 - 1, kernel.view(1, 1, 1, -1), padding=(0, half))
    smooth = F.conv2d(smooth, kernel.view(1, 1, -1, 1), padding=(half, 0)) * (2.0 * cells)
    field = F.interpolate(smooth, size=(size, size), mode="bilinear", align_corners=False)
    return field.view(batch, 2, size, size).permute(0, 2, 3, 1)


def _gaussian_kernel(sigma: float, device: torch.device) -> Tensor:
    radius = int(4.0 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    return weight / weight.sum()


def _sample(images: Tensor, masks: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor]:
    """Sample image and mask at the same places; outside there is black and background."""
    grid = geometry * (2.0 / images.shape[-1]) - 1.0
    both = torch.cat([images.to(torch.float32), masks.to(torch.float32)], dim=1)
    sampled = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _to_uint8(sampled[:, :3]), sampled[:, 3:] > 0.5


# -- draws -----------------------------------------------------------------------------------


def _draw(count: int, generator: torch.Generator) -> Tensor:
    """Draw U(0, 1) on the generator's device."""
    return torch.rand(count, generator=generator, device=generator.device)


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw U(0, 1) on the generator's device and move it to that of ``like``."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)


def _coin(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return _uniform((count,), generator, like) > 0.5


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0.0, 255.0).to(torch.uint8)
