"""Small drawn photographs in the exact shapes of the owners' downloads; no image is a patient's."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

HEIGHT, WIDTH = 150, 180
DISC_RADIUS, CUP_RADIUS = 18.0, 9.0


def circle(
    centre: tuple[float, float], radius: float, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Bool:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.asarray(np.hypot(rows - centre[0], columns - centre[1]) <= radius)


def centre_of(number: int) -> tuple[float, float]:
    """Return a centre that differs between eyes."""
    return 60.0 + 7 * (number % 5), 70.0 + 9 * (number % 4)


def eye(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[Uint8, Bool]:
    """Draw a photograph and its mask (2, H, W), cup first."""
    centre = centre_of(number)
    cup, disc = circle(centre, CUP_RADIUS, size), circle(centre, DISC_RADIUS, size)
    noise = np.random.default_rng(number).integers(0, 12, (*size, 3))
    image = np.full((*size, 3), (150, 70, 30)) + noise
    image[disc] += (60, 60, 30)
    image[cup] += (20, 50, 50)
    return image.clip(0, 255).astype(np.uint8), np.stack([cup, disc])


def levels(mask: Bool, cup: int, rim: int, background: int) -> Uint8:
    return np.where(mask[0], cup, np.where(mask[1], rim, background)).astype(np.uint8)


def save(path: Path, pixels: Uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95) if path.suffix == ".jpg" else Image.fromarray(
        pixels
    ).save(path)
    return path


def binary(structure: Bool, *, bright: bool = True) -> Uint8:
    return np.asarray(np.where(structure == bright, 255, 0), np.uint8)


def soft(centre: tuple[float, float], radius: float, size: tuple[int, int]) -> Uint8:
    """Draw the shares of four graders whose circles differ by a pixel each."""
    count = sum(circle(centre, radius + step, size).astype(int) for step in (0, 1, 2, 3))
    return np.array([0, 64, 128, 191, 255], np.uint8)[count]


def drishti(root: Path, *, train: int = 3, test: int = 2, masks: bool = True) -> Path:
    """Write ``Drishti-GS1_files``; one soft map is two rows larger than its photograph."""
    names = {"Training": ("002", "004", "008", "010")[:train], "Test": ("001", "003")[:test]}
    for part, numbers in names.items():
        base = root / "Drishti-GS1_files" / part
        for number in numbers:
            name = f"drishtiGS_{number}"
            image, _ = eye(int(number))
            save(base / "Images" / f"{name}.png", image)
            folder = base / ("GT" if part == "Training" else "Test_GT") / name
            if not masks:
                continue
            size = (HEIGHT + 2, WIDTH) if number == "004" else (HEIGHT, WIDTH)
            for kind, radius in (("OD", DISC_RADIUS), ("cup", CUP_RADIUS)):
                path = folder / "SoftMap" / f"{name}_{kind}segSoftmap.png"
                save(path, soft(centre_of(int(number)), radius, size))
            (folder / f"{name}_cdrValues.txt").write_text("0.49 0.52 0.53 0.50")
    return root


def rim_one_r3(root: Path, *, expert: str = "Average_masks", suffix: str = "-%s-Avg") -> Path:
    """Write stereo pairs, of which the left half is annotated."""
    eyes = {"Healthy": ("N-5-L", "N-1-L"), "Glaucoma and suspects": ("G-1-L", "S-10-R", "G-22-L")}
    for index, (group, names) in enumerate(eyes.items()):
        for number, name in enumerate(names, 2 * index):
            image, mask = eye(number, (HEIGHT, 130))
            other, _ = eye(number + 9, (HEIGHT, 130))
            save(root / group / "Stereo Images" / f"{name}.jpg", np.hstack([image, other]))
            for structure, kind in zip(mask, ("Cup", "Disc"), strict=True):
                pair = np.hstack([binary(structure), np.zeros_like(structure, np.uint8)])
                save(root / group / expert / f"{name}{suffix % kind}.png", pair)
    return root


def refuge(root: Path, release: str) -> Path:
    """Write a release: JPEG photographs and BMP masks (0 cup, 128 rim, 255 background)."""
    places = {
        "train": [
            (f"Training400/{g}/{p}000{n}.jpg",
             f"Annotation-Training400/Annotation-Training400/Disc_Cup_Masks/{g}/{p}000{n}.bmp")
            for g, p in (("Glaucoma", "g"), ("Non-Glaucoma", "n"))
            for n in range(1, 6)
        ],
        "validation": [
            (f"REFUGE-Validation400/REFUGE-Validation400/V000{n}.jpg",
             f"REFUGE-Validation400-GT/Disc_Cup_Masks/V000{n}.bmp")
            for n in range(1, 6)
        ],
        "test": [
            (f"Test400/T000{n}.jpg", f"REFUGE-Test-GT/Disc_Cup_Masks/{g}/T000{n}.bmp")
            for n, g in enumerate("GGNNN", 1)
        ],
    }  # fmt: skip
    for number, (photograph, annotation) in enumerate(places[release]):
        image, mask = eye(number)
        save(root / photograph, image)
        save(root / annotation, levels(mask, 0, 128, 255))
    return root


def rim_one_dl(root: Path) -> Path:
    """Write crops of several sizes in both partitions, and masks in a file per structure."""
    for number in range(5):
        size = (80 + number, 76)
        centre = (40.0, 38.0)
        image = eye(number, size)[0]
        group = "glaucoma" if number % 2 else "normal"
        name = f"r{1 + number % 3}_Im{number:03d}"
        for partition, train in (("by_hospital", number < 3), ("randomly", number > 1)):
            side = "training_set" if train else "test_set"
            folder = root / "RIM-ONE_DL_images" / f"partitioned_{partition}" / side / group
            save(folder / f"{name}.png", image)
        segmentations = root / "RIM-ONE_DL_reference_segmentations" / group
        for kind, radius in (("Disc", DISC_RADIUS), ("Cup", CUP_RADIUS)):
            mask = binary(circle(centre, radius, size))
            save(segmentations / f"{name}-1-{kind}-T.png", mask)
    return root


def origa(root: Path) -> Path:
    """Write photographs, class-index masks (2 cup, 1 rim), tight crops to ignore, and the list."""
    rows = ["Eye,Filename,ExpCDR,Set,Glaucoma"]
    for number in range(1, 6):
        image, mask = eye(number)
        save(root / "Images" / f"{number:03d}.jpg", image)
        save(root / "Images_Cropped" / f"{number:03d}.jpg", image[:40, :40])
        save(root / "Masks" / f"{number:03d}.png", levels(mask, 2, 1, 0))
        save(root / "Masks_Cropped" / f"{number:03d}.png", levels(mask, 2, 1, 0)[:40, :40])
        rows.append(f"OD,{number:03d}.jpg,0.5,{'AB'[number % 2]},0")
    (root / "OrigaList.csv").write_text("\n".join(rows) + "\n")
    return root


def g1020(root: Path) -> Path:
    """Write photographs with a JSON beside each, class-index masks and crops to ignore."""
    for number in range(5):
        image, mask = eye(number)
        mask[0] &= number != 3  # an eye without an annotated cup
        name = f"image_{7 * number}"
        save(root / "G1020" / "Images" / f"{name}.jpg", image)
        (root / "G1020" / "Images" / f"{name}.json").write_text("{}")
        save(root / "G1020" / "Masks" / f"{name}.png", levels(mask, 2, 1, 0))
        save(root / "G1020" / "Images_Cropped" / "img" / f"{name}.jpg", image[:40, :40])
        save(root / "G1020" / "Images_Square" / f"{name}.jpg", image)
    (root / "G1020" / "G1020.csv").write_text("imageID,binaryLabels\n")
    return root


def papila(root: Path) -> Path:
    """Write both eyes of five patients; two experts' outlines as points, x before y."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    base = root / "PapilaDB-PAPILA-9c67b80" / "ExpertsSegmentations"
    for number in range(10):
        name = f"RET{2 + number // 2:03d}{'OD' if number % 2 else 'OS'}"
        image, _ = eye(number)
        save(base.parent / "FundusImages" / f"{name}.jpg", image)
        row, column = centre_of(number)
        for kind, radius in (("disc", DISC_RADIUS), ("cup", CUP_RADIUS)):
            for expert in (1, 2):
                reach = radius + 3 * (expert - 1)
                points = np.stack([column + reach * np.cos(turn), row + reach * np.sin(turn)], 1)
                text = "\n".join(f"   {x:.7e}   {y:.7e}" for x, y in points)
                path = base / "Contours" / f"{name}_{kind}_exp{expert}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n")
    return root


def outline(structure: Bool, width: int = 2) -> Bool:
    from scipy import ndimage

    grown = ndimage.binary_dilation(structure, iterations=width // 2)
    return np.asarray(grown & ~ndimage.binary_erosion(structure, iterations=width - width // 2))


def riga_drawn(root: Path, *, touching: bool = False) -> Path:
    """Write photographs and six copies each, with outlines drawn on them."""
    folders = {"BinRushed/BinRushed2": "jpg", "Magrabia/MagrabiFemale": "tif", "MESSIDOR": "tif"}
    for index, (folder, suffix) in enumerate(folders.items()):
        for number in (1, 2):
            image, _ = eye(3 * index + number)
            save(root / folder / f"image{number}prime.{suffix}", image)
            row, column = centre_of(3 * index + number)
            for expert in range(1, 7):
                drawn = image.copy()
                shift = DISC_RADIUS - CUP_RADIUS - 1 if touching else 0
                grow = 0.5 * (expert - 3)
                disc = circle((row, column), DISC_RADIUS + grow)
                cup = circle((row, column + shift), CUP_RADIUS)
                drawn[outline(disc) | outline(cup)] = (10, 10, 250)
                first = "Image" if expert == 1 else "image"  # as some folders have it
                save(root / folder / f"{first}{number}-{expert}.{suffix}", drawn)
    return root


def plain(root: Path, codes: tuple[int, int, int] = (255, 128, 0), *, suffix: str = ".png") -> Path:
    """Write ``image/`` and ``mask/``; ``codes`` are cup, rim, background."""
    for number in range(5):
        image, mask = eye(number)
        save(root / "image" / f"eye_{number}{suffix}", image)
        save(root / "mask" / f"eye_{number}.png", levels(mask, *codes))
    return root


ARCHIVE_PX = 800
_ARCHIVE = {
    "Domain1": {"train": ("gdrishtiGS_002", "ndrishtiGS_008"), "test": ("gdrishtiGS_001",)},
    "Domain2": {"train": ("G-1-L", "N-2-R"), "test": ("N-5-L",)},
}


def domain_archive(root: Path, *, side: int = ARCHIVE_PX) -> Path:
    """Write crops and RGB masks (0 cup, 128 rim, 255 background) of two of the four domains."""
    for domain, splits in _ARCHIVE.items():
        for split, names in splits.items():
            for number, name in enumerate(names, 0 if split == "train" else 2):
                image, mask = archived(number, side)
                rois = root / "Fundus" / domain / split / "ROIs"
                save(rois / "image" / f"{name}.png", image)
                gray = levels(mask, 0, 128, 255)
                save(rois / "mask" / f"{name}.png", np.repeat(gray[..., None], 3, axis=2))
    return root


def archived(number: int, side: int = ARCHIVE_PX) -> tuple[Uint8, Bool]:
    """Draw a crop of the archive and its mask."""
    image, _ = eye(number, (side, side))
    centre = (side / 2 + 10 * number, side / 2)
    return image, np.stack([circle(centre, share * side, (side, side)) for share in (0.1, 0.2)])


def zipped(folder: Path) -> bytes:
    """Return a folder as an archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return stream.getvalue()
