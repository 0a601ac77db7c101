"""Pack a split once into memory-mappable arrays: images and masks in separate files.

Below the pack folder::

    images/<key>.npy    (N, S, S, 3) uint8, ordered by content digest
    images/<key>.json   opaque ids, digests, native sizes
    masks/<key>.npy     (N, 2, S, S) bool, in the same order
    masks/<key>.json    digests
    names/<key>.json    opaque id -> file stem (stems can carry the diagnosis)
    names/index.json    path, size and time of each file -> digest, so that nothing is decoded twice

A worker that adapts is handed ``images/`` alone. Neither order nor ids depend on file names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from sfuda_bench.datasets import Sample, Split
from sfuda_bench.errors import (
    DataError,
    EnvironmentProblem,
    MissingMasks,
    StoreSchemaError,
)
from sfuda_bench.images.decode import (
    Bool,
    Uint8,
    central_window,
    content_digest,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)

PACK_VERSION = 1
_INDEX_VERSION = 2

_LISTED = 5  # file names spelled out in one message


@dataclass(frozen=True)
class PackedImages:
    """The images of one split at one size.

    Args:
        path: The ``.npy`` file.
        key: Name of the pack; follows from the image contents, the size and the pack version.
        size: Side of the packed images, px.
        ids: Opaque ids in order: the first 12 digits of the content digest, ``-2`` for a repeat.
        digests: Content digests of the native images, in order.
        native_sizes: (height, width) of the native images, px, in order.
        set_digest: Digest of the set of native images; independent of size and names.
    """

    path: Path
    key: str
    size: int
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    native_sizes: tuple[tuple[int, int], ...]
    set_digest: str

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def array(self) -> Uint8:
        """The images, (N, S, S, 3) uint8, memory-mapped and read-only."""
        return cast(Uint8, _open_array(self.path, (len(self), self.size, self.size, 3), np.uint8))


@dataclass(frozen=True)
class PackedMasks:
    """The masks of one split at one size, in the order of its images.

    Args:
        path: The ``.npy`` file.
        key: Name of the pack; follows from the mask contents, the size and the pack version.
        size: Side of the packed masks, px.
        ids: Opaque ids of the images, in order.
        digests: Content digests of the native masks, in order.
        mask_digest: Digest of the pairing of native images with native masks.
    """

    path: Path
    key: str
    size: int
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    mask_digest: str

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def array(self) -> Bool:
        """The masks, (N, 2, S, S) bool, cup then disc, memory-mapped and read-only."""
        return cast(Bool, _open_array(self.path, (len(self), 2, self.size, self.size), np.bool_))


def pack_images(split: Split, size: int, folder: Path, *, crop_px: int = 0) -> PackedImages:
    """Pack the images of a split, or open the pack when it exists.

    Args:
        split: The split; its masks are not looked at.
        size: Side of the packed images, px.
        folder: Pack folder, created when missing.
        crop_px: Side of the central window that stands for the file, px; 0 for the whole file. A
            cropped file has the digest of a file that holds the window and nothing else.

    Raises:
        DataError: An image cannot be read.
        StoreSchemaError: The pack exists but is damaged.
        EnvironmentProblem: The disk is full.
    """
    index = _Index(folder, crop_px)
    read = partial(_read_native_image, crop_px=crop_px)
    found = _digest_all([sample.image for sample in split.samples], index, read, size)
    order = sorted(range(len(found)), key=lambda i: (found[i].digest, split.samples[i].stem))
    found = [found[i] for i in order]
    digests = [item.digest for item in found]
    key = _key("images", size, digests)
    path = folder / "images" / f"{key}.npy"
    ids = _opaque_ids(digests)
    stems = {name: split.samples[i].stem for name, i in zip(ids, order, strict=True)}
    _write_json(folder / "names" / f"{key}.json", stems)
    if not path.with_suffix(".json").is_file():
        arrays = _arrays(found, [split.samples[i].image for i in order], read, size)
        _write_array(path, arrays, (len(found), size, size, 3), np.uint8)
        meta = {
            "version": PACK_VERSION,
            "key": key,
            "size": size,
            "ids": ids,
            "digests": digests,
            "native_sizes": [item.native_size for item in found],
            "set_digest": set_digest(digests),
            "sha256": _file_digest(path),
        }
        _write_json(path.with_suffix(".json"), meta)
    return open_images(path)


def pack_masks(
    split: Split, size: int, folder: Path, *, optional: bool = False, crop_px: int = 0
) -> PackedMasks | None:
    """Pack the masks of a split in the order of its images, or open the pack when it exists.

    Among identical images the order follows the masks, so that it never depends on names.

    Args:
        split: The split.
        size: Side of the packed masks, px.
        folder: Pack folder, created when missing.
        optional: Return ``None`` when the split has no mask at all instead of raising.
        crop_px: As for the images.

    Raises:
        MissingMasks: Some masks are missing (all of them, unless ``optional``).
        DataError: A mask cannot be read, or differs in size from its image.
        StoreSchemaError: The pack exists but is damaged.
        EnvironmentProblem: The disk is full.
    """
    paths = _mask_paths(split, optional=optional)
    if paths is None:
        return None
    index = _Index(folder, crop_px)
    read_images, read = (
        partial(reader, crop_px=crop_px) for reader in (_read_native_image, _read_native_mask)
    )
    images = _digest_all([s.image for s in split.samples], index, read_images, size)
    masks = _digest_all(paths, index, read, size)
    _check_same_size(split.samples, images, masks)
    order = sorted(range(len(masks)), key=lambda i: (images[i].digest, masks[i].digest))
    masks = [masks[i] for i in order]
    image_digests, digests = [images[i].digest for i in order], [item.digest for item in masks]
    pairing = [f"{image}:{mask}" for image, mask in zip(image_digests, digests, strict=True)]
    key = _key("masks", size, pairing)
    path = folder / "masks" / f"{key}.npy"
    if not path.with_suffix(".json").is_file():
        arrays = _arrays(masks, [paths[i] for i in order], read, size)
        _write_array(path, arrays, (len(masks), 2, size, size), np.bool_)
        meta = {
            "version": PACK_VERSION,
            "key": key,
            "size": size,
            "ids": _opaque_ids(image_digests),
            "digests": digests,
            "mask_digest": set_digest(pairing),
            "sha256": _file_digest(path),
        }
        _write_json(path.with_suffix(".json"), meta)
    return open_masks(path)


def open_images(path: Path) -> PackedImages:
    """Open an image pack by its ``.npy`` file.

    Raises:
        StoreSchemaError: The pack is missing, damaged or of another version.
    """
    meta = _read_meta(path, ("ids", "digests", "native_sizes", "set_digest"))
    packed = PackedImages(
        path=path,
        key=meta["key"],
        size=meta["size"],
        ids=tuple(meta["ids"]),
        digests=tuple(meta["digests"]),
        native_sizes=tuple((height, width) for height, width in meta["native_sizes"]),
        set_digest=meta["set_digest"],
    )
    _ = packed.array  # maps the file and checks it, without reading the pixels
    return packed


def open_masks(path: Path) -> PackedMasks:
    """Open a mask pack by its ``.npy`` file.

    Raises:
        StoreSchemaError: The pack is missing, damaged or of another version.
    """
    meta = _read_meta(path, ("ids", "digests", "mask_digest"))
    packed = PackedMasks(
        path=path,
        key=meta["key"],
        size=meta["size"],
        ids=tuple(meta["ids"]),
        digests=tuple(meta["digests"]),
        mask_digest=meta["mask_digest"],
    )
    _ = packed.array  # maps the file and checks it, without reading the pixels
    return packed


def read_names(folder: Path, key: str) -> dict[str, str]:
    """Return the file stem of each opaque id of an image pack.

    Args:
        folder: Pack folder.
        key: Key of the image pack.

    Raises:
        StoreSchemaError: The file is missing or damaged.
    """
    return cast(dict[str, str], _read_json(folder / "names" / f"{key}.json"))


def stems_of(path: Path, ids: Sequence[str]) -> list[str]:
    """Return the file stems of opaque ids, in their order.

    Raises:
        StoreSchemaError: The file of names is missing, damaged or lacks one.
    """
    names = _read_json(path)
    if not isinstance(names, dict) or not all(isinstance(names.get(name), str) for name in ids):
        raise damaged_pack(path, "lacks the name of an image")
    return [names[name] for name in ids]


def load_pack(path: Path) -> npt.NDArray[Any]:
    """Map the array of a pack into memory once its bytes are what was packed.

    Raises:
        StoreSchemaError: It is missing, or damaged.
    """
    try:
        status = path.stat()
        _check_pixels(path, status.st_mtime_ns, status.st_size)
        return cast(npt.NDArray[Any], np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise damaged_pack(path, str(error)) from error


@lru_cache(maxsize=256)
def _check_pixels(path: Path, modified: int, size: int) -> None:
    """Compare the bytes with their digest in the description; earlier packs have none."""
    meta_path = path.with_suffix(".json")
    meta = _read_json(meta_path) if meta_path.is_file() else {}
    expected = meta.get("sha256") if isinstance(meta, dict) else None
    if expected is not None and expected != _file_digest(path):
        raise damaged_pack(path, "other pixels than were packed")


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def set_digest(digests: Sequence[str]) -> str:
    """Return the digest of a collection of digests, whatever its order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


# -- digests ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """One native file: its digest, its size and, when it had to be decoded, its resized pixels."""

    digest: str
    native_size: tuple[int, int]
    resized: npt.NDArray[Any] | None = None


class _Index:
    """What is known of each file from an earlier run: path, size and time -> digest."""

    def __init__(self, folder: Path, crop_px: int = 0) -> None:
        self.suffix = f"#{crop_px}" if crop_px else ""
        self.path = folder / "names" / "index.json"
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries: dict[str, list[Any]] = content["files"]
            if content["version"] != _INDEX_VERSION:
                self.entries = {}
        except (OSError, ValueError, KeyError, TypeError):
            self.entries = {}  # only a shortcut: without it files are decoded again

    def get(self, path: Path) -> _Item | None:
        entry = self.entries.get(self._name(path))
        if entry is None or entry[:-3] != self._stamp(path):
            return None
        return _Item(entry[-3], (entry[-2], entry[-1]))

    def update(self, items: dict[Path, _Item]) -> None:
        for path, item in items.items():
            entry = [*self._stamp(path), item.digest, *item.native_size]
            self.entries[self._name(path)] = entry
        _write_json(self.path, {"version": _INDEX_VERSION, "files": self.entries})

    def _name(self, path: Path) -> str:
        return f"{path.absolute()}{self.suffix}"

    @staticmethod
    def _stamp(path: Path) -> list[int]:
        try:
            status = path.stat()
        except OSError:
            return [-1]  # gone: the decoder says so by name
        # Two files that swap names keep size and time of change of their contents.
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


_Native = tuple[str, tuple[int, int], npt.NDArray[Any]]
_Reader = Callable[[Path, int], _Native]


def _read_native_image(path: Path, size: int, *, crop_px: int = 0) -> _Native:
    image = central_window(read_image(path), crop_px, axis=0)
    return content_digest(image), (image.shape[0], image.shape[1]), resize_image(image, size)


def _read_native_mask(path: Path, size: int, *, crop_px: int = 0) -> _Native:
    mask = central_window(read_mask(path), crop_px, axis=1)
    return content_digest(mask), (mask.shape[1], mask.shape[2]), resize_mask(mask, size)


def _digest_all(paths: Sequence[Path], index: _Index, read: _Reader, size: int) -> list[_Item]:
    """Return one item per path, decoding (in threads) only what the index does not know."""
    known = {path: index.get(path) for path in paths}
    unknown = [path for path, item in known.items() if item is None]
    if unknown:
        fresh = dict(zip(unknown, _decode(unknown, read, size), strict=True))
        index.update(fresh)
        known |= fresh
    return [item for path in paths if (item := known[path]) is not None]


def _decode(paths: Sequence[Path], read: _Reader, size: int) -> list[_Item]:
    with ThreadPoolExecutor() as pool:
        return [_Item(*native) for native in pool.map(lambda path: read(path, size), paths)]


def _arrays(
    items: Sequence[_Item], paths: Sequence[Path], read: _Reader, size: int
) -> Iterator[npt.NDArray[Any]]:
    """Yield the resized arrays in order, decoding the files that only the index knew."""
    missing = [i for i, item in enumerate(items) if item.resized is None]
    decoded = dict(zip(missing, _decode([paths[i] for i in missing], read, size), strict=True))
    for i, item in enumerate(items):
        found = decoded.get(i, item)
        if found.digest != item.digest or found.resized is None:
            raise DataError(f"{paths[i]}: changed while it was read", hint="run again")
        yield found.resized


def _key(kind: str, size: int, digests: Sequence[str]) -> str:
    recipe = f"{kind} {PACK_VERSION} {size} {set_digest(digests)}"
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _opaque_ids(digests: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for name in (digest[:12] for digest in digests):
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids


def _mask_paths(split: Split, *, optional: bool) -> list[Path] | None:
    paths = [sample.mask for sample in split.samples if sample.mask is not None]
    if len(paths) == len(split.samples):
        return paths
    if optional and not paths:
        return None
    missing = [sample.image for sample in split.samples if sample.mask is None]
    listed = ", ".join(str(path) for path in missing[:_LISTED])
    more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    raise MissingMasks(
        f"{len(missing)} of {len(split.samples)} images of split '{split.name}' have no mask: "
        f"{listed}{more}",
        hint="a mask is a PNG of the same name under ROIs/mask",
    )


def _check_same_size(
    samples: Sequence[Sample], images: Sequence[_Item], masks: Sequence[_Item]
) -> None:
    for sample, image, mask in zip(samples, images, masks, strict=True):
        if image.native_size != mask.native_size:
            raise DataError(
                f"{sample.mask}: the mask is {_px(mask)} px but its image is {_px(image)} px",
                hint="sfuda-bench data verify --data-root DIR",
            )


def _px(item: _Item) -> str:
    height, width = item.native_size
    return f"{width} x {height}"


# -- files -----------------------------------------------------------------------------------


def _write_array(
    path: Path,
    arrays: Iterator[npt.NDArray[Any]],
    shape: tuple[int, ...],
    dtype: type[np.generic],
) -> None:
    """Write an ``.npy`` file row by row: nothing holds the whole pack in memory twice."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with _replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype=dtype).tobytes())


def _open_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged_pack(path, str(error)) from error
    if array.shape != shape or array.dtype != dtype:
        raise damaged_pack(
            path, f"holds {array.dtype} {array.shape}, expected {dtype.__name__} {shape}"
        )
    return cast(npt.NDArray[Any], array)


def _read_meta(path: Path, names: Sequence[str]) -> dict[str, Any]:
    meta_path = path.with_suffix(".json")
    meta = _read_json(meta_path)
    if not isinstance(meta, dict) or meta.get("version") != PACK_VERSION:
        raise damaged_pack(meta_path, f"expected pack version {PACK_VERSION}")
    missing = [name for name in ("key", "size", *names) if name not in meta]
    if missing:
        raise damaged_pack(meta_path, f"without {', '.join(missing)}")
    return meta


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged_pack(path, str(error)) from error


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, indent=1) + "\n"
    if not (path.is_file() and path.read_bytes() == text.encode()):
        with _replacing(path) as file:
            file.write(text.encode())


def damaged_pack(path: Path, problem: str) -> StoreSchemaError:
    """Return the error for a packed file that cannot be used."""
    return StoreSchemaError(
        f"{path}: a corrupted pack: {problem}",
        hint=f"delete {path.with_suffix('.npy')} and .json; the next run packs them again",
    )


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of ``path`` that takes its place when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                yield file
                file.flush()
                temporary.chmod(0o666 & ~_umask())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise EnvironmentProblem(
            f"{path.parent}: cannot write: {error.strerror}",
            hint="free some space, or choose another --out",
        ) from error


def _umask() -> int:
    """The process's file mode mask, which temporary files ignore."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
