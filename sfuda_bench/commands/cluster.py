"""``--cluster``: the workers of a Dask scheduler instead of processes of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sfuda_bench.commands.shared import note
from sfuda_bench.errors import UsageError

if TYPE_CHECKING:
    from sfuda_bench.running.cluster import Cluster, Placed
    from sfuda_bench.running.pool import WorkerPool
    from sfuda_bench.running.request import RunRequest
    from sfuda_bench.search.cells import Flags


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add ``--cluster``."""
    parser.add_argument(
        "--cluster",
        metavar="tcp://HOST:8786",
        help="compute on the workers of this Dask scheduler; they must see --out (docs/scale.md)",
    )


@contextmanager
def request_workers(
    arguments: argparse.Namespace, request: RunRequest
) -> Iterator[tuple[RunRequest, WorkerPool | None]]:
    """Yield the request as it is computed and by whom; ``None``: processes of this machine."""
    if arguments.cluster is None:
        yield request, None
        return
    from sfuda_bench.running.cluster import on_cluster

    with _connected(arguments, request) as (cluster, pool):
        yield on_cluster(request, cluster, arguments.jobs), pool


@contextmanager
def study_workers(
    arguments: argparse.Namespace, flags: Flags
) -> Iterator[tuple[Flags, WorkerPool | None]]:
    """Yield the flags of a study as they count, and who computes its cells."""
    if arguments.cluster is None:
        yield flags, None
        return
    from sfuda_bench.running.cluster import placement

    with _connected(arguments, flags) as (cluster, pool):
        yield replace(flags, **placement(flags, cluster, arguments.jobs)), pool


@contextmanager
def _connected(
    arguments: argparse.Namespace, asked: Placed
) -> Iterator[tuple[Cluster, WorkerPool]]:
    from sfuda_bench.running.cluster import Cluster
    from sfuda_bench.running.pool import WorkerPool

    if arguments.gpus:
        raise UsageError(
            "--gpus chooses among the GPUs of this machine, --cluster computes on others",
            hint='leave out --gpus; start the Dask workers with --resources "GPU=1"',
        )
    files = tuple(path.resolve() for path in asked.plugins)
    with (
        Cluster(
            arguments.cluster, asked.out.resolve(), files=files, device=arguments.device, note=note
        ) as cluster,
        WorkerPool(cluster.worker) as pool,
    ):
        yield cluster, pool
