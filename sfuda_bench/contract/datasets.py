"""What every data set must keep to; none is named here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.contract.bench import toy_domain
from sfuda_bench.contract.verdicts import Invariants, demand
from sfuda_bench.datasets import DatasetSpec, Domain, canonical_name, find_domains
from sfuda_bench.images.verify import verify

SIZE, COUNTS = 64, (6, 3)


@dataclass
class Shelf:
    """Folders that domains are written to and read from.

    Args:
        folder: An empty folder.
        data_root: Folder of real domains, or ``None``.
    """

    folder: Path
    data_root: Path | None = None

    def written(self, spec: DatasetSpec, place: str) -> Path:
        """Return a root with this domain in it: generated, or toy images under its name."""
        root = self.folder / place
        if not (root / spec.name).is_dir():
            if spec.materialise is not None:
                spec.materialise(root, size=SIZE, counts=COUNTS)
            else:
                toy_domain(root, spec.name, counts=COUNTS)
        return root

    def real(self, spec: DatasetSpec) -> Path | None:
        """Return the data root if it holds this domain."""
        if self.data_root is None or spec.name not in find_domains(self.data_root):
            return None
        return self.data_root


INVARIANTS: Invariants[DatasetSpec, Shelf] = Invariants()


@INVARIANTS.add("says what it is")
def described(shelf: Shelf, spec: DatasetSpec) -> str:
    """It has a title, a description, its terms, and where it comes from."""
    for name in ("title", "description", "licence", "citation"):
        demand(str(getattr(spec, name)).strip(), f"{name} is empty")
    demand(spec.synthetic or spec.homepage.strip(), "homepage is empty")
    return f"'{spec.title}', {spec.licence}"


@INVARIANTS.add("found under each of its names")
def names(shelf: Shelf, spec: DatasetSpec) -> str:
    """Its name and its aliases, in any case, stand for it."""
    for name in (spec.name, spec.name.upper(), *spec.aliases):
        found = canonical_name(name)
        demand(found == spec.name, f"'{name}' stands for '{found}'")
    return ", ".join((spec.name, *spec.aliases))


@INVARIANTS.add("domain is readable")
def readable(shelf: Shelf, spec: DatasetSpec) -> str:
    """A folder of its name is found as this domain, with images and masks in both splits."""
    domain = find_domains(shelf.written(spec, "first")).get(spec.name)
    demand(domain is not None, f"no domain '{spec.name}' among the written folders")
    assert domain is not None  # demanded above
    demand(domain.title == spec.title, f"the title is '{domain.title}'")
    demand(domain.synthetic == spec.synthetic, "marked as synthetic, or not, against its spec")
    return _counts(domain)


def _counts(domain: Domain) -> str:
    for split in (domain.train, domain.test):
        demand(split.samples, f"{split.name} has no image")
        masks = [sample for sample in split.samples if sample.mask is not None]
        demand(len(masks) == len(split.samples), f"{split.name}: an image has no mask")
    return f"{len(domain.train.samples)} / {len(domain.test.samples)} train / test images"


@INVARIANTS.add("passes data verify")
def verified(shelf: Shelf, spec: DatasetSpec) -> str:
    """``data verify`` finds no error; in the real images, if ``--data-root`` has them."""
    root = shelf.real(spec) or shelf.written(spec, "first")
    folders = {path.name for path in root.iterdir() if canonical_name(path.name) == spec.name}
    found = [f for f in verify(root) if folders & set(f.path.relative_to(root).parts)]
    errors = [finding for finding in found if finding.severity == "error"]
    listed = "; ".join(f"{f.path.relative_to(root)}: {f.message}" for f in errors[:3])
    demand(not errors, f"{len(errors)} errors: {listed}")
    return f"{'its own' if shelf.real(spec) else 'toy or generated'} images, {len(found)} warnings"


@INVARIANTS.add("generates the same bytes", lambda spec: spec.materialise is not None)
def generated(shelf: Shelf, spec: DatasetSpec) -> str:
    """Generating it twice gives the same bytes, and again in one place changes nothing."""
    first, second = (shelf.written(spec, place) for place in ("first", "second"))
    before = _digest(first / spec.name)
    demand(before == _digest(second / spec.name), "two places, two digests")
    assert spec.materialise is not None  # that is when this applies
    spec.materialise(first, size=SIZE, counts=COUNTS)
    demand(before == _digest(first / spec.name), "a second call changed what was complete")
    return before[:12]


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()
