"""ORIGA(-light): 650 retinal images from Singapore; optic disc and cup by graders of one centre."""

import csv
import io

from sfuda_bench.datasets import (
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    Tissue,
    label_file,
    read_ratios,
    register,
)
from sfuda_bench.errors import DataError

_VALUES: dict[int, Tissue] = {0: "background", 1: "rim", 2: "cup"}
_COLUMNS = ("Filename", "ExpCDR", "Set", "Glaucoma")


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    masks = files.index(r"Masks/(?P<eye>\d+)\.(?:png|bmp|tif)")
    path, rows = _list(files)
    eyes = []
    for key, photograph in files.index(r"Images/(?P<eye>\d+)\.(?:jpg|jpeg|png|tif|bmp)").items():
        row = rows.get(key, {})
        ratio = row.get("ExpCDR", "")
        name = photograph.groups["eye"]
        mask, missing = label_file(key, masks, _VALUES, f"Masks/{name}.png")
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=mask,
                split={"A": "train", "B": "test"}.get(row.get("Set", "").upper()),
                stratum=row.get("Glaucoma", ""),
                graders_vcdr=read_ratios(path, [ratio]) if ratio else (),
                missing=missing,
            )
        )
    origin = "official: sets A and B of the owners' OrigaList.csv" if rows else ""
    return RawDomain(tuple(eyes), split_origin=origin, published=bool(rows))


def _list(files: RawFiles) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the path of the owners' list and its rows by the image's name without suffix."""
    found = files.find(r"OrigaList\.csv")
    if not found:
        return "", {}
    path = found[0].path
    reader = csv.DictReader(io.StringIO(files.text(path)))
    if lacking := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise DataError(
            f"{path}: no column {', '.join(lacking)}; expected a CSV with commas",
            hint="download it again; without this file the split is drawn",
        )
    rows = [{name: row[name] or "" for name in _COLUMNS} for row in reader]
    return path, {row["Filename"].rsplit(".", 1)[0].lower(): row for row in rows}


register(
    DatasetSpec(
        name="origa",
        title="ORIGA",
        aliases=("origa_light", "origa-light"),
        roi_center="detector",
        description="650 eyes from Singapore, 168 with glaucoma; sets A and B of 325.",
        licence="Research use; ask the owners.",
        homepage="https://doi.org/10.1109/IEMBS.2010.5626137",
        citation="Zhang et al., ORIGA-light: An online retinal fundus image database for glaucoma "
        "analysis and research, EMBC 2010",
        camera="See the owners' page.",
        encoding="Gray values of copies in circulation: 0 background, 1 rim, 2 cup.",
        pitfalls=(
            "The masks look black in a viewer: their values are 0, 1, 2.",
            "Copies in circulation differ in encoding: check the declared values on a few masks.",
        ),
        raw=RawLayout(
            _read, tree="Images/NNN.jpg, Masks/NNN.png (0, 1 rim, 2 cup) and OrigaList.csv"
        ),
    )
)
