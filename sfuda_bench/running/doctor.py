"""What a machine and the disk of a store must be able to do, tried out."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfuda_bench.running.firewall import kernel_helps
from sfuda_bench.running.store import can_exchange, make_folder, write_bytes
from sfuda_bench.running.trace import cpu_name, nvidia_cards, nvidia_driver

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_PYTHON = (3, 11)
_GB, _MB = 10**9, 10**6
_LOW_DISK, _NO_DISK = 5 * _GB, _GB // 2
_LOW_MEMORY = 4 * _GB
_LOW_FILES = 100_000
_SLOW_MB_PER_S, _SLOW_FSYNC_MS = 20, 100
_WRITTEN = 32 * _MB
_PROBE_SECONDS = 180
_LOCK_SECONDS = 10
_RELEASE_SECONDS = 1.0
_REPLACING_SECONDS = 0.3
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_EXTRAS = {
    "dashboard": ("optuna_dashboard", "a page for studies"),
    "postgres": ("psycopg", "studies on several machines"),
    "cluster": ("distributed", "--cluster"),
}
_ENCODER = "mobilenet_v2"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: ``ok``, ``warning`` or ``problem``.
        found: What is the case.
        hint: What to do about it; empty when all is well.
    """

    name: str
    state: str
    found: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the check as a JSON-able dict."""
        return asdict(self)

    def line(self) -> str:
        """Return the check as a line of text."""
        return f"{self.state:8}{self.name}: {self.found}" + (f" ({self.hint})" if self.hint else "")


def examine(out: Path, done: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Run every check.

    Args:
        out: The store, or where it would be; a temporary folder is made in it and removed.
        done: Called with each check when it is done.
    """
    found: list[Check] = []
    for check in (*check_python(), *_disk_checks(out), *check_libraries(probe_libraries())):
        found.append(check)
        done(check)
    return found


# -- the machine --------------------------------------------------------------------------------


def check_python() -> Iterator[Check]:
    """Check Python, cores, threads, memory and optional packages, without a framework."""
    number = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info[:2] >= _PYTHON
    hint = "" if enough else f"install Python {_PYTHON[0]}.{_PYTHON[1]} or newer"
    yield Check("Python", OK if enough else PROBLEM, number, hint)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", OK, f"{cores} of {os.cpu_count()} usable, {cpu_name()}")
    yield check_threads(os.environ, cores or 1)
    yield check_memory(_memory())
    yield check_firewall(kernel_helps())
    for extra, (module, purpose) in _EXTRAS.items():
        there = find_spec(module) is not None
        found = "installed" if there else f"not installed; only for {purpose}"
        yield Check(f"extra [{extra}]", OK, found)


def check_threads(variables: Any, cores: int) -> Check:
    """Check that no variable asks for more threads than there are cores.

    Args:
        variables: The environment.
        cores: Cores that this process may use.
    """
    given = {name: variables[name] for name in _VARIABLES if name in variables}
    wrong = [name for name, text in given.items() if not text.isdecimal() or int(text) > cores]
    found = ", ".join(f"{name}={text}" for name, text in given.items())
    if wrong:
        return Check("threads", WARNING, found, f"unset {' '.join(wrong)}: a run divides the cores")
    return Check("threads", OK, found or "no variable is set; a run divides the cores")


def check_memory(free: int | None) -> Check:
    """Check the available memory, bytes; ``None`` where the system does not tell."""
    if free is None:
        return Check("memory", OK, "not known on this system")
    low = free < _LOW_MEMORY
    hint = "use --jobs 1 and close other programs" if low else ""
    return Check("memory", WARNING if low else OK, f"{free / _GB:.1f} GB available", hint)


def check_firewall(kernel: bool) -> Check:
    """Say what keeps masks from a method: nothing here is a fault of the machine.

    Args:
        kernel: Whether the kernel has Landlock, as the firewall needs it.
    """
    if kernel:
        found = "Python's hook, and the kernel (Landlock) for libraries and child processes"
    else:
        found = "Python's hook alone: no Landlock here, so a method may not start processes"
    return Check("label firewall", OK, found)


def _memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


# -- the disk -----------------------------------------------------------------------------------


def _disk_checks(out: Path) -> Iterator[Check]:
    """Check the file system of a store in a temporary folder."""
    try:
        with _scratch(out) as folder:
            yield check_mount(mount_of(out, _mounts()))
            yield check_locks(folder)
            yield check_replacing(folder)
            yield check_writing(folder)
            usage, files = shutil.disk_usage(out), os.statvfs(out)
            yield check_space(usage.free, files.f_favail if files.f_files else None)
    except OSError as error:
        hint = "choose an --out that can be written"
        yield Check("store", PROBLEM, f"{out} cannot be written: {error.strerror}", hint)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Make a folder in the store for the tries; what did not exist before is removed again."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    folder = out / f".doctor-{os.getpid()}"
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for created in new:
            with suppress(OSError):
                created.rmdir()


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, of which kind, with which options."""

    place: str
    kind: str
    options: frozenset[str]


def _mounts() -> list[Mount]:
    with suppress(OSError):
        lines = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
        rows = [line.split() for line in lines]
        return [Mount(row[1], row[2], frozenset(row[3].split(","))) for row in rows if len(row) > 3]
    return []


def mount_of(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the file system that a path lies on, the last one mounted there."""
    place = path.resolve()
    found = [mount for mount in mounts if place.is_relative_to(mount.place)]
    return max(reversed(found), key=lambda mount: len(mount.place)) if found else None


def check_mount(mount: Mount | None) -> Check:
    """Check what kind of file system it is, and whether its locks reach other machines."""
    if mount is None:
        return Check("file system", OK, "kind not known")
    found = f"{mount.kind} at {mount.place}"
    alone = mount.options & {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
    if alone:
        return Check(
            "file system",
            WARNING,
            f"{found}, mounted with {', '.join(sorted(alone))}",
            "its locks exclude on one machine only: run on one machine at a time, or mount it "
            "with locks",
        )
    return Check("file system", OK, found)


_HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("busy", flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def check_locks(folder: Path) -> Check:
    """Check that a lock excludes another process, and is free once its owner is killed."""
    name, path = "locks", folder / "lock"
    hint = "choose an --out on a file system with flock: a local disk, or NFS 4"
    processes = []
    try:
        for expected in ("held", "busy"):
            processes.append(_holder(path))
            said = _first_line(processes[-1])
            if said != expected:
                text = "a second process gets a lock that is held" if said == "held" else said
                return Check(name, PROBLEM, text or "a process with a lock said nothing", hint)
        processes[0].kill()
        processes[0].wait()
        started = time.monotonic()
        processes.append(_holder(path))
        if _first_line(processes[-1]) != "held":
            return Check(name, PROBLEM, "a dead owner's lock is not free", hint)
        slow = time.monotonic() - started > _RELEASE_SECONDS
        found = "they exclude, and a dead owner's is free at once"
        return Check(name, OK, found + (" (slowly)" if slow else ""))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _holder(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line that a process prints, or nothing if it prints none in time."""
    import select

    if process.stdout is None or not select.select([process.stdout], [], [], _LOCK_SECONDS)[0]:
        return ""
    return process.stdout.readline().strip()


_READ = """
import sys
for number in range(sys.maxsize):
    with open(sys.argv[1], "rb") as stream:
        data = stream.read()
    if len(set(data)) != 1 or len(data) != int(sys.argv[2]):
        print(f"torn: {len(data)} bytes", flush=True)
        break
    if number == 0:
        print("seen", flush=True)
"""


def check_replacing(folder: Path) -> Check:
    """Check that a reader sees the old file or the new one while a file is replaced."""
    path, size = folder / "replaced", 4096
    write_bytes(path, b"\0" * size)
    hint = "choose an --out on a local disk or NFS 4"
    reader = subprocess.Popen(
        [sys.executable, "-I", "-c", _READ, str(path), str(size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if _first_line(reader) != "seen":
            return Check("renames", PROBLEM, "a file that was written cannot be read", hint)
        other, number, end = path.with_name("new"), 0, time.monotonic() + _REPLACING_SECONDS
        while time.monotonic() < end:
            number = (number + 1) % 256
            other.write_bytes(bytes([number]) * size)
            other.replace(path)
    finally:
        reader.kill()
        text = reader.communicate()[0]
    if text.strip():
        seen = text.strip().splitlines()[-1]
        return Check("renames", PROBLEM, f"a reader saw a file in between: {seen}", hint)
    whole = "they replace as a whole"
    if can_exchange(folder):
        return Check("renames", OK, f"{whole}, and folders change places in one step")
    return Check("renames", OK, f"{whole}; a folder is replaced in two steps, which are repaired")


def check_writing(folder: Path) -> Check:
    """Check that written bytes come back, how fast they are written, and what a sync costs."""
    path, data = folder / "speed", os.urandom(_MB)
    started = time.monotonic()
    with path.open("wb") as stream:
        for _ in range(_WRITTEN // _MB):
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    speed = _WRITTEN / _MB / max(time.monotonic() - started, 1e-6)
    with path.open("rb") as stream:
        intact = all(stream.read(_MB) == data for _ in range(_WRITTEN // _MB))
    if not intact:
        return Check(
            "writing", PROBLEM, "other bytes come back than were written", "check the disk"
        )
    times = []
    for number in range(5):
        started = time.monotonic()
        write_bytes(folder / "small", bytes([number]))
        times.append(1000 * (time.monotonic() - started))
    wait = statistics.median(times)
    found = f"{speed:.0f} MB/s, {wait:.1f} ms for a small file"
    if speed < _SLOW_MB_PER_S or wait > _SLOW_FSYNC_MS:
        return Check("writing", WARNING, found, "many small cells will wait for this disk")
    return Check("writing", OK, found)


def check_space(free: int, files: int | None) -> Check:
    """Check free space, bytes, and how many more files fit (``None`` where there is no limit)."""
    found = f"{free / _GB:.1f} GB free" + ("" if files is None else f", room for {files} files")
    hint = "free some space, or choose another --out"
    if free < _NO_DISK or files == 0:
        return Check("disk", PROBLEM, found, hint)
    if free < _LOW_DISK or (files is not None and files < _LOW_FILES):
        return Check("disk", WARNING, found, f"{hint}; --no-models needs least")
    return Check("disk", OK, found)


# -- the libraries ------------------------------------------------------------------------------

_PROBE = """
import json, sys
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["torch_cuda"] = torch.version.cuda
    try:
        import torchvision
        found["torchvision"] = torchvision.__version__
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    except Exception as error:
        found["torchvision_error"] = f"{type(error).__name__}: {error}"
    found["available"] = torch.cuda.is_available()
    if found["available"]:
        found["cards"] = [
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        ]
        found["product"] = float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8).cuda()).sum())
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
try:
    from sfuda_bench.networks.encoder_weights import cached_weights
    found["weights"] = cached_weights(sys.argv[1])
except Exception as error:
    found["weights_error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


def probe_libraries() -> dict[str, Any]:
    """Import torch and torchvision in another process and return what they say.

    Returns:
        Versions, CUDA, cards and the weights cache; ``error`` when the process died.
    """
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(folder for folder in folders if folder)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, _ENCODER],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found
    except subprocess.TimeoutExpired:
        return {"error": f"importing it took more than {_PROBE_SECONDS} s"}
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": f"the process that imported it died: {last[0]}"}


def check_libraries(found: dict[str, Any]) -> Iterator[Check]:
    """Check torch, torchvision, CUDA and the cached weights from what a process found."""
    if "torch" not in found:
        text = f"cannot be imported: {found.get('error', 'no reason given')}"
        yield Check("torch", PROBLEM, text, "pip install 'torch>=2.11' torchvision")
        return
    yield Check("torch", OK, f"{found['torch']}, built for CUDA {found['torch_cuda'] or 'none'}")
    if "torchvision_error" in found:
        yield Check(
            "torchvision",
            PROBLEM,
            f"{found.get('torchvision', 'cannot be imported')}: {found['torchvision_error']}",
            "install the torchvision that belongs to this torch, from the same index",
        )
    else:
        yield Check("torchvision", OK, f"{found['torchvision']}, its operators work")
    yield _check_cuda(found)
    yield _check_weights(found)


def _check_cuda(found: dict[str, Any]) -> Check:
    cards, driver = nvidia_cards(), nvidia_driver()
    if "error" in found:
        return Check("CUDA", PROBLEM, found["error"], "nvidia-smi; another torch for this driver?")
    if found.get("available"):
        return Check("CUDA", OK, f"{', '.join(found['cards'])}, driver {driver or 'not known'}")
    if not cards and driver is None:
        return Check("CUDA", OK, "no NVIDIA card on this machine: the CPU is used")
    if found["torch_cuda"] is None:
        hint = "install a torch that is built for CUDA"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hint = "CUDA_VISIBLE_DEVICES hides every card"
    else:
        hint = f"update the driver for CUDA {found['torch_cuda']}; nvidia-smi"
    text = f"torch sees none of {', '.join(cards) or 'the cards'}, driver {driver or 'not known'}"
    return Check("CUDA", WARNING, text, hint)


def _check_weights(found: dict[str, Any]) -> Check:
    if "weights_error" in found:
        hint = "install the package again"
        return Check("encoder weights", PROBLEM, found["weights_error"], hint)
    folder, there = found["weights"]
    if there:
        return Check("encoder weights", OK, f"{_ENCODER} is in {folder}")
    text = f"{_ENCODER} is not in {folder}; only --encoder-weights imagenet needs it"
    return Check("encoder weights", OK, text)


def failed(checks: Iterable[Check]) -> bool:
    """Whether a check found a problem."""
    return any(check.state == PROBLEM for check in checks)
