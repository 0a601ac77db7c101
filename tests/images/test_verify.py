from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.images.verify import Finding, verify


def disc_levels(size: int = 32) -> np.ndarray:
    axis = np.arange(size) - size / 2 + 0.5
    distance = np.hypot(axis[:, None], axis[None, :])
    return np.select([distance < 5, distance < 10], [0, 128], 255).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two small domains without any problem."""
    rng = np.random.default_rng(0)
    for domain in ("here", "there"):
        for split in ("train", "test"):
            rois = tmp_path / domain / split / "ROIs"
            for kind in ("image", "mask"):
                (rois / kind).mkdir(parents=True)
            for name in ("a", "b"):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(rois / "image" / f"{name}.png")
                Image.fromarray(disc_levels()).save(rois / "mask" / f"{name}.png")
    return tmp_path


def rois(root: Path) -> Path:
    return root / "here" / "train" / "ROIs"


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_a_sound_root_has_no_findings(root: Path) -> None:
    assert verify(root) == []


def stray(root: Path) -> None:
    levels = disc_levels()
    levels[0, 0] = 17 * 15 - 15
    save(rois(root) / "mask" / "a.png", levels)


def touching(root: Path) -> None:
    levels = disc_levels()
    levels[levels == 128] = 255
    save(rois(root) / "mask" / "a.png", levels)


def missing_one(root: Path) -> None:
    (rois(root) / "mask" / "a.png").unlink()


def missing_all(root: Path) -> None:
    for path in (rois(root) / "mask").iterdir():
        path.unlink()


def orphan(root: Path) -> None:
    save(rois(root) / "mask" / "c.png", disc_levels())


def other_size(root: Path) -> None:
    save(rois(root) / "mask" / "a.png", disc_levels(30))


def gray_image(root: Path) -> None:
    save(rois(root) / "image" / "a.png", disc_levels())


def coloured_mask(root: Path) -> None:
    save(rois(root) / "mask" / "a.png", np.arange(32 * 32 * 3).reshape(32, 32, 3) % 256)


def empty_split(root: Path) -> None:
    for path in rois(root).rglob("*.png"):
        path.unlink()


def duplicate_across(root: Path) -> None:
    image = root / "there" / "test" / "ROIs" / "image" / "b.png"
    image.write_bytes((rois(root) / "image" / "a.png").read_bytes())


def duplicate_within(root: Path) -> None:
    image = rois(root) / "image" / "b.png"
    pixels = np.asarray(Image.open(rois(root) / "image" / "a.png"))
    Image.fromarray(pixels).save(image, compress_level=0)  # other bytes, same image


def unpublished_counts(root: Path) -> None:
    (root / "here").rename(root / "Domain1")


def no_disc(root: Path) -> None:
    save(rois(root) / "mask" / "a.png", np.full((32, 32), 255))


def oblong(root: Path) -> None:
    save(rois(root) / "image" / "a.png", np.zeros((32, 20, 3)))
    save(rois(root) / "mask" / "a.png", disc_levels()[:, 6:26])


def photograph(root: Path) -> None:
    (rois(root) / "image" / "c.jpg").write_bytes(b"")


def ambiguous(root: Path) -> None:
    (root / "here").rename(root / "refuge")


@pytest.mark.parametrize(
    ("spoil", "severity", "message"),
    [
        (stray, "error", "stray values 240"),
        (touching, "warning", "px of the cup reach the edge of the disc"),
        (missing_one, "error", "missing mask"),
        (missing_all, "warning", "no masks"),
        (orphan, "error", "a mask without an image"),
        (other_size, "error", "30 x 30 px, but its image is 32 x 32 px"),
        (gray_image, "error", "8-bit gray PNG"),
        (coloured_mask, "error", "unequal channels"),
        (empty_split, "error", "has no *.png file"),
        (duplicate_across, "error", "the same image as"),
        (duplicate_within, "warning", "the same image as"),
        (
            unpublished_counts,
            "warning",
            "2 / 2 train / test images; the published split has 50 / 51",
        ),
        (no_disc, "warning", "no disc"),
        (oblong, "warning", "not square"),
        (photograph, "warning", "c.jpg"),
        (ambiguous, "error", "refuge_train and refuge_val"),
    ],
)
def test_every_problem_is_found_once_with_its_severity(
    root: Path, spoil: Callable[[Path], None], severity: str, message: str
) -> None:
    spoil(root)
    found = [finding for finding in verify(root) if message in finding.message]
    assert [finding.severity for finding in found] == [severity]
    assert root in found[0].path.parents


def test_all_problems_are_listed_errors_first(root: Path) -> None:
    for spoil in (stray, orphan, duplicate_across):
        spoil(root)
    findings = verify(root)
    assert [finding.severity for finding in findings] == ["error", "error", "error"]
    assert all(isinstance(finding, Finding) for finding in findings)


def test_a_missing_root_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "nowhere")
