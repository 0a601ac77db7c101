"""Targets: checkpoints from strangers. None of them may run code, and none may be misread."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from sfuda_bench.errors import DataError, SfudaError, StoreSchemaError
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.state_files import read_state
from sfuda_bench.running.own.models import find_model
from sfuda_bench.running.source_import import import_source, load_network
from sfuda_bench.running.store import Store
from sfuda_bench.settings import NetworkSettings
from sfuda_bench.tensors import read_arrays, read_tensors
from tests.fuzz.mutations import damaged
from tests.fuzz.outcome import Finding, only_our_errors

NETWORK = NetworkSettings(name="tiny", encoder="mobilenet_v2")


class Payload:
    """Unpickling it runs a command; the file that this makes tells on it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(mark: Path) -> list[Payload]:
    """Return objects that make ``mark`` when code in a file is run."""
    import os
    import subprocess

    text = f"open({str(mark)!r}, 'w').close()"
    return [
        Payload(os.system, f"touch '{mark}'"),
        Payload(subprocess.call, ["touch", str(mark)]),
        Payload(exec, text),
        Payload(eval, text),
        Payload(Path.touch, mark),
        Payload(getattr, Payload(__import__, "os"), "system"),
        Payload(partial, os.system, f"touch '{mark}'"),
        Payload(torch.load, str(mark)),
    ]


def malicious(mark: Path) -> dict[str, bytes]:
    """Return files that hold code, by name: in every wrapping that a loader might look into."""
    files: dict[str, bytes] = {}
    for number, payload in enumerate(payloads(mark)):
        forms = {
            "bare": payload,
            "in a dict": {"state_dict": payload},
            "beside tensors": {"a": torch.zeros(2), "b": payload},
            "deep": {"model_state_dict": {"a": [{"b": (payload,)}]}},
        }
        for form, value in forms.items():
            plain = pickle.dumps(value)
            files[f"{number} {form}, pickle.pth"] = plain
            files[f"{number} {form}, pickle.safetensors"] = plain
            files[f"{number} {form}, protocol 0.pt"] = pickle.dumps(value, 0)
            for new in (True, False):
                stream = io.BytesIO()
                torch.save(value, stream, _use_new_zipfile_serialization=new)
                files[f"{number} {form}, torch {'zip' if new else 'old'}.pth.tar"] = (
                    stream.getvalue()
                )
                files[f"{number} {form}, torch {new}.safetensors"] = stream.getvalue()
        files[f"{number} in a zip.pth"] = _zipped(
            {"archive/data.pkl": plain, "archive/version": b"3"}
        )
        files[f"{number} zip in a zip.pth"] = _zipped(
            {"archive/data.pkl": _zipped({"archive/data.pkl": plain}), "archive/version": b"3"}
        )
    array = io.BytesIO()
    np.save(array, np.array([payloads(mark)[0]], dtype=object), allow_pickle=True)
    files["object array.npy"] = array.getvalue()
    files["object array.safetensors"] = array.getvalue()
    return files


def _zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with any header, which may claim any length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def crooked() -> dict[str, bytes]:
    """Return safetensors files that lie about what they hold, by name."""

    def entry(offsets: Any, shape: Any = (2,), kind: Any = "F32") -> dict[str, Any]:
        return {"dtype": kind, "shape": shape, "data_offsets": offsets}

    twice = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    twice += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    data = bytes(8)
    return {
        "empty": b"",
        "no header": b"\0" * 8,
        "giant header": tensors_file({}, length=2**63 - 1),
        "header of all ones": tensors_file({}, length=2**64 - 1),
        "header of 200 MB": tensors_file({}, length=200_000_000),
        "header that is no JSON": tensors_file(b"{" * 64),
        "header that is a list": tensors_file([1]),
        "deep header": tensors_file(b"[" * 100_000),
        "negative offsets": tensors_file({"a": entry([-8, 0])}, data),
        "offsets backwards": tensors_file({"a": entry([8, 0])}, data),
        "offsets beyond the end": tensors_file({"a": entry([0, 800], (200,))}, data),
        "offsets that are no numbers": tensors_file({"a": entry(["0", None])}, data),
        "one offset": tensors_file({"a": entry([0])}, data),
        "overlap": tensors_file({"a": entry([0, 8]), "b": entry([0, 8])}, data),
        "hole": tensors_file({"a": entry([0, 4], (1,)), "b": entry([8, 12], (1,))}, bytes(12)),
        "shape of another size": tensors_file({"a": entry([0, 8], (3,))}, data),
        "negative shape": tensors_file({"a": entry([0, 8], (-2, -1))}, data),
        "huge shape": tensors_file({"a": entry([0, 8], (2**62, 4))}, data),
        "shape that is a text": tensors_file({"a": entry([0, 8], "2")}, data),
        "unknown dtype": tensors_file({"a": entry([0, 8], (1,), "X99")}, data),
        "dtype that is a list": tensors_file({"a": entry([0, 8], (1,), ["F32"])}, data),
        "a name twice": tensors_file(twice, data),
        "an entry that is null": tensors_file({"a": None}, data),
        "metadata that is a list": tensors_file({"__metadata__": [1], "a": entry([0, 8])}, data),
        "trailing bytes": tensors_file({"a": entry([0, 8])}, data * 3),
    }


def good() -> bytes:
    """Return the weights of the smallest network."""
    torch.manual_seed(0)
    return save_tensors(NETWORKS.get("tiny").build("mobilenet_v2", None).state_dict())


def attack(rng: random.Random, folder: Path) -> None:
    """Open one crooked, damaged or malicious file in every way that weights are opened.

    Raises:
        Finding: It ran code, raised another error than ours, or was taken for something else.
    """
    mark = folder / "ran"
    kind = rng.randrange(3)
    if kind == 0:
        name, data = rng.choice(sorted(malicious(mark).items()))
        if rng.random() < 0.5:
            data = damaged(data, rng)
        check_refused(folder / name, data, mark, never_taken=False)
        return
    name, data = rng.choice(sorted(crooked().items()))
    if kind == 2:
        name, data = "weights", damaged(good(), rng)
    check_read(folder / f"{name}.safetensors", data)


def check_refused(path: Path, data: bytes, mark: Path, *, never_taken: bool = True) -> None:
    """Try every door; code in the file must not run.

    Raises:
        Finding: It ran, or was taken.
    """
    path.write_bytes(data)
    doors = (
        lambda: read_state(path, "--model", "check the path"),
        lambda: find_model(path),
        lambda: load_network(path, NETWORK),
        lambda: import_source(path, "toy_a", NETWORK, Store.open(path.parent / "store")),
        lambda: read_tensors(path),
    )
    for number, door in enumerate(doors):
        error = only_our_errors(door)
        if mark.exists():
            mark.unlink()
            raise Finding(f"{path.name}: code in the file was run by door {number}")
        if never_taken and number in (0, 2, 3) and not isinstance(error, DataError):
            raise Finding(f"{path.name}: door {number} took it: {error!r}"[:300])
    path.unlink()


def check_read(path: Path, data: bytes) -> None:
    """Read a safetensors file twice: with the library and without it; they must agree.

    Raises:
        Finding: Another error than ours, or two readings of one file.
    """
    path.write_bytes(data)
    state = only_our_errors(lambda: read_state(path, "--model", "check the path"), str(path))
    arrays = only_our_errors(lambda: read_arrays(path), str(path))
    only_our_errors(lambda: read_tensors(path), str(path))
    only_our_errors(lambda: load_network(path, NETWORK))
    if isinstance(arrays, SfudaError) and not isinstance(arrays, StoreSchemaError):
        raise Finding(f"{path.name}: {arrays!r}")
    if isinstance(state, dict) and isinstance(arrays, dict):
        for name, tensor in state.items():
            if tensor.dtype == torch.bfloat16:
                continue
            if name not in arrays or arrays[name].tobytes() != tensor.numpy().tobytes():
                raise Finding(f"{path.name}: two readings of '{name}'")
    if isinstance(state, SfudaError) and isinstance(arrays, dict) and arrays:
        raise Finding(f"{path.name}: refused by one reader ({state.message}), taken by the other")
    path.unlink()
