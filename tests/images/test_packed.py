from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.datasets import Sample, Split
from sfuda_bench.errors import DataError, StoreSchemaError
from sfuda_bench.images import packed as packed_module
from sfuda_bench.images.decode import central_window
from sfuda_bench.images.packed import (
    PackedMasks,
    open_images,
    pack_images,
    pack_masks,
    read_names,
)


def make_split(folder: Path, names: list[str], size: int = 12) -> Split:
    """A split whose contents follow from the position in ``names``, not from the name."""
    samples = []
    for kind in ("image", "mask"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        image, mask = (folder / kind / f"{name}.png" for kind in ("image", "mask"))
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.choice([0, 128, 255], (size, size)).astype(np.uint8)).save(mask)
        samples.append(Sample(name, image, mask))
    return Split("train", tuple(sorted(samples, key=lambda sample: sample.stem)))


def masks_of(split: Split, size: int, folder: Path) -> PackedMasks:
    masks = pack_masks(split, size, folder)
    assert masks is not None
    return masks


def test_images_and_masks_share_one_order_and_reach_the_right_names(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", ["g1", "n2", "a3", "z4"])
    images, masks = pack_images(split, 12, tmp_path), masks_of(split, 12, tmp_path)
    names = read_names(tmp_path, images.key)
    assert images.array.shape == (4, 12, 12, 3)
    assert images.array.dtype == np.uint8
    assert masks.array.shape == (4, 2, 12, 12)
    assert masks.ids == images.ids
    for i, opaque in enumerate(images.ids):
        source = tmp_path / "data" / "image" / f"{names[opaque]}.png"
        levels = np.asarray(Image.open(tmp_path / "data" / "mask" / f"{names[opaque]}.png"))
        assert np.array_equal(images.array[i], np.asarray(Image.open(source)))
        assert np.array_equal(masks.array[i], np.stack([levels <= 50, levels <= 200]))


def test_renaming_changes_no_order_id_key_or_digest(tmp_path: Path) -> None:
    first = make_split(tmp_path / "a", ["g1", "n2", "a3", "z4"])
    second = make_split(tmp_path / "b", ["z9", "y8", "x7", "w6"])
    one, two = (pack_images(s, 8, tmp_path / s.samples[0].stem) for s in (first, second))
    assert (one.key, one.ids, one.set_digest) == (two.key, two.ids, two.set_digest)
    assert np.array_equal(one.array, two.array)
    masks = [masks_of(s, 8, tmp_path / s.samples[0].stem) for s in (first, second)]
    assert masks[0].mask_digest == masks[1].mask_digest
    assert np.array_equal(masks[0].array, masks[1].array)


def test_the_image_pack_holds_no_file_name(tmp_path: Path) -> None:
    pack_images(make_split(tmp_path / "data", ["glaucoma17", "normal18"]), 8, tmp_path)
    for path in (tmp_path / "images").iterdir():
        assert b"glaucoma" not in path.read_bytes()
        assert "glaucoma" not in path.name


def test_the_set_digest_is_of_the_native_images_and_independent_of_the_size(
    tmp_path: Path,
) -> None:
    split = make_split(tmp_path / "data", ["a", "b", "c"])
    small, large = pack_images(split, 6, tmp_path), pack_images(split, 9, tmp_path)
    assert small.set_digest == large.set_digest
    assert small.key != large.key
    assert small.ids == large.ids
    assert small.native_sizes == ((12, 12),) * 3


def test_swapping_masks_changes_the_mask_digest_and_no_image(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", ["a", "b", "c"])
    a, b, c = split.samples
    swapped = Split("train", (Sample(a.stem, a.image, b.mask), Sample(b.stem, b.image, a.mask), c))
    before, after = masks_of(split, 8, tmp_path), masks_of(swapped, 8, tmp_path)
    assert before.mask_digest != after.mask_digest
    assert before.key != after.key
    assert pack_images(split, 8, tmp_path) == pack_images(swapped, 8, tmp_path)


def test_a_repeated_image_gets_an_id_of_its_own_whatever_the_names(tmp_path: Path) -> None:
    folders = []
    for order in (("a", "b"), ("b", "a")):
        folder = tmp_path / "".join(order)
        split = make_split(folder / "data", list(order))
        first, second = split.samples
        second.image.write_bytes(first.image.read_bytes())  # one image, two different masks
        folders.append((split, folder))
    packs = [(pack_images(s, 8, f), masks_of(s, 8, f)) for s, f in folders]
    images = packs[0][0]
    assert images.ids[1] == f"{images.ids[0]}-2"
    assert packs[0][1].ids == images.ids
    digests = [masks.digests for _, masks in packs]
    assert list(digests[0]) == sorted(digests[0])
    assert list(digests[1]) == sorted(digests[1])


def test_an_unchanged_split_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(tmp_path / "data", ["a", "b"])
    before = pack_images(split, 8, tmp_path), pack_masks(split, 8, tmp_path)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(packed_module, "read_image", refuse)
    monkeypatch.setattr(packed_module, "read_mask", refuse)
    assert (pack_images(split, 8, tmp_path), pack_masks(split, 8, tmp_path)) == before


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", ["a", "b"])
    before = pack_images(split, 8, tmp_path)
    path = split.samples[0].image
    Image.fromarray(np.zeros((12, 12, 3), dtype=np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert pack_images(split, 8, tmp_path).set_digest != before.set_digest


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6])
def test_a_truncated_pack_is_reported_as_corrupted(tmp_path: Path, keep: float) -> None:
    split = make_split(tmp_path / "data", ["a", "b"])
    path = pack_images(split, 8, tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(StoreSchemaError, match=r"\.npy: a corrupted pack"):
        open_images(path)
    with pytest.raises(StoreSchemaError, match="corrupted"):
        pack_images(split, 8, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1}'])
def test_a_damaged_description_is_reported_as_corrupted(tmp_path: Path, text: str) -> None:
    path = pack_images(make_split(tmp_path / "data", ["a"]), 8, tmp_path).path
    path.with_suffix(".json").write_text(text)
    with pytest.raises(StoreSchemaError, match=r"\.json: a corrupted pack"):
        open_images(path)


def test_a_pack_of_another_shape_is_reported_as_corrupted(tmp_path: Path) -> None:
    path = pack_images(make_split(tmp_path / "data", ["a", "b"]), 8, tmp_path).path
    np.save(path, np.zeros((1, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(StoreSchemaError, match="expected uint8"):
        open_images(path)


def test_an_interrupted_pack_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(tmp_path / "data", ["a", "b"])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed_module.os, "replace", stop)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            pack_images(split, 8, tmp_path)
    leftovers = [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".npy")]
    assert leftovers == []
    assert len(pack_images(split, 8, tmp_path)) == 2


def without_masks(split: Split, keep: Callable[[Sample], bool]) -> Split:
    samples = (s if keep(s) else Sample(s.stem, s.image, None) for s in split.samples)
    return Split(split.name, tuple(samples))


def test_missing_masks_are_listed_or_optional(tmp_path: Path) -> None:
    split = without_masks(
        make_split(tmp_path / "data", list("abcdefgh")), lambda sample: sample.stem == "a"
    )
    with pytest.raises(DataError, match=r"7 of 8 images.*b\.png.* and 2 more"):
        pack_masks(split, 8, tmp_path)
    with pytest.raises(DataError, match=r"7 of 8 images"):  # some are there: the rest is missing
        pack_masks(split, 8, tmp_path, optional=True)
    bare = without_masks(split, lambda sample: False)
    assert pack_masks(bare, 8, tmp_path, optional=True) is None


def test_a_mask_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", ["a", "b"])
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(tmp_path / "data" / "mask" / "b.png")
    with pytest.raises(DataError, match=r"b\.png: the mask is 7 x 5 px but its image is 12 x 12"):
        pack_masks(split, 8, tmp_path)


def test_packing_needs_no_torch() -> None:
    modules = "decode, packed, verify"
    code = f"import sys; from sfuda_bench.images import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the central window -----------------------------------------------------------------------


def test_a_cropped_split_is_the_split_of_the_windows(tmp_path: Path) -> None:
    """ROI files of 12 px with a window of 8 equal files that hold the window and nothing else."""
    split = make_split(tmp_path / "large", ["g1", "n2", "a3"], size=12)
    for sample in split.samples:
        for path in (sample.image, sample.mask):
            assert path is not None
            small = tmp_path / "small" / path.parent.name / path.name
            small.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).crop((2, 2, 10, 10)).save(small)
    samples = [
        Sample(s.stem, *(tmp_path / "small" / kind / f"{s.stem}.png" for kind in ("image", "mask")))
        for s in split.samples
    ]
    windows = Split("train", tuple(samples))
    for size in (8, 6):
        cropped = pack_images(split, size, tmp_path / "a", crop_px=8)
        whole = pack_images(windows, size, tmp_path / "b")
        assert np.array_equal(cropped.array, whole.array)
        assert (cropped.set_digest, cropped.key, cropped.ids) == (
            whole.set_digest, whole.key, whole.ids,
        )  # fmt: skip
        assert cropped.native_sizes == ((8, 8),) * 3
        masks = pack_masks(split, size, tmp_path / "a", crop_px=8)
        assert masks is not None
        expected = masks_of(windows, size, tmp_path / "b")
        assert np.array_equal(masks.array, expected.array)
        assert masks.mask_digest == expected.mask_digest


def test_what_is_remembered_of_a_file_knows_its_window(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", ["a", "b"], size=12)
    digests = {pack_images(split, 6, tmp_path, crop_px=c).set_digest for c in (0, 8, 0, 8, 10)}
    assert len(digests) == 3


@pytest.mark.parametrize("crop_px", [0, 12, 13, 800])
def test_a_file_no_larger_than_the_window_is_taken_whole(tmp_path: Path, crop_px: int) -> None:
    split = make_split(tmp_path / "data", ["a", "b"], size=12)
    assert pack_images(split, 6, tmp_path, crop_px=crop_px) == pack_images(split, 6, tmp_path)


def test_an_odd_surplus_goes_at_the_bottom_and_the_right() -> None:
    """800 - 512 leaves 144 on each side; of 5 - 2 = 3, one goes before the window."""
    array = np.arange(25).reshape(5, 5, 1)
    assert central_window(array, 2, axis=0)[..., 0].tolist() == [[6, 7], [11, 12]]
    rows = np.arange(800)[:, None, None] + np.zeros((1, 800, 3), dtype=int)
    assert central_window(rows, 512, axis=0)[[0, -1], 0, 0].tolist() == [144, 655]
