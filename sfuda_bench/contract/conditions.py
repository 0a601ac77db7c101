"""What a bench can be changed to: things that must not matter, and targets that are hard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from sfuda_bench.contract.bench import SIZE, TARGET, Bench
from sfuda_bench.running.request import RECORDS
from sfuda_bench.running.store import write_manifest

EVERYTHING = frozenset(RECORDS)


def as_it_is(bench: Bench) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Condition:
    """A way to change a bench, and what its cells record."""

    name: str
    change: Callable[[Bench], None] = as_it_is
    record: frozenset[str] = frozenset()


def delete_masks(bench: Bench) -> None:
    """Delete every mask of the target."""
    for split in ("train", "test"):
        shutil.rmtree(bench.data / TARGET / split / "ROIs" / "mask")


def shuffle_masks(bench: Bench) -> None:
    """Give every image of the target the mask of another."""
    for split in ("train", "test"):
        paths = bench.images(TARGET, split, "mask")
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)


def noise_as_test_images(bench: Bench, keep: int = 0) -> None:
    """Replace the target's test images by noise, all but the first ``keep``."""
    rng = np.random.default_rng(5)
    for path in bench.images(TARGET, "test")[keep:]:
        noise = rng.integers(0, 256, np.asarray(Image.open(path)).shape, dtype=np.uint8)
        Image.fromarray(noise).save(path)


def rename_files(bench: Bench) -> None:
    """Give the target's files names in another order."""
    for split in ("train", "test"):
        for number, path in enumerate(reversed(bench.images(TARGET, split))):
            for kind in ("image", "mask"):
                old = path.parents[1] / kind / path.name
                old.rename(old.with_name(f"g{number}_{path.name}"))


def paint(bench: Bench, grays: Sequence[int]) -> None:
    """Replace the target's train and test images by constant ones."""
    for split in ("train", "test"):
        for number, path in enumerate(bench.images(TARGET, split)):
            Image.new("RGB", (SIZE, SIZE), (grays[number % len(grays)],) * 3).save(path)


def keep_two_equal_train_images(bench: Bench) -> None:
    """Leave one train image, twice."""
    first, *rest = bench.images(TARGET, "train")
    shutil.copy(first, rest[0])
    for path in rest[1:]:
        path.unlink()
        (path.parents[1] / "mask" / path.name).unlink()


def predict_background(bench: Bench) -> None:
    """Make the source models blind: every logit is -20."""
    for path in bench.out.glob("sources/*/*/model.safetensors"):
        state = load_file(path)
        state["head.weight"].zero_()
        state["head.bias"].fill_(-20)
        save_file(state, path)
        write_manifest(path.parent)


PLAIN = Condition("as it is")
AGAIN = Condition("as it is, again")
INTERRUPTED = Condition("interrupted after an epoch")
MASKS_DELETED = Condition("masks deleted", delete_masks)
MASKS_SHUFFLED = Condition("masks shuffled", shuffle_masks)
TEST_NOISE = Condition("test images are noise", noise_as_test_images)
TEST_NOISE_RECORDED = Condition(
    "test images are noise, everything recorded", noise_as_test_images, EVERYTHING
)
RENAMED = Condition("files renamed", rename_files)
RECORDED_UNLABELLED = Condition("everything recorded, masks deleted", delete_masks, EVERYTHING)
ONE_TEST_IMAGE_KEPT = Condition(
    "the other test images are noise", lambda bench: noise_as_test_images(bench, keep=1)
)
HARD = (
    Condition("all images black", lambda bench: paint(bench, [0])),
    Condition("constant images", lambda bench: paint(bench, [20, 90, 200])),
    Condition("one image, twice", keep_two_equal_train_images),
    Condition("source predicts background", predict_background),
)
