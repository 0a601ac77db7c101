"""What a camera records of an eye: light, colour response, gamma, blur, grain, compression."""

from __future__ import annotations

import io
import math
from statistics import NormalDist
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from sfuda_bench.images.synthetic.anatomy import Float, Streams
from sfuda_bench.images.synthetic.parameters import Camera

Uint8 = npt.NDArray[np.uint8]
_BEST_QUALITY = 90
_NORMAL = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


def expose(streams: Streams, planes: Float, camera: Camera, size: int, quality: int) -> Uint8:
    """Return the picture, (size, size, 3) uint8 RGB.

    Args:
        streams: Of the eye.
        planes: (3, g, g) float32 reflectance on a grid that may be coarser than the picture.
        camera: The camera.
        size: Side of the picture, px.
        quality: Pillow's JPEG quality at severity 1.
    """
    rng = streams("camera")
    grid = planes.shape[-1]
    lit = planes * _illumination(rng, camera, grid)
    tint = rng.normal(1.0, 0.03, (3, 1)) * rng.normal(1.0, 0.06)
    mixed = (np.array(camera.colour) * tint).astype(np.float32) @ lit.reshape(3, -1)
    np.clip(mixed, 0, 1, out=mixed)
    gamma = np.float32(camera.gamma * float(rng.normal(1.0, 0.04)))
    if gamma != 1:
        np.power(mixed, gamma, out=mixed)
    mixed = mixed.reshape(3, grid, grid) * _field(rng, camera, grid)
    mixed *= np.float32(255.0)
    sharp = Image.fromarray(np.ascontiguousarray(mixed.astype(np.uint8).transpose(1, 2, 0)))
    blurred = sharp.filter(ImageFilter.GaussianBlur(camera.blur * grid))
    return _compressed(_grainy(streams, blurred, camera, size), camera.jpeg, quality)


def _illumination(rng: np.random.Generator, camera: Camera, size: int) -> Float:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    direction, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0) * camera.gradient
    across = tilt * (math.cos(direction) * axis[None, :] + math.sin(direction) * axis[:, None])
    corner = camera.vignette * 0.5 * (axis[None, :] ** 2 + axis[:, None] ** 2)
    return np.maximum(1.0 + across - corner, 0.02).astype(np.float32)


def _field(rng: np.random.Generator, camera: Camera, size: int) -> Float:
    """Return 1 in the field of view and 0 beside it: an arc near the left or right border."""
    seen, side = rng.random() < camera.aperture, rng.choice([-1.0, 1.0])
    border, middle = rng.uniform(0.8, 1.1), rng.uniform(-0.4, 0.4)
    if not seen:
        return np.ones((1, 1), dtype=np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    across = side * axis[None, :] + 0.18 * (axis[:, None] - np.float32(middle)) ** 2
    field = np.clip((np.float32(border) - across) * np.float32(size / 4), 0, 1)
    return cast(Float, field)


def _grainy(streams: Streams, picture: Image.Image, camera: Camera, size: int) -> Uint8:
    """Enlarge a picture and add grain: one part of all colours, one coarser part of each."""
    rng = streams("grain")
    grid = picture.width
    tinted = np.asarray(picture) + _grain(rng, (grid, grid, 3), 0.6 * camera.noise)
    tinted = np.clip(tinted, 0, 255).astype(np.uint8)
    large = Image.fromarray(tinted).resize((size, size), Image.Resampling.BICUBIC)
    levels = np.asarray(large) + _grain(rng, (size, size, 1), camera.noise)
    return cast(Uint8, np.clip(levels, 0, 255).astype(np.uint8))


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> npt.NDArray[np.int16]:
    """Return normal noise in whole gray levels: bytes looked up, as drawing normals takes longer.

    Args:
        rng: The stream.
        shape: Of the noise.
        sigma: Standard deviation, share of full scale.
    """
    table = np.rint(_NORMAL * (255.0 * sigma)).astype(np.int16)
    return table[rng.integers(0, 256, shape, dtype=np.uint8)]


def _compressed(picture: Uint8, severity: float, worst: int) -> Uint8:
    """Return what is left after JPEG; nothing is encoded at severity 0."""
    if severity <= 0:
        return picture
    stream = io.BytesIO()
    quality = round(_BEST_QUALITY * (worst / _BEST_QUALITY) ** severity)
    Image.fromarray(picture).save(stream, format="JPEG", quality=max(quality, 1))
    return np.array(Image.open(stream), dtype=np.uint8)
