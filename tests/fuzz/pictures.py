"""Targets: images and masks from bytes that no camera wrote."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from sfuda_bench.images.decode import decode_levels, read_image, read_levels, read_mask
from sfuda_bench.running.own.images import read_picture
from tests.fuzz.mutations import damaged
from tests.fuzz.outcome import Finding, only_our_errors

SIDE = 9
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    extra: tuple[tuple[bytes, bytes], ...] = (),
    data: bytes | None = None,
    wrong_crc: bool = False,
) -> bytes:
    """Return a PNG whose header says what it is told to; its pixels need not follow."""
    if data is None:
        row = min((CHANNELS.get(colour, 1) * depth * width + 7) // 8, 300_000)
        data = b"".join(b"\0" + bytes(row) for _ in range(min(height, 64)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(kind, body, wrong_crc) for kind, body in chunks)


def chunk(kind: bytes, body: bytes, wrong_crc: bool = False) -> bytes:
    """Return one chunk of a PNG."""
    crc = zlib.crc32(kind + body) ^ (1 if wrong_crc and kind == b"IDAT" else 0)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc & 0xFFFFFFFF)


def seeds() -> dict[str, bytes]:
    """Return small files of every kind that is met: by name."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    gray = rng.choice(np.array([0, 50, 51, 128, 200, 201, 255], np.uint8), (SIDE, SIDE))
    made = {
        f"{mode}.{kind.lower()}": _saved(Image.fromarray(array), kind)
        for mode, array in (("rgb", colours), ("gray", gray))
        for kind in ("PNG", "JPEG", "BMP", "TIFF")
    }
    made["palette.png"] = _saved(Image.fromarray(gray).convert("P"), "PNG")
    made["rgba.png"] = _saved(Image.fromarray(colours).convert("RGBA"), "PNG")
    made["bits.png"] = _saved(Image.fromarray(gray).convert("1"), "PNG")
    made["gray16.png"] = _saved(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    made["float.tiff"] = _saved(Image.fromarray(gray.astype(np.float32)), "TIFF")
    made["cmyk.jpeg"] = _saved(Image.fromarray(colours).convert("CMYK"), "JPEG")
    return made


def headers(rng: random.Random) -> bytes:
    """Return a PNG with an unusual header: sizes, depths, colours, interlacing, chunks."""
    sides = (0, 1, 2, SIDE, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
    extra = (
        (),
        ((b"tRNS", b"\0" * 6),),
        ((b"PLTE", b"\0" * 768),),
        ((b"IHDR", bytes(13)),),
        ((b"iCCP", b"x\0\0" + zlib.compress(bytes(100_000))),),
        ((b"zTXt", b"x\0\0" + zlib.compress(bytes(2_000_000))),),
        ((b"acTL", struct.pack(">II", 2**31 - 1, 0)),),
        ((b"abcd", b"x" * 40),),
    )
    bombs = (None, None, b"", b"\0" * 20_000_000, b"\5" * 300)
    return png(
        rng.choice(sides),
        rng.choice(sides),
        depth=rng.choice((0, 1, 2, 4, 8, 16, 255)),
        colour=rng.choice((0, 1, 2, 3, 4, 6, 7, 255)),
        interlace=rng.choice((0, 1, 2)),
        extra=rng.choice(extra),
        data=rng.choice(bombs),
        wrong_crc=rng.random() < 0.2,
    )


def attack(rng: random.Random, folder: Path) -> None:
    """Decode one file that is wrong somewhere, in every way that files are decoded.

    Raises:
        Finding: An exception of a decoder, or pixels that the file does not hold.
    """
    name, data = rng.choice(sorted(seeds().items()))
    content = headers(rng) if rng.random() < 0.3 else damaged(data, rng)
    path = folder / f"{rng.choice(('x', 'é<&'))}-{name}"
    path.write_bytes(content)
    check_all(path)


def check_all(path: Path) -> None:
    """Decode a file as image, as mask and as a picture of one's own.

    Raises:
        Finding: An exception of a decoder, or an array of another kind than promised.
    """
    image = only_our_errors(lambda: read_image(path), str(path))
    if isinstance(image, np.ndarray) and (
        image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size
    ):
        raise Finding(f"an image of {image.dtype} {image.shape}")
    levels = only_our_errors(lambda: read_levels(path), str(path))
    mask = only_our_errors(lambda: read_mask(path), str(path))
    if isinstance(levels, np.ndarray) != isinstance(mask, np.ndarray):
        raise Finding("gray levels and a mask do not agree on the file")
    if isinstance(mask, np.ndarray) and (
        not np.array_equal(mask, decode_levels(levels)) or (mask[0] & ~mask[1]).any()
    ):
        raise Finding("a cup outside its disc")
    picture = only_our_errors(lambda: read_picture(path), str(path))
    pixels = getattr(picture, "pixels", None)
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 3):
        raise Finding(f"a picture of {pixels.dtype} {pixels.shape}")
    if isinstance(image, np.ndarray) and pixels is not None and pixels.shape != image.shape:
        raise Finding("two decoders, two sizes")


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
