"""The label firewall: what an adapting process can no longer open once it is ready to work.

Two layers. An audit hook of Python refuses whatever Python itself opens, lists, renames or links
below the forbidden folders, and says so in words. Where the kernel has Landlock (Linux 5.19 and
later) it refuses the same files to every library, thread and child of the process as well.

What symbolic links below those folders lead to is forbidden as well. Neither layer knows of hard
links and bind mounts that exist elsewhere, and neither hides a file's size.

Both stop mistakes and ordinary cheating. The proof that labels play no part is elsewhere: adapted
bytes must not change when the masks are deleted or shuffled; see :mod:`sfuda_bench.contract`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

_OPENS = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.chdir": 1, "sqlite3.connect": 1}
_CHANGES = {
    "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1,
}  # fmt: skip
"""Audit events, and how many of their first arguments are paths."""
_PROCESSES = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn",
})  # fmt: skip
_SYMBOLS = re.compile(
    r"_?(f?open|open(at2?|64)|openat64|fopen64|freopen|open_by_handle_at|syscall|dlv?sym|mount|"
    r"chroot|(sym)?link(at)?|system|popen|v?fork|exec\w+|posix_spawnp?)$"
)
"""What C functions would get around the hook when they are called by name."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DESCRIPTORS = "/proc/self/fd"
_barred: set[str] = set()
_layers: tuple[str, ...] = ()


def layers() -> tuple[str, ...]:
    """Return what holds in this process: nothing, ``("hook",)`` or ``("hook", "kernel")``."""
    return _layers


def restrict(
    forbidden: Sequence[str | Path], read_only: Sequence[str | Path] = (), *, kernel: bool = True
) -> None:
    """Make this process refuse, for good, to open anything below ``forbidden``.

    Where the kernel holds back child processes too, they may be started; elsewhere they, and C
    functions called by name, are refused.

    Args:
        forbidden: Folders of masks, names and raw data; many data sets are trees of links, so
            what links below them lead to counts as well.
        read_only: Folders that other cells read as well: source models and packed images.
        kernel: Ask the kernel as well, unless ``SFUDA_FIREWALL=hook`` is in the environment.
    """
    global _layers
    shared = frozenset(os.path.realpath(folder) for folder in read_only)
    roots = _with_linked(frozenset(os.path.realpath(folder) for folder in forbidden), shared)
    held = kernel and os.environ.get("SFUDA_FIREWALL") != "hook" and _ask_kernel(roots)
    sys.addaudithook(_Hook(roots, shared, _above(roots), children=held))
    _layers = ("hook", "kernel") if held else ("hook",)


@contextmanager
def barred(*paths: str | Path) -> Iterator[None]:
    """Refuse to open these files inside the block, in a process that is restricted."""
    added = {os.path.realpath(path) for path in paths} - _barred
    _barred.update(added)
    try:
        yield
    finally:
        _barred.difference_update(added)


@contextmanager
def lifted() -> Iterator[None]:
    """Open what is barred, inside the block: the harness looks at test images between epochs."""
    barred_now = set(_barred)
    _barred.clear()
    try:
        yield
    finally:
        _barred.update(barred_now)


@dataclass(frozen=True)
class _Hook:
    """The audit hook; see :func:`restrict`."""

    forbidden: frozenset[str]
    read_only: frozenset[str]
    above: frozenset[str]
    children: bool

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPENS:
            flags = arguments[2] if event == "open" else 0
            writes = isinstance(flags, int) and bool(flags & _WRITES)
            self._check(event, arguments[:1], writes=writes)
        elif event in _CHANGES:
            self._check(event, arguments[: _CHANGES[event]], writes=True)
        elif not self.children:
            self._check_ways_around(event, arguments)

    def _check(self, event: str, arguments: tuple[Any, ...], *, writes: bool) -> None:
        for argument in arguments:
            if argument is None and event in ("os.listdir", "os.scandir"):
                argument = "."
            if not isinstance(argument, str | bytes | os.PathLike):
                continue  # a descriptor: it was checked when it was opened
            for path in _leads_to(os.fsdecode(argument)):
                self._check_path(event, path, writes=writes)

    def _check_path(self, event: str, path: str, *, writes: bool) -> None:
        if _below(path, self.forbidden) or path in _barred or _foreign_memory(path):
            raise PermissionError(f"label firewall: an adapting process may not open {path}")
        if writes and _below(path, self.read_only):
            raise PermissionError(f"label firewall: other cells read {path}; it must not change")
        # Files below an open folder could be opened relative to it, also by C functions.
        if event == "open" and path in self.above and os.path.isdir(path):
            raise PermissionError(
                f"label firewall: an adapting process may not open {path}: what it must not "
                "read lies below"
            )

    def _check_ways_around(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROCESSES:
            raise PermissionError("label firewall: an adapting process may not start processes")
        if event == "ctypes.dlsym" and _SYMBOLS.match(str(arguments[1])):
            raise PermissionError(
                f"label firewall: an adapting process may not call {arguments[1]}"
            )


def _below(path: str, roots: Set[str]) -> bool:
    """Whether a real path is one of these, or lies below one."""
    while path not in roots:
        path, before = os.path.dirname(path), path
        if path == before:
            return False
    return True


def _above(roots: frozenset[str]) -> frozenset[str]:
    return frozenset(str(parent) for root in roots for parent in Path(root).parents)


def _leads_to(path: str) -> Iterator[str]:
    """Yield where a path leads; a relative one also from each open folder.

    An event does not say which descriptor a path is relative to (``dir_fd``).
    """
    yield os.path.realpath(path)
    if os.path.isabs(path) or not os.path.isdir(_DESCRIPTORS):
        return
    for name in os.listdir(_DESCRIPTORS):
        folder = os.path.join(_DESCRIPTORS, name)
        try:
            found = os.path.realpath(os.path.join(folder, path)) if os.path.isdir(folder) else None
        except FileNotFoundError:  # another thread has closed it meanwhile
            continue
        if found is not None:
            yield found


def _foreign_memory(path: str) -> bool:
    """Whether a path leads into another process, or into memory behind Python's back.

    How much processor time another process used is no secret: signs of life need it.
    """
    found = re.match(r"/proc/(\d+)((?:/task/\d+)?)(/.*)?$", path)
    if found is None:
        return False
    what = found[3] or ""
    if int(found[1]) == os.getpid():
        return what.startswith("/mem")
    return what != "/stat" and (not found[2] or what != "/children")


def _with_linked(roots: frozenset[str], needed: frozenset[str]) -> frozenset[str]:
    """Return these folders, and what symbolic links below them lead to.

    A link to a folder that holds one of them, a folder that is needed, or Python itself, forbids
    nothing.
    """
    kept = roots | needed | {os.path.realpath(folder) for folder in (sys.prefix, *sys.path)}
    kept |= _above(kept)
    found, new = set(roots), list(roots)
    while new:
        for link in _links(new.pop()):
            target = os.path.realpath(link)
            if target not in kept and not _below(target, found):
                found.add(target)
                new.append(target)
    return frozenset(found)


def _links(folder: str) -> Iterator[str]:
    """Yield every symbolic link below a folder."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return  # no folder, or not for us anyway
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from _links(entry.path)


# -- the kernel's part --------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_READ_FILE, _REFER = 1 << 2, 1 << 13
_FIRST_WITH_REFER = 2  # before it no file can move between folders, and a commit is such a move
_MOST_RULES = 20_000


def _ask_kernel(forbidden: frozenset[str]) -> bool:
    """Restrict this thread and what it starts with Landlock; return whether that worked.

    Landlock knows permissions and no refusals, so everything that exists beside the forbidden
    folders is permitted one by one. A file that is put right beside them later cannot be read.
    """
    if not kernel_helps():
        return False
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).syscall
    _own_temporary_folder(forbidden)
    _own_cache(forbidden)
    permitted = _beside(forbidden)
    if permitted is None or len(permitted) > _MOST_RULES:
        return False
    handled = (_READ_FILE | _REFER).to_bytes(8, sys.byteorder)
    ruleset = call(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return False
    try:
        for path in permitted:
            _permit(call, ruleset, path)
        if ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return False
        return bool(call(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def kernel_helps() -> bool:
    """Whether this machine's kernel can hold back a process."""
    if sys.platform != "linux":
        return False
    import ctypes

    version = ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return bool(version >= _FIRST_WITH_REFER)


def _permit(call: Any, ruleset: int, path: str) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # gone in the meantime, or not for us anyway
    try:
        access = _READ_FILE | _REFER if os.path.isdir(path) else _READ_FILE
        rule = access.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)


def _beside(forbidden: frozenset[str]) -> list[str] | None:
    """Return what lies beside the forbidden folders and their parents; ``None`` if unreadable.

    Symbolic links are left out: what they lead to is permitted where it really is.
    """
    parents = _above(forbidden)
    permitted = []
    for folder in sorted(parents):
        if _below(folder, forbidden) or not os.path.isdir(folder):
            continue
        try:
            entries = [entry.path for entry in os.scandir(folder) if not entry.is_symlink()]
        except OSError:
            return None
        permitted += [path for path in entries if path not in parents and path not in forbidden]
    return permitted


def _own_temporary_folder(forbidden: frozenset[str]) -> None:
    """Give this process a folder for temporary files where new ones could not be read."""
    if os.path.realpath(tempfile.gettempdir()) in _above(forbidden):
        tempfile.tempdir = tempfile.mkdtemp(prefix="sfuda-")
        os.environ["TMPDIR"] = tempfile.tempdir
        # Worker processes end without atexit.
        Finalize(None, shutil.rmtree, (tempfile.tempdir, True), exitpriority=0)


def _own_cache(forbidden: frozenset[str]) -> None:
    """Have libraries' caches where they can be read, though data lie in a new home folder too."""
    home = os.path.realpath(os.path.expanduser("~"))
    if home in _above(forbidden):
        cache = os.path.join(home, ".cache")
        with suppress(OSError):
            os.makedirs(cache, exist_ok=True)
        if not os.path.isdir(os.path.join(home, ".triton")):
            os.environ.setdefault("TRITON_HOME", cache)
