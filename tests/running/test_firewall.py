"""The process that adapts cannot open masks, names or raw data, and a task carries none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.methods import METHODS
from sfuda_bench.running.firewall import kernel_helps
from sfuda_bench.running.workers import Worker, WorkerSettings

_OURS = [name for name in METHODS.names() if not METHODS.get(name).oracle]
_PROBE = """
import ctypes, json, multiprocessing.util, os, sqlite3, subprocess, sys
from pathlib import Path
import numpy as np
from PIL import Image
from sfuda_bench.running.firewall import barred, layers, lifted, restrict

asked = json.loads(sys.argv[1])
path, folder, elsewhere = asked["path"], os.path.dirname(asked["path"]), asked["elsewhere"]
if "torch" in asked["ways"]:
    import torch, torchvision.io
libc = ctypes.CDLL(None, use_errno=True)
early = libc.open  # looked up before the door closed
restrict(asked["forbidden"], asked["read_only"], kernel=asked["kernel"])

def found(paths):
    if not list(paths):  # pathlib turns a refusal into an empty answer
        raise PermissionError("label firewall")

def by_descriptor():
    above = os.path.dirname(folder)
    handle = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    os.open(os.path.relpath(path, above), os.O_RDONLY, dir_fd=handle)

def opened_from(base, name):
    handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    os.open(name, os.O_RDONLY, dir_fd=handle)

def linked_from(base):
    handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    os.link(os.path.relpath(path, base), elsewhere, src_dir_fd=handle)

def by_link_from(base):
    os.symlink(os.path.relpath(folder, base), os.path.join(base, "way"))
    opened_from(base, os.path.join("way", os.path.basename(path)))

def from_within():
    os.chdir(folder)
    found(os.listdir())

def by_link():
    os.symlink(folder, elsewhere)
    open(os.path.join(elsewhere, os.path.basename(path)), "rb")

def checked(handle):
    if handle < 0:
        raise PermissionError("label firewall: " + os.strerror(ctypes.get_errno()))

def by_child():
    arguments = [b"/bin/cp", path.encode(), elsewhere.encode() + b".copy"]
    child = multiprocessing.util.spawnv_passfds(arguments[0], arguments, [])
    if os.waitpid(child, 0)[1]:
        raise PermissionError("label firewall")

def barred_for_now():
    with barred(path):
        with lifted():
            open(path, "rb").close()
        open(path, "rb")

ways = {
    "open": lambda: open(path, "rb").read(1),
    "bytes": lambda: open(os.fsencode(path), "rb").read(1),
    "relative": lambda: open(os.path.relpath(path), "rb").read(1),
    "numpy": lambda: np.load(path),
    "memmap": lambda: np.memmap(path, mode="r"),
    "pillow": lambda: Image.open(path).load(),
    "os.open": lambda: os.open(path, os.O_RDONLY),
    "proc": lambda: open("/proc/self/root" + path, "rb"),
    "parent": lambda: open(f"/proc/{os.getppid()}/root" + path, "rb"),
    "memory": lambda: open("/proc/self/mem", "rb"),
    "parent's files": lambda: os.listdir(f"/proc/{os.getppid()}/fd"),
    "descriptor": by_descriptor,
    "beside a descriptor": lambda: opened_from("/usr/lib", os.path.relpath(path, "/usr/lib")),
    "proc's descriptor": lambda: opened_from("/proc", "self/root" + path),
    "link beside": lambda: linked_from("/usr/lib"),
    "link below": lambda: by_link_from(os.path.dirname(elsewhere)),
    "listdir": lambda: os.listdir(folder),
    "within": from_within,
    "glob": lambda: found(Path(folder).glob("*")),
    "sqlite": lambda: sqlite3.connect(path),
    "link": lambda: os.link(path, elsewhere),
    "rename": lambda: os.rename(path, elsewhere),
    "symlink": by_link,
    "child": lambda: subprocess.run(["cat", path], capture_output=True, check=True),
    "system": lambda: checked(-os.system(f"cat '{path}' > {os.devnull} 2>&1")),
    "fork_exec": by_child,
    "libc": lambda: checked(libc.fopen64(path.encode(), b"r") - 1),
    "libc's link": lambda: checked(libc.link(path.encode(), elsewhere.encode())),
    "libc early": lambda: checked(early(path.encode(), os.O_RDONLY)),
    "torch": lambda: torch.from_file(path, size=1, dtype=torch.uint8),
    "torchvision": lambda: torchvision.io.read_file(path),
    "write": lambda: open(path, "ab"),
    "remove": lambda: os.remove(path),
    "truncate": lambda: os.truncate(path, 0),
    "replace": lambda: os.replace(path, elsewhere),
    "barred": barred_for_now,
}
said = {"layers": layers()}
for way in asked["ways"]:
    try:
        ways[way]()
    except (PermissionError, RuntimeError, subprocess.CalledProcessError) as error:
        said[way] = "refused: " + str(error)
    else:
        said[way] = "done"
print(json.dumps(said))
"""


def attempt(
    path: Path,
    forbidden: list[Path],
    ways: list[str],
    folder: Path,
    *,
    cwd: Path | None = None,
    kernel: bool = False,
    read_only: tuple[Path, ...] = (),
) -> dict[str, str]:
    """Try ways to a file in a process behind the firewall; return what became of each."""
    asked = {
        "path": str(path),
        "forbidden": [str(f) for f in forbidden],
        "read_only": [str(f) for f in read_only],
        "ways": ways,
        "elsewhere": str(folder / "elsewhere"),
        "kernel": kernel,
    }
    result = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said: dict[str, str] = json.loads(result.stdout)
    return said


@pytest.fixture(scope="module")
def layout(trained: Any) -> dict[str, Any]:
    """Return a mask file, a raw data file, packed masks, names and images, and what is barred."""
    packed = trained.out / "packed"
    return {
        "mask": trained.images("toy_b", "train", "mask")[0],
        "raw image": trained.images("toy_b", "train")[0],
        "packed masks": next((packed / "masks").glob("*.npy")),
        "names": next(p for p in (packed / "names").glob("*.json") if p.name != "index.json"),
        "packed images": next((packed / "images").glob("*.npy")),
        "forbidden": [packed / "masks", packed / "names", trained.data],
    }


BY_PYTHON = [
    "open", "bytes", "relative", "memmap", "pillow", "os.open", "proc", "parent", "memory",
    "parent's files", "descriptor", "beside a descriptor", "proc's descriptor", "listdir", "within",
    "glob", "sqlite", "link", "link beside", "link below", "rename", "symlink",
]  # fmt: skip
AROUND_PYTHON = ["fork_exec", "libc early", "torch", "torchvision"]
BY_CHILDREN_AND_LIBC = ["child", "system", "libc", "libc's link"]


def test_the_hook_refuses_every_way_of_python(layout: dict[str, Any], tmp_path: Path) -> None:
    """Without a kernel's help child processes and C functions by name are refused as well."""
    ways = [*BY_PYTHON, *BY_CHILDREN_AND_LIBC]
    said = attempt(layout["mask"], layout["forbidden"], ways, tmp_path)
    assert said.pop("layers") == ["hook"]
    assert [w for w, what in said.items() if not what.startswith("refused: label firewall")] == []
    assert not (tmp_path / "elsewhere").is_file()


def test_the_kernel_refuses_the_ways_around_python(layout: dict[str, Any], tmp_path: Path) -> None:
    """Libraries in C++ and child processes are refused by the kernel; the hook never hears."""
    ways = [*BY_PYTHON, *AROUND_PYTHON, *BY_CHILDREN_AND_LIBC]
    said = attempt(layout["mask"], layout["forbidden"], ways, tmp_path, kernel=True)
    if said.pop("layers") == ["hook"]:
        pytest.skip("this kernel has no Landlock")
    assert [way for way, what in said.items() if not what.startswith("refused")] == []


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("linked", ["folder", "file", "chain"])
def test_what_links_in_the_data_root_lead_to_is_refused(
    linked: str, kernel: bool, tmp_path: Path
) -> None:
    """Data roots are often trees of links; neither name of the file opens it."""
    pool, data = tmp_path / "pool", tmp_path / "data"
    masks = data / "clinic" / "ROIs" / "mask"
    (pool / "masks").mkdir(parents=True)
    (pool / "masks" / "a.png").write_bytes(b"mask")
    (pool / "readable.txt").write_text("x")
    masks.parent.mkdir(parents=True)
    if linked == "file":
        masks.mkdir()
        (masks / "a.png").symlink_to(pool / "masks" / "a.png")
    else:
        way = pool / "masks"
        if linked == "chain":
            way = tmp_path / "more"
            way.mkdir()
            (way / "a.png").symlink_to("../pool/masks/a.png")
        masks.symlink_to(way)
    for path in (masks / "a.png", pool / "masks" / "a.png"):
        said = attempt(path, [data], ["open", "os.open", "child"], tmp_path, kernel=kernel)
        del said["layers"]
        assert all(what.startswith("refused") for what in said.values()), said
    assert attempt(pool / "readable.txt", [data], ["open"], tmp_path)["open"] == "done"


def test_a_link_to_what_everybody_needs_bars_nothing(tmp_path: Path) -> None:
    """A stray link to the root folder, to Python or to the store would stop every method."""
    data, store = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (store / "sources").mkdir(parents=True)
    (store / "sources" / "card.json").write_text("x")
    for number, target in enumerate(("/", sys.prefix, tmp_path, store)):
        (data / f"link{number}").symlink_to(target)
    for kernel in (False, True):
        card = store / "sources" / "card.json"
        shared = (store / "sources",)
        said = attempt(card, [data], ["open"], tmp_path, kernel=kernel, read_only=shared)
        assert said["open"] == "done"


_CLOSES = """
import os, sys, threading, time
from sfuda_bench.running.firewall import restrict

restrict([sys.argv[1]], kernel=False)
over = time.monotonic() + 2

def open_and_close():
    while time.monotonic() < over:
        os.close(os.open("/usr", os.O_RDONLY | os.O_DIRECTORY))

threads = [threading.Thread(target=open_and_close) for _ in range(4)]
for thread in threads:
    thread.start()
while time.monotonic() < over:
    os.access("kept", os.R_OK)
    with open("kept", "w"):
        pass
"""


def test_folders_that_another_thread_closes_meanwhile_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    command = [sys.executable, "-c", _CLOSES, str(tmp_path / "mask")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


_KEEPS = """
import os, sys
from pathlib import Path
from sfuda_bench.running.firewall import restrict

restrict([sys.argv[1]])
path = Path.home() / ".cache" / "torch" / "weights"
path.parent.mkdir()
path.write_text("x")
print(path.read_text(), os.environ.get("TRITON_HOME"))
"""


def test_caches_in_a_new_home_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel permits what exists; a home that holds the data may hold no cache yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_HOME", raising=False)
    (tmp_path / "data").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _KEEPS, str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x")
    if kernel_helps():
        assert done.stdout.split()[1] == str(tmp_path / ".cache")


_ASKS_THREADS = """
import json, threading
from pathlib import Path

found = {}
for thread in threading.enumerate():
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    found[thread.name] = next(x.split()[1] for x in status.splitlines() if "NoNewPrivs" in x)
Path(__file__).with_name("threads.json").write_text(json.dumps(found))
"""


@pytest.mark.skipif(not kernel_helps(), reason="this kernel has no Landlock")
def test_the_kernel_holds_every_thread_of_a_worker(tmp_path: Path) -> None:
    """Landlock holds a thread and what it starts; a plug-in meets no thread from before."""
    plugin, masks = tmp_path / "asks_threads.py", tmp_path / "out" / "packed" / "masks"
    plugin.write_text(_ASKS_THREADS)
    masks.mkdir(parents=True)
    out = str(tmp_path / "out")
    settings = WorkerSettings("adapt", out, "cpu", 1, (str(plugin),), (str(masks),))
    worker = Worker(settings)
    try:
        worker.submit({})  # answered once everything is imported
        assert worker.connection.poll(60)
    finally:
        worker.stop()
    found = json.loads((tmp_path / "threads.json").read_text("utf-8"))
    assert len(found) >= 3
    assert set(found.values()) == {"1"}


@pytest.mark.parametrize("what", ["packed masks", "names", "raw image"])
def test_whatever_tells_labels_or_names_is_refused(
    layout: dict[str, Any], what: str, tmp_path: Path
) -> None:
    ways = ["open", "numpy", "os.open"] if what == "packed masks" else ["open", "os.open"]
    said = attempt(layout[what], layout["forbidden"], ways, tmp_path, kernel=True)
    assert all(said[way].startswith("refused: label firewall") for way in ways)


@pytest.mark.parametrize("kernel", [False, True])
def test_packed_images_are_read_and_not_changed(
    layout: dict[str, Any], kernel: bool, trained: Any, tmp_path: Path
) -> None:
    before = layout["packed images"].read_bytes()
    shared = (trained.out / "packed", trained.out / "sources")
    reading, writing = ["open", "numpy", "memmap"], ["write", "remove", "truncate", "replace"]
    said = attempt(
        layout["packed images"],
        layout["forbidden"],
        [*reading, *writing],
        tmp_path,
        kernel=kernel,
        read_only=shared,
    )
    assert {said[way] for way in reading} == {"done"}
    assert all("other cells read" in said[way] for way in writing), [said[way] for way in writing]
    assert layout["packed images"].read_bytes() == before


def test_test_images_are_barred_for_a_time(layout: dict[str, Any], tmp_path: Path) -> None:
    said = attempt(layout["packed images"], layout["forbidden"], ["barred", "open"], tmp_path)
    assert said["barred"].startswith("refused: label firewall")
    assert said["open"] == "done"


def test_a_working_directory_inside_the_data_root_bars_no_image(
    layout: dict[str, Any], trained: Any, tmp_path: Path
) -> None:
    """The second argument of an open event is the mode ``rb``, not a path below the folder."""
    said = attempt(
        layout["packed images"], layout["forbidden"], ["numpy"], tmp_path, cwd=trained.data
    )
    assert said["numpy"] == "done"


def test_a_folder_whose_name_begins_like_a_forbidden_one_is_open(tmp_path: Path) -> None:
    barred, open_one = tmp_path / "masks", tmp_path / "masks-of-carnival" / "a.txt"
    barred.mkdir()
    open_one.parent.mkdir()
    open_one.write_text("x")
    for kernel in (False, True):
        said = attempt(open_one, [barred], ["open"], tmp_path, kernel=kernel)
        assert said["open"] == "done"


def test_the_job_of_an_adapting_worker_names_no_mask_file_and_no_file_name(bench: Any) -> None:
    plan = bench.plan(["cpr", "bn_adapt"])
    for cell in plan.cells:
        assert cell.role == "adapt"
        text = repr(cell.job)
        assert "masks" not in text and "names" not in text
        assert str(bench.data) not in text
        assert not any(path.stem in text for path in bench.images("toy_b", "train"))


def test_a_method_gets_only_the_aux_fields_that_it_declares(
    bench: Any, plugin_folder: Path, extra_methods: None
) -> None:
    plugins = (plugin_folder / "misbehaving.py",)
    assert bench.run("asks", plugins=plugins).cell["strictness"] == "S1"
    with pytest.raises(KeyError, match="area_prior"):
        bench.run("peeks", plugins=plugins)


def test_adaptation_runs_with_source_images_and_target_masks_deleted(bench: Any) -> None:
    """O17: once planned, nothing of the source's images and no target mask is needed."""
    import shutil

    methods = sorted(_OURS)
    plan = bench.plan(methods)
    packed_source = {plan.sources[0].job["data_digest"]["images"]}
    shutil.rmtree(bench.data)
    shutil.rmtree(bench.out / "packed" / "masks")
    shutil.rmtree(bench.out / "packed" / "names")
    for meta in (bench.out / "packed" / "images").glob("*.json"):
        if any(digest in meta.read_text("utf-8") for digest in packed_source):
            meta.with_suffix(".npy").unlink()
    plan.cells = [_unscored(cell) for cell in plan.cells]
    assert set(bench.compute(plan).values()) == {"computed"}
    assert all((cell.folder / "cell.json").is_file() for cell in plan.cells)


def _unscored(cell: Any) -> Any:
    from dataclasses import replace

    return replace(cell, scoring=())
