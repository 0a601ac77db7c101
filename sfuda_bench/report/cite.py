"""What to cite: the methods and data sets behind a store, as BibTeX."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from sfuda_bench.datasets import dataset_names, get_dataset
from sfuda_bench.errors import UsageError
from sfuda_bench.report.records import check_store, read_cells

_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_NONE = re.compile(r"none\b", re.IGNORECASE)
_SPECIAL = {
    **{code: " " for code in (*range(32), *range(127, 160))},
    **str.maketrans({c: f"\\{c}" for c in "&%$#_"}),
    # Braces with a backslash would still count as braces for BibTeX.
    **str.maketrans(
        {
            "\\": r"\textbackslash{}",
            "{": r"\textbraceleft{}",
            "}": r"\textbraceright{}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
        }
    ),
}


@dataclass(frozen=True)
class Citation:
    """One entry.

    Attributes:
        key: BibTeX key, of the method or data set that is named first.
        used: Names of the methods or data sets it stands for, sorted.
        kind: ``method`` or ``dataset``.
        text: The citation as the plug-in states it.
        year: Four digits, empty if the text has none.
    """

    key: str
    used: tuple[str, ...]
    kind: str
    text: str
    year: str

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return asdict(self) | {"used": list(self.used)}

    def to_bibtex(self) -> str:
        """Return a ``@misc`` entry: authors and title are not told apart, nothing is guessed."""
        lines = [f"  howpublished = {{{self.text.translate(_SPECIAL)}}},"]
        if self.year:
            lines.append(f"  year = {{{self.year}}},")
        used = ", ".join(self.used).translate(_SPECIAL)
        lines.append(f"  note = {{{self.kind}: {used}}},")
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


def citations(out: Path) -> list[Citation]:
    """Return what the finished cells of a store rest on, methods first; equal texts share one.

    Args:
        out: The store.

    Raises:
        UsageError: There is no store, or no finished cell in it.
    """
    check_store(out)
    cells = read_cells(out)
    if not cells:
        raise UsageError(f"{out} holds no finished cells", hint=f"sfuda-bench run --out {out}")
    methods = {cell.method: str(cell.record.get("citation", "")) for cell in cells}
    domains = {name for cell in cells for name in (cell.source, cell.target)}
    known = set(dataset_names())
    datasets = {name: get_dataset(name).citation for name in domains if name in known}
    return [*_grouped("method", methods), *_grouped("dataset", datasets)]


def dataset_citation(name: str, text: str) -> Citation | None:
    """Return what to cite for one data set; ``None`` where there is nothing.

    Args:
        name: Its name.
        text: The citation as the plug-in states it.
    """
    found = _grouped("dataset", {name: text})
    return found[0] if found else None


def to_bibtex(found: list[Citation]) -> str:
    """Return entries as a BibTeX file."""
    return "\n\n".join(citation.to_bibtex() for citation in found) + "\n"


def _grouped(kind: str, texts: dict[str, str]) -> list[Citation]:
    by_text: dict[str, list[str]] = {}
    for name in sorted(texts):
        text = texts[name].strip()
        if text and not _NONE.match(text):
            by_text.setdefault(text, []).append(name)
    return [
        Citation(f"{kind}:{names[0]}", tuple(names), kind, text, _year(text))
        for text, names in by_text.items()
    ]


def _year(text: str) -> str:
    # The last one: an earlier number may be part of a title or a preprint's name.
    found = _YEAR.findall(text)
    return found[-1] if found else ""
