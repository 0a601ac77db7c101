"""Statistics of a data root, its figures, data set cards, and the mark of label-centred crops."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.cli import main
from sfuda_bench.datasets import dataset_names, find_domains
from sfuda_bench.report import render
from sfuda_bench.report.cards import card_text, dataset_cards
from sfuda_bench.report.domains import measure_root, write_domains
from sfuda_bench.report.figures_domains import write_domain_figures
from sfuda_bench.report.plain import to_csv
from sfuda_bench.report.records import AskedCell
from sfuda_bench.report.scope import explained, pair_marks
from sfuda_bench.report.tables import Block


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two domains of three train and three test images; one is centred by labels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :48] - 23.5
    distance = np.hypot(rows, columns)
    for domain, radius in (("clinic", 14), ("hospital", 16)):
        for split in ("train", "test"):
            for name in "abc":
                levels = np.select([distance < radius / 2, distance < radius], [0, 128], 255)
                shade = np.select([distance < radius / 2, distance < radius], [180, 140], 100)
                pixels = shade[..., None] + rng.integers(-9, 10, (48, 48, 3))
                for kind, array in (("image", pixels), ("mask", levels)):
                    path = tmp_path / "root" / domain / split / "ROIs" / kind / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array.astype(np.uint8)).save(path)
    (tmp_path / "root/clinic/manifest.json").write_text(json.dumps({"roi_center": "gt"}))
    return tmp_path / "root"


def test_the_tables_carry_the_numbers_of_every_split(root: Path, tmp_path: Path) -> None:
    write_domains(tmp_path / "out", measure_root(root))
    with (tmp_path / "out/tables/domains.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["domain"], row["split"]) for row in rows] == [
        (domain, split) for domain in ("clinic", "hospital") for split in ("train", "test")
    ]
    assert float(rows[0]["disc_scale_mean"]) == pytest.approx(100 * 28 / 48, rel=0.02)
    assert float(rows[0]["disc_contrast_mean"]) == pytest.approx(40, abs=4)
    assert rows[0]["roi_center"] == "gt"
    with (tmp_path / "out/images.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 12
    text = (tmp_path / "out/tables/domains.md").read_text()
    assert "clinic ¶" in text
    assert "position comes from labels" in text
    assert "hospital ¶" not in text


def test_figures_are_written_and_repeat_to_the_byte(root: Path, tmp_path: Path) -> None:
    domains = measure_root(root)
    first = write_domain_figures(tmp_path / "one", domains)
    assert {path.stem for path in first} == {
        "images-clinic",
        "images-hospital",
        "distributions",
        "likeness",
    }
    second = write_domain_figures(tmp_path / "two", domains[:1])
    again = tmp_path / "two/figures/images-clinic.png"
    assert again in second
    assert again.read_bytes() == (tmp_path / "one/figures/images-clinic.png").read_bytes()


def test_the_command_prints_a_document_and_leaves_the_data_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(root.rglob("*"))
    out = tmp_path / "out"
    arguments = ["data", "stats", "--data-root", str(root)]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["roi_centers"] == {"clinic": "gt", "hospital": "unknown"}
    assert all(Path(path).is_file() for path in document["files"])
    assert main([*arguments, "--out", str(root / "clinic")]) == 2
    assert sorted(root.rglob("*")) == before


def test_a_card_says_what_a_user_must_know_and_counts_what_is_there(tmp_path: Path) -> None:
    cards = dataset_cards()
    assert [card["name"] for card in cards] == dataset_names()
    for card in cards:
        assert card["found"] is None
        text = card_text(card)
        for part in ("camera:", "masks:", "terms:", "cite:", "mind:", card["homepage"]):
            assert part in text, card["name"]
        assert card["synthetic"] or card["bibtex"].startswith("@misc{dataset:")


def test_a_card_counts_what_a_data_root_has(root: Path) -> None:
    name = next(card["name"] for card in dataset_cards() if card["published_counts"])
    (root / "clinic").rename(root / name)
    (found,) = [card for card in dataset_cards(root) if card["found"]]
    assert found["found"]["counts"] == [3, 3]
    assert found["found"]["masks"] == 6
    assert found["roi_center"] == "gt"
    assert "3 / 3 train / test" in card_text(found)
    assert "position comes from labels" in card_text(found)


def test_ls_datasets_prints_cards_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "datasets", "--verbose", "--json"]) == 0
    assert [card["name"] for card in json.loads(capsys.readouterr().out)] == dataset_names()


# -- the mark of label-centred crops -----------------------------------------------------------


def asked(source: str, *, synthetic: bool = False, from_labels: bool = False) -> AskedCell:
    return AskedCell(
        "k", "m", "M", False, "S0", source, "t", 0, 0, "offline", synthetic,
        positions_from_labels=from_labels,
    )  # fmt: skip


def test_a_domain_is_label_centred_by_its_manifest(root: Path) -> None:
    domains = find_domains(root)
    assert domains["clinic"].positions_from_labels
    assert not domains["hospital"].positions_from_labels


def test_pairs_are_marked_and_the_marks_explained_once() -> None:
    cells = [asked("a"), asked("b", from_labels=True), asked("c", synthetic=True, from_labels=True)]
    marks = pair_marks(cells)
    assert marks == {("b", "t"): "¶", ("c", "t"): "§¶"}
    assert len(explained(marks)) == 2
    assert explained({}) == ()


def test_the_main_table_marks_the_pair_in_every_form() -> None:
    block = Block("b → t", ("b", "t"), False, (), True)
    assert block.marked_label == "b → t ¶"
    assert render.escape_latex(block.marked_label).endswith(r"\P{}")


def test_machine_readable_tables_carry_no_marks(root: Path) -> None:
    from sfuda_bench.report.domains import domains_table

    assert "¶" not in to_csv(domains_table(measure_root(root)))
