"""Where results come from: the code, the libraries and the machine, once per run."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from sfuda_bench.running.keys import file_digest
from sfuda_bench.running.store import write_sealed

RUN_VARIABLE = "SFUDA_BENCH_RUN"
"""Environment variable that tells worker processes which run they belong to."""
_PACKAGE = Path(__file__).resolve().parents[1]
_CODE = ("sfuda_bench", "methods", "datasets")
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID",
    "SLURM_NODEID",
)
_GIT_SECONDS = 20
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_begun: dict[Path, str] = {}


def begin_run(root: Path) -> str:
    """Write ``runs/<id>.json`` of this process, the first time that it computes in a store.

    Worker processes that start afterwards know the id and put it into every ``run.json``.

    Args:
        root: The store.

    Returns:
        The id: time of day in UTC and a random part.
    """
    root = root.resolve()
    if root not in _begun:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
        write_sealed(root / "runs" / f"{name}.json", {"id": name, **describe_run()})
        _begun[root] = name
    os.environ[RUN_VARIABLE] = _begun[root]
    return _begun[root]


def run_id() -> str | None:
    """Return the id of the run that this process belongs to, where there is one."""
    return os.environ.get(RUN_VARIABLE)


def describe_run() -> dict[str, Any]:
    """Return the document of this process: command, code, packages and machine."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command_line(),
        "folder": os.getcwd(),
        "pid": os.getpid(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "code": code_version(),
        "python": sys.version,
        "packages": _packages(),
        "machine": machine(),
    }


def command_line() -> str:
    """Return the command of this process, without passwords in addresses."""
    name = "sfuda-bench" if "sfuda" in sys.argv[0] else sys.argv[0]
    return _PASSWORD.sub("***@", shlex.join([name, *sys.argv[1:]]))


@cache
def code_version() -> dict[str, Any]:
    """Return the package's version and, in a git work tree of its own, what is checked out.

    Returns:
        ``version``; ``commit``; ``dirty``, whether tracked files differ from it or new source
        files lie beside them; ``diff_sha256``, the digest of both. The last three are ``None``
        outside a work tree.
    """
    try:
        number = version("sfuda-bench")
    except PackageNotFoundError:
        number = "not installed"
    commit = _git("rev-parse", "HEAD") if _is_tracked() else None
    changes = _changes() if commit else None
    return {
        "version": number,
        "commit": commit.decode().strip() if commit else None,
        "dirty": None if changes is None else changes != b"",
        "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def _is_tracked() -> bool:
    """Whether this file is under version control, and does not merely lie inside a work tree."""
    return _git("ls-files", "--error-unmatch", "sfuda_bench/__init__.py") is not None


def _changes() -> bytes | None:
    """Return the uncommitted changes of tracked files, and names and digests of new sources."""
    diff = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE)
    if diff is None or new is None:
        return None
    lines = [
        f"{name} {file_digest(_PACKAGE.parent / name)}\n"
        for name in sorted(os.fsdecode(new).split("\0"))
        if name and (_PACKAGE.parent / name).is_file()
    ]
    return diff + "".join(lines).encode()


def _git(*arguments: str) -> bytes | None:
    """Return what git says of the folder above the package; ``None`` when it cannot."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE.parent), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_GIT_SECONDS,
            env={**_without_git(os.environ), "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _without_git(variables: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would point git to another repository, as inside a hook."""
    return {name: value for name, value in variables.items() if not name.startswith("GIT_")}


@cache
def _packages() -> dict[str, str]:
    return {found.name: found.version for found in sorted(distributions(), key=lambda d: d.name)}


@cache
def machine() -> dict[str, Any]:
    """Return what is known of this machine without a framework: CPU, memory, cards, driver."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "driver": nvidia_driver(),
        "cards": nvidia_cards(),
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def nvidia_driver() -> str | None:
    """Return the version of the loaded NVIDIA driver, or ``None`` without one."""
    found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text("/proc/driver/nvidia/version"))
    return found[1] if found else None


def nvidia_cards() -> list[str]:
    """Return the names of the NVIDIA cards, in the order of their bus addresses."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", _text(str(path)), re.MULTILINE)
        names.append(found[1].strip() if found else "unknown")
    return names


def determinism() -> dict[str, Any]:
    """Return the switches of this process that repeatable results depend on."""
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
