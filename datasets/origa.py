"""ORIGA(-light): 650 retinal images from Singapore; optic disc and cup by graders of one centre."""

import csv
import io

from sfuda_bench.datasets import (
    DatasetSpec,
    LabelMask,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    Tissue,
    register,
)

_VALUES: dict[int, Tissue] = {0: "background", 1: "rim", 2: "cup"}


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    masks = files.index(r"Masks/(?P<eye>\d+)\.(?:png|bmp|tif)")
    rows = _list(files)
    eyes = []
    for key, photograph in files.index(r"Images/(?P<eye>\d+)\.(?:jpg|jpeg|png|tif|bmp)").items():
        row = rows.get(key, {})
        ratio = row.get("ExpCDR", "")
        eyes.append(
            RawEye(
                photograph.groups["eye"],
                photograph.path,
                masks=(LabelMask(masks[key].path, _VALUES),) if key in masks else (),
                split={"A": "train", "B": "test"}.get(row.get("Set", "").upper()),
                stratum=row.get("Glaucoma", ""),
                graders_vcdr=(float(ratio),) if ratio else (),
                missing=() if key in masks else (f"Masks/{photograph.groups['eye']}.png",),
            )
        )
    origin = "official: sets A and B of the owners' OrigaList.csv" if rows else ""
    return RawDomain(tuple(eyes), split_origin=origin, published=bool(rows))


def _list(files: RawFiles) -> dict[str, dict[str, str]]:
    """Return the rows of the owners' list by the image's name without suffix."""
    found = files.find(r"OrigaList\.csv")
    if not found:
        return {}
    rows = csv.DictReader(io.StringIO(files.text(found[0].path)))
    return {row["Filename"].rsplit(".", 1)[0].lower(): row for row in rows}


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
