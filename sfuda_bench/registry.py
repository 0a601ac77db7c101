"""One typed registry for every kind of plug-in: methods, datasets, networks, validators."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from sfuda_bench.errors import UsageError

T = TypeVar("T")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ``' (did you mean X?)'`` for the nearest known name, or ``''``."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Registry(Generic[T]):
    """Plug-ins of one kind, by name.

    Built-in plug-ins are the modules of a port package; others come from the entry-point group
    ``sfuda_bench.<kind>`` or from a file given by the user. A clash or a plug-in that cannot be
    imported is an error that names the file: a plug-in never vanishes quietly.

    Args:
        kind: Plural name used in messages and as entry-point group, e.g. ``"methods"``.
        package: Port package whose modules register themselves on import, or ``None``.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False
        _registries.append(self)

    def add(self, name: str, value: T, *, origin: str, aliases: tuple[str, ...] = ()) -> None:
        """Register ``value`` under ``name``; ``origin`` is the file that defines it."""
        if _announcing:
            origin = f"{origin} (entry point of {_announcing[-1]})"
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{origin}: {name!r} cannot be the name of one of the {self.kind}: names become "
                "folders and words of the command line",
                hint="letters, digits, '_', '-' and '.', the first a letter or a digit",
            )
        for key in (name, *aliases):
            taken = self._aliases.get(key.lower())
            if taken is not None:
                raise UsageError(
                    f"two {self.kind} named '{key}': {self._origins[taken]} and {origin}",
                    hint="rename one of them",
                )
        self._values[name] = value
        self._origins[name] = origin
        for key in (name, *aliases):
            self._aliases[key.lower()] = name

    def get(self, name: str) -> T:
        """Return the plug-in called ``name`` (or an alias, in any case).

        Raises:
            UsageError: The name is unknown; the message suggests the nearest one.
        """
        return self._values[self.canonical(name)]

    def canonical(self, name: str) -> str:
        """Return the registered name for a name or alias."""
        self.load()
        found = self._aliases.get(name.lower())
        if found is None:
            nearest = did_you_mean(name, list(self._aliases))
            raise UsageError(
                f"unknown name '{name}' among the {self.kind}{nearest}; "
                f"known: {', '.join(self.names())}",
                hint=f"sfuda-bench ls {self.kind}",
            )
        return found

    def known(self, name: str) -> bool:
        """Whether ``name`` is a registered name or alias."""
        self.load()
        return name.lower() in self._aliases

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self.load()
        return sorted(self._values)

    def origin(self, name: str) -> str:
        """Return the file that registered ``name``, and the distribution that announced it."""
        return self._origins[self.canonical(name)]

    def load(self) -> None:
        """Import the built-in plug-ins and those announced by entry points, once."""
        if self._loaded:
            return
        self._loaded = True  # before the imports, which may ask for names
        try:
            self._load()
        except BaseException:
            self._loaded = False  # the next question must fail too, not be answered in part
            raise

    def _load(self) -> None:
        if self._package is not None:
            port = importlib.import_module(self._package)
            for module in sorted(m.name for m in pkgutil.iter_modules(port.__path__)):
                self._import(f"{self._package}.{module}")
        for point in sorted(_announced(self.kind), key=lambda p: (p.name, p.value)):
            _announcing.append(_distribution(point))
            try:
                self._import(point.value.partition(":")[0].strip())
            finally:
                _announcing.pop()

    def _import(self, module: str) -> None:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            hint = f"mend it, or pip uninstall {_announcing[-1]}" if _announcing else None
            raise _broken(_file_of(module), error, hint=hint or "mend the file") from error


_announcing: list[str] = []
"""The distribution whose entry point is being imported, if any."""
_registries: list[Registry[Any]] = []


def _forget(file: str) -> None:
    """Forget what a plug-in file has registered before it failed: it is whole or not there."""
    for registry in _registries:
        gone = {n for n, o in registry._origins.items() if o == file or o.startswith(f"{file} (")}
        for name in gone:
            del registry._values[name], registry._origins[name]
        kept = {key: name for key, name in registry._aliases.items() if name not in gone}
        registry._aliases.clear()
        registry._aliases.update(kept)


def _broken(file: str, error: BaseException, *, hint: str) -> UsageError:
    """Return the error that names the file of a plug-in which cannot be imported."""
    _forget(file)
    owner = f" (entry point of {_announcing[-1]})" if _announcing else ""
    if isinstance(error, UsageError):
        where = "" if file in error.message else f" (in {file}{owner})"
        return UsageError(f"{error.message}{where}", hint=error.hint or hint)
    return UsageError(
        f"the plug-in {file}{owner} cannot be imported: {type(error).__name__}: {error}", hint=hint
    )


def _announced(kind: str) -> list[EntryPoint]:
    """Return the entry points of a kind; one that two folders on the path announce counts once."""
    unique = {(p.name, p.value, _distribution(p)): p for p in entry_points(group=_group(kind))}
    return list(unique.values())


def _group(kind: str) -> str:
    return f"sfuda_bench.{kind}"


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _file_of(module: str) -> str:
    """Return the file of a module that cannot be imported, or its name where there is no file."""
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # a parent package that is missing or fails itself
        spec = None
    return spec.origin if spec and spec.origin else module


def load_plugin_file(path: Path) -> ModuleType:
    """Import a plug-in from a file; it registers itself in the ports it uses.

    Raises:
        UsageError: The file is missing or fails on import.
    """
    path = path.resolve()
    name = f"sfuda_bench_plugin_{path.stem}"
    while name in sys.modules:
        if sys.modules[name].__file__ == str(path):
            return sys.modules[name]
        name += "_"  # another file of the same name
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: no such Python file", hint="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(str(path), error, hint="mend the file") from error
    return module


def defining_file(thing: object) -> str:
    """Return the source file of a function or class, for messages."""
    try:
        return inspect.getsourcefile(thing) or "?"  # type: ignore[arg-type]  # any object may come
    except TypeError:
        return "?"
