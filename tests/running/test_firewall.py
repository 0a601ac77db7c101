"""The process that adapts cannot open masks, names or raw data, and a task carries none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.methods import METHODS

_OURS = [name for name in METHODS.names() if not METHODS.get(name).oracle]
_PROBE = """
import os, sys
from pathlib import Path
import numpy as np
from PIL import Image
from sfuda_bench.running.workers import refuse_masks

refuse_masks(tuple(sys.argv[2:]))
path = sys.argv[1]
how = os.environ["HOW"]

def found(paths):
    if not list(paths):  # pathlib turns a refusal into an empty answer
        raise PermissionError("label firewall")

try:
    {"open": lambda: open(path, "rb").read(1),
     "numpy": lambda: np.load(path),
     "pillow": lambda: Image.open(path).load(),
     "os.open": lambda: os.open(path, os.O_RDONLY),
     "listdir": lambda: os.listdir(os.path.dirname(path)),
     "glob": lambda: found(Path(path).parent.glob("*")),
     "link": lambda: os.link(path, os.environ["ELSEWHERE"]),
     "rename": lambda: os.rename(path, os.environ["ELSEWHERE"]),
     "symlink": lambda: (os.symlink(os.path.dirname(path), os.environ["ELSEWHERE"]),
                         open(os.environ["ELSEWHERE"] + "/" + os.path.basename(path), "rb")),
    }[how]()
except PermissionError as error:
    print("refused", error)
else:
    print("opened")
"""


def attempt(
    path: Path, forbidden: list[Path], how: str, folder: Path, cwd: Path | None = None
) -> str:
    environment = {
        **os.environ,
        "HOW": how,
        "ELSEWHERE": str(folder / "elsewhere"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    result = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path), *map(str, forbidden)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


@pytest.fixture(scope="module")
def layout(trained: Any) -> dict[str, Any]:
    """Return a mask file, a raw data file, packed masks, names and images, and what is barred."""
    packed = trained.out / "packed"
    return {
        "mask": trained.images("toy_b", "train", "mask")[0],
        "raw image": trained.images("toy_b", "train")[0],
        "packed masks": next((packed / "masks").glob("*.npy")),
        "names": next(p for p in (packed / "names").glob("*.json") if p.name != "index.json"),
        "packed images": next((packed / "images").glob("*.npy")),
        "forbidden": [packed / "masks", packed / "names", trained.data],
    }


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("mask", "open"),
        ("mask", "pillow"),
        ("packed masks", "numpy"),
        ("names", "os.open"),
        ("raw image", "open"),
        ("mask", "listdir"),
        ("mask", "glob"),
        ("mask", "link"),
        ("mask", "rename"),
        ("mask", "symlink"),
    ],
)
def test_an_adapting_process_is_refused(
    layout: dict[str, Any], what: str, how: str, tmp_path: Path
) -> None:
    said = attempt(layout[what], layout["forbidden"], how, tmp_path)
    assert said.startswith("refused label firewall"), said
    assert not (tmp_path / "elsewhere").is_file()


def test_an_adapting_process_opens_packed_images(layout: dict[str, Any], tmp_path: Path) -> None:
    said = attempt(layout["packed images"], layout["forbidden"], "numpy", tmp_path)
    assert said == "opened\n"


def test_a_working_directory_inside_the_data_root_bars_no_image(
    layout: dict[str, Any], trained: Any, tmp_path: Path
) -> None:
    """The second argument of an open event is the mode ``rb``, not a path below the folder."""
    said = attempt(
        layout["packed images"], layout["forbidden"], "numpy", tmp_path, cwd=trained.data
    )
    assert said == "opened\n"


def test_a_folder_whose_name_begins_like_a_forbidden_one_is_open(tmp_path: Path) -> None:
    barred, open_one = tmp_path / "masks", tmp_path / "masks-of-carnival" / "a.txt"
    barred.mkdir()
    open_one.parent.mkdir()
    open_one.write_text("x")
    assert attempt(open_one, [barred], "open", tmp_path) == "opened\n"


def test_the_job_of_an_adapting_worker_names_no_mask_file_and_no_file_name(bench: Any) -> None:
    plan = bench.plan(["cpr", "bn_adapt"])
    for cell in plan.cells:
        assert cell.role == "adapt"
        text = repr(cell.job)
        assert "masks" not in text and "names" not in text
        assert str(bench.data) not in text
        assert not any(path.stem in text for path in bench.images("toy_b", "train"))


def test_a_method_gets_only_the_aux_fields_that_it_declares(
    bench: Any, plugin_folder: Path, extra_methods: None
) -> None:
    plugins = (plugin_folder / "misbehaving.py",)
    assert bench.run("asks", plugins=plugins).cell["strictness"] == "S1"
    with pytest.raises(KeyError, match="area_prior"):
        bench.run("peeks", plugins=plugins)


def test_adaptation_runs_with_source_images_and_target_masks_deleted(bench: Any) -> None:
    """O17: once planned, nothing of the source's images and no target mask is needed."""
    import shutil

    methods = sorted(_OURS)
    plan = bench.plan(methods)
    packed_source = {plan.sources[0].job["data_digest"]["images"]}
    shutil.rmtree(bench.data)
    shutil.rmtree(bench.out / "packed" / "masks")
    shutil.rmtree(bench.out / "packed" / "names")
    for meta in (bench.out / "packed" / "images").glob("*.json"):
        if any(digest in meta.read_text("utf-8") for digest in packed_source):
            meta.with_suffix(".npy").unlink()
    plan.cells = [_unscored(cell) for cell in plan.cells]
    assert set(bench.compute(plan).values()) == {"computed"}
    assert all((cell.folder / "cell.json").is_file() for cell in plan.cells)


def _unscored(cell: Any) -> Any:
    from dataclasses import replace

    return replace(cell, scoring=())
