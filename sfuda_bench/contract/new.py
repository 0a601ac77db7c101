"""Writing the first version of a plug-in, with its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from sfuda_bench.contract.check import registries
from sfuda_bench.errors import UsageError

_TEMPLATES = Path(__file__).with_name("templates")


def new_plugin(name: str, kind: str = "method", folder: Path = Path()) -> tuple[Path, Path]:
    """Write ``NAME.py`` and ``test_NAME.py`` and return their paths.

    Args:
        name: What it registers; letters, digits and underscores in lower case.
        kind: ``"method"``, ``"dataset"``, ``"network"`` or ``"validator"``.
        folder: Where they are written; created when missing.

    Raises:
        UsageError: A name that is no such word or is taken, or a file that exists.
    """
    _check_name(name, kind)
    paths = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists already", hint="choose another name, or --out DIR")
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in zip(paths, (f"{kind}.py", "plugin_test.py"), strict=True):
        text = (_TEMPLATES / template).read_text("utf-8")
        path.write_text(_named(text, name, kind), "utf-8")
    return paths


def _check_name(name: str, kind: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' is no name for a plug-in: expected lower-case letters, digits and "
            "underscores, a letter first, and no word of Python",
            hint="sfuda-bench plugin new my_method",
        )
    if registries()[kind].known(name):
        origin = registries()[kind].origin(name)
        raise UsageError(f"the {kind} '{name}' exists already: {origin}", hint="another name")


def _named(text: str, name: str, kind: str) -> str:
    words = name.replace("_", " ").strip()
    camel = "".join(part.capitalize() for part in name.split("_"))
    for old, new in {
        "template_name": name,
        "TemplateName": camel,
        "Template name": words.capitalize(),
        "TEMPLATE_KIND": kind,
    }.items():
        text = text.replace(old, new)
    return text
