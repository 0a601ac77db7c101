"""Judging one plug-in: which invariants hold for it, as ``sfuda-bench plugin test`` says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sfuda_bench.contract.verdicts import Verdict
from sfuda_bench.errors import UsageError
from sfuda_bench.registry import Registry, load_plugin_file

KINDS = ("method", "dataset", "network", "validator")
TIMEOUT = 300.0


def registries() -> dict[str, Registry[Any]]:
    """Return the registry of each kind of plug-in."""
    from sfuda_bench.datasets import DATASETS
    from sfuda_bench.methods import METHODS
    from sfuda_bench.networks.registry import NETWORKS
    from sfuda_bench.scoring.validators import VALIDATORS

    return dict(zip(KINDS, (METHODS, DATASETS, NETWORKS, VALIDATORS), strict=True))


def find(name: str, kind: str | None = None) -> str:
    """Return the kind of the plug-in called ``name``.

    Raises:
        UsageError: There is none, or the name is of several kinds and none was given.
    """
    tables = registries()
    if kind is not None:
        tables[kind].canonical(name)
        return kind
    found = [kind for kind, table in tables.items() if table.known(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{name}' is a {' and a '.join(found)}", hint=f"--kind {found[0]}")
    tables["method"].canonical(name)  # says what there is
    raise UsageError(f"no plug-in is called '{name}'")


def check_plugin(
    name: str,
    kind: str | None = None,
    *,
    plugins: Sequence[Path] = (),
    data_root: Path | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[Verdict]:
    """Yield the verdict on every invariant of a plug-in.

    Args:
        name: Registered name, or the name that a file in ``plugins`` registers.
        kind: ``"method"``, ``"dataset"``, ``"network"`` or ``"validator"``; found when not given.
        plugins: Files that register further plug-ins.
        data_root: Where the images of a data set are, when it is to be read.
        timeout: Seconds that one cell of a method may take.

    Raises:
        UsageError: There is no such plug-in, or a file cannot be imported.
    """
    for path in plugins:
        load_plugin_file(path)
    chosen = find(name, kind)
    spec = registries()[chosen].get(name)
    with tempfile.TemporaryDirectory(prefix="sfuda-contract-") as folder:
        judge = {
            "method": _judge_method,
            "dataset": _judge_dataset,
            "network": _judge_network,
            "validator": _judge_validator,
        }[chosen]
        yield from judge(spec, Path(folder), tuple(plugins), data_root, timeout)


Judge = Callable[[Any, Path, tuple[Path, ...], Path | None, float], Iterator[Verdict]]


def _judge_method(
    spec: Any, folder: Path, plugins: tuple[Path, ...], data_root: Path | None, timeout: float
) -> Iterator[Verdict]:
    """Run a method as ``run`` would: in processes that can open no mask."""
    from sfuda_bench.contract.bench import SOURCE, TARGET, trained_bench
    from sfuda_bench.contract.laboratory import Laboratory, Workers
    from sfuda_bench.contract.methods import INVARIANTS

    files = tuple(path.resolve() for path in plugins)
    trained = trained_bench(folder / "trained", (SOURCE, TARGET), plugins=files)
    with Workers(timeout) as workers:
        laboratory = Laboratory(trained, folder, workers)
        yield from INVARIANTS.judge(laboratory, spec)


def _judge_dataset(
    spec: Any, folder: Path, plugins: tuple[Path, ...], data_root: Path | None, timeout: float
) -> Iterator[Verdict]:
    from sfuda_bench.contract.datasets import INVARIANTS, Shelf

    yield from INVARIANTS.judge(Shelf(folder, data_root), spec)


def _judge_network(
    spec: Any, folder: Path, plugins: tuple[Path, ...], data_root: Path | None, timeout: float
) -> Iterator[Verdict]:
    from sfuda_bench.contract.networks import INVARIANTS, Networks

    yield from INVARIANTS.judge(Networks(), spec)


def _judge_validator(
    spec: Any, folder: Path, plugins: tuple[Path, ...], data_root: Path | None, timeout: float
) -> Iterator[Verdict]:
    from sfuda_bench.contract.validators import INVARIANTS, Records

    yield from INVARIANTS.judge(Records(folder), spec)
