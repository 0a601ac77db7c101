"""Where plug-in files live: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_REPOSITORY = _PACKAGE.parent


def plugin_path(kind: str) -> list[str]:
    """Return the ``__path__`` of the package ``sfuda_bench.<kind>``.

    Args:
        kind: ``"methods"``, ``"datasets"`` or ``"studies"``.

    Returns:
        The folder inside the package, then the checkout's top-level folder when there is one.
    """
    folders = [_PACKAGE / kind]
    if (_REPOSITORY / "pyproject.toml").is_file() and (_REPOSITORY / kind).is_dir():
        folders.append(_REPOSITORY / kind)
    return [str(folder) for folder in folders]
