"""Adapting one's own network to one's own unlabelled images, as a cell of a run does.

The images become the ``train`` split of a domain without masks, the network its given source
model, and the plan, the engine and the adapting worker process are those of ``run``: the same
images, weights, settings and seed give the same bytes. The worker is handed packed images; the
folder that they came from, and folders of masks near it, are closed to it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfuda_bench import errors
from sfuda_bench.errors import CellsFailed, DataError, SfudaError, UsageError
from sfuda_bench.frames import read_parquet
from sfuda_bench.methods import METHODS, MethodSpec
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.engine import ProgressSink, RunSummary, execute
from sfuda_bench.running.own.evidence import evidence
from sfuda_bench.running.own.images import Facts, ImageFolder, find_images, notes_on, write_split
from sfuda_bench.running.own.models import (
    ADAPTED,
    OwnModel,
    describe,
    find_model,
    is_kind,
    network_of,
)
from sfuda_bench.running.own.window import FIELD, Window, doubt, window_of, window_words
from sfuda_bench.running.plan import CellPlan, Plan, build_plan
from sfuda_bench.running.recording import inference_seed
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.store import Busy, Store, read_json, write_bytes, write_sealed
from sfuda_bench.settings import Settings, explain, resolve

CARD_SCHEMA = 1
DEFAULT_PRESET = "reproduction"
TARGET = "own_images"
_SUFFIX = ".safetensors"
_RECORDED = ("started", "finished", "seconds", "device", "platform", "threads", "versions")

Compute = Callable[[Plan, ProgressSink], RunSummary]


@dataclass(frozen=True, kw_only=True)
class AdaptRequest:
    """One ``adapt`` command.

    Attributes:
        method: A registered method.
        model: File of weights, or the folder of a stored model.
        images: Folder of unlabelled images.
        out: The ``.safetensors`` file to write; its card goes beside it.
        preset: Name of a shipped preset.
        config_file: TOML settings on top of it.
        overrides: ``key=value`` texts.
        image_size: Side of the input, px; default: what the model's card says, else the preset's.
        network: Network of a file without a card.
        encoder: Its encoder.
        precision: ``float32``, ``bfloat16`` or ``auto``; default: the preset's.
        seed: Adaptation seed.
        device: ``auto``, ``cpu`` or ``cuda``.
        plugins: Python files that register further plug-ins.
    """

    method: str
    model: Path
    images: Path
    out: Path
    preset: str = DEFAULT_PRESET
    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    image_size: int | None = None
    network: str | None = None
    encoder: str | None = None
    precision: str | None = None
    seed: int = 0
    device: str = "auto"
    plugins: tuple[Path, ...] = ()


def run_plan(plan: Plan, progress: ProgressSink) -> RunSummary:
    """Compute a plan in worker processes, and leave nothing behind that tables would show."""
    return execute(plan, progress, remember=False)


def adapt(
    request: AdaptRequest, progress: ProgressSink, compute: Compute = run_plan
) -> dict[str, Any]:
    """Adapt a model to a folder of images and write it with its card.

    What was computed stays in ``<out without suffix>.work`` until the model is written, so that
    the same command goes on after an interruption.

    Args:
        request: What is asked.
        progress: Where progress and notes go.
        compute: Computes the plan; by default in an adapting worker process.

    Returns:
        The card.

    Raises:
        UsageError: An oracle, a method without one adapted model, settings or a place to write
            that cannot be used.
        DataError: Images or weights that are missing or unreadable, or an extra that the method
            requires and the model lacks.
        CellsFailed: The method failed; its log stays in the work folder.
    """
    for path in request.plugins:
        load_plugin_file(path)
    spec = _usable(request.method)
    found = find_images(request.images)
    model = find_model(request.model)
    _check_out(request, model, found)
    window = window_of(model)
    settings = _settings(request, spec, model, window)
    _check_aux(spec, model)
    differences = (*_size_notes(settings, model), *_window_notes(settings, model, window))
    for text in (*found.notes, *differences):
        progress.note(text)
    with _work_folder(request.out) as work:
        plan, notes = _planned(request, spec, settings, model, found, work.folder)
        for text in notes:
            progress.note(f"warning: {text}")
        cell = plan.cells[0]
        if cell.state == "blocked":
            raise DataError(cell.reason, hint="sfuda-bench ls methods")
        work.keep = True
        compute(plan, _OneCell(progress))
        _check_done(plan, cell, work.folder)
        card = _card(request, spec, settings, model, plan, notes)
        _write(request.out, cell.folder, card)
    return card


# -- what is asked ----------------------------------------------------------------------------


def _usable(name: str) -> MethodSpec:
    spec = METHODS.get(name)
    if spec.oracle:
        raise UsageError(
            f"--method {spec.name}: it is trained on labels of the target, of which there are none",
            hint="sfuda-bench ls methods",
        )
    if "offline" not in spec.protocols:
        raise UsageError(
            f"--method {spec.name}: it changes the network anew for each image or batch "
            f"({', '.join(spec.protocols)}), so there is no adapted model to write",
            hint="choose a method with the protocol offline: sfuda-bench ls methods",
        )
    return spec


def _check_out(request: AdaptRequest, model: OwnModel, found: ImageFolder) -> None:
    """Refuse a place where something else lies, or that the adapting process may not open."""
    out = request.out
    if out.suffix != _SUFFIX:
        raise UsageError(
            f"--out {out}: expected a file *{_SUFFIX}", hint=f"--out {out.with_suffix(_SUFFIX)}"
        )
    if out.exists() and os.path.realpath(out) == os.path.realpath(model.file):
        raise UsageError(f"--out {out} is the source model itself", hint="choose another --out")
    card = out.with_suffix(".json")
    ours = is_kind(card, ADAPTED)
    for path in (out, card):
        if path.exists() and not ours:
            raise UsageError(
                f"--out {out}: {path.name} exists and this command did not write it",
                hint="choose another --out",
            )
    if _inside(out, found.folder):
        raise UsageError(
            f"--out {out} lies in the image folder {found.folder}, which the adapting process may "
            "not open",
            hint="choose another folder for --out",
        )


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _settings(request: AdaptRequest, spec: MethodSpec, model: OwnModel, window: Window) -> Settings:
    """Resolve the settings; network, size and window are the model's where these are known."""
    network = None
    if model.network is not None or request.network is not None:
        network = network_of(model, request.network, request.encoder)
    flags = {
        "data.image_size": request.image_size or model.image_size,
        "data.roi_crop_px": window.side_px if window.known else None,
        "network.name": network.name if network else None,
        "network.encoder": network.encoder if network else request.encoder,
        "run.precision": request.precision,
    }
    return resolve(
        request.preset,
        config_file=request.config_file,
        overrides=request.overrides,
        flags={key: value for key, value in flags.items() if value is not None},
        methods=[spec.name],
    )


def _size_notes(settings: Settings, model: OwnModel) -> list[str]:
    own, used = model.image_size, settings.data.image_size
    if own is None or own == used:
        return []
    return [f"warning: the model was trained at {own} px and is adapted at {used} px"]


def _window_notes(settings: Settings, model: OwnModel, window: Window) -> list[str]:
    """Say which window is taken, and whether it is the one that the model was given."""
    used = settings.data.roi_crop_px
    if window.known and window.side_px == used:
        return [str(window)]
    notes = [str(Window(used, "setting"))]
    if window.known:
        notes.append(
            f"warning: the model was given {window_words(window.side_px)} and is adapted to "
            f"{window_words(used)}"
        )
    elif why := doubt(model, window):
        notes.append(f"warning: {why}; if another one: --set data.{FIELD}=N, 0 for whole images")
    return notes


def _check_aux(spec: MethodSpec, model: OwnModel) -> None:
    lacking = sorted(spec.requires - model.aux)
    if lacking:
        free = [
            name
            for name in METHODS.names()
            if not (other := METHODS.get(name)).requires
            and not other.oracle
            and "offline" in other.protocols
        ]
        raise DataError(
            f"--method {spec.name} needs {', '.join(lacking)} of the model's training labels, and "
            f"nothing beside {model.file.name} has it",
            hint=f"where those labels are: sfuda-bench source import {model.file.name} --domain "
            "NAME --data-root DIR, then adapt the model in that store; or --method "
            + ", ".join(free),
        )


# -- planning ---------------------------------------------------------------------------------


@dataclass
class _Work:
    """The folder in which an adaptation works; kept on failure once something was computed."""

    folder: Path
    keep: bool


@contextmanager
def _work_folder(out: Path) -> Iterator[_Work]:
    """Hold the folder beside ``out`` in which an adaptation works; gone when all went well.

    Raises:
        UsageError: Another process writes the same model, or the folder is of something else.
    """
    folder = out.with_suffix(".work")
    work = _Work(folder, keep=folder.exists())
    if work.keep and not (folder / "store" / "store.json").is_file():
        raise UsageError(
            f"--out {out}: {folder.name} exists and this command did not make it",
            hint="choose another --out",
        )
    try:
        with Store.open(folder / "store").lock("own"):
            try:
                yield work
            except BaseException:
                if not work.keep:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except Busy as error:
        raise UsageError(
            f"--out {out}: another process is adapting this model", hint="choose another --out"
        ) from error


def _planned(
    request: AdaptRequest,
    spec: MethodSpec,
    settings: Settings,
    model: OwnModel,
    found: ImageFolder,
    work: Path,
) -> tuple[Plan, list[str]]:
    """Return the plan of the one cell, and what the user should know before it runs."""
    data, crop = work / "data", settings.data.roi_crop_px
    train = data / TARGET / "train" / "ROIs" / "image"
    facts = write_split(found.files, train, crop)
    _write_test(train, data / TARGET / "test" / "ROIs" / "image")
    store = Store.open(work / "store")
    plan = build_plan(
        RunRequest(
            methods=(spec.name,),
            pairs=f"{model.domain}:{TARGET}",
            seeds=(request.seed,),
            source_seeds=(0,),
            settings=settings,
            data_root=data,
            out=store.root,
            device=request.device,
            protocol="offline",
            record=frozenset({"validators"}),
            plugins=request.plugins,
            source_models=((model.domain, model.offer(store)),),
        )
    )
    plan.forbidden = (*plan.forbidden, *_forbidden(found))
    return plan, [*_image_notes(facts, settings), *plan.warnings]


def _write_test(train: Path, test: Path) -> None:
    """Give the domain its other split: one image, which nothing is adapted on or judged by."""
    shutil.rmtree(test, ignore_errors=True)
    test.mkdir(parents=True)
    first = min(train.iterdir())
    shutil.copyfile(first, test / first.name)


def _image_notes(facts: list[Facts], settings: Settings) -> list[str]:
    photographs = [found for found in facts if not found.mask_like]
    notes = notes_on(photographs, settings.data.image_size, settings.data.roi_crop_px)
    masks = len(facts) - len(photographs)
    if masks:
        notes.insert(0, f"{masks} files look like masks (two to four gray levels): left out")
    if len(photographs) == 1:
        notes.append("a single image: statistics over images say nothing, and it is easily overfit")
    return notes


def _forbidden(found: ImageFolder) -> tuple[Path, ...]:
    """Return what the adapting process must not open: raw images, and masks near them."""
    libraries = (sys.prefix, sys.base_prefix, os.path.dirname(errors.__file__))
    if any(_inside(Path(path), found.folder) for path in libraries):
        return found.beside  # the folder holds this program too
    return (found.folder, *found.beside)


class _OneCell:
    """Passes on progress, except what concerns scores: there are none."""

    def __init__(self, progress: ProgressSink) -> None:
        self._progress = progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)

    def note(self, text: str) -> None:
        if "stored without scores" not in text:
            self._progress.note(text)


def _check_done(plan: Plan, cell: CellPlan, work: Path) -> None:
    """Raise what stopped the cell, as an error of the class that it had there."""
    if (cell.folder / "cell.json").is_file():
        return
    attempt = plan.store.attempt(cell.key)
    record = attempt / "error.json"
    failure: Mapping[str, Any] = read_json(record) if record.is_file() else {}
    name = str(failure.get("class", ""))
    kind = getattr(errors, name, CellsFailed)
    text = str(failure.get("message", "the worker process ended"))
    if not (isinstance(kind, type) and issubclass(kind, SfudaError)):
        kind = CellsFailed
    if kind is CellsFailed and name:
        text = f"{name}: {text}"
    raise kind(
        f"adapting with {cell.method} failed: {text}",
        hint=f"see {attempt / 'log.txt'}; the same command starts again, {work} may be deleted",
    )


# -- the result -------------------------------------------------------------------------------


def _card(
    request: AdaptRequest,
    spec: MethodSpec,
    settings: Settings,
    model: OwnModel,
    plan: Plan,
    notes: list[str],
) -> dict[str, Any]:
    """Return what is to be known of the adapted model; no path, and no name of an image."""
    folder, job = plan.cells[0].folder, plan.cells[0].job
    cell, run = read_json(folder / "cell.json"), read_json(folder / "run.json")
    unchanged = cell["adapted_model_sha256"] == cell["source_model_sha256"]
    return {
        "kind": ADAPTED,
        "schema": CARD_SCHEMA,
        "method": spec.name,
        "method_version": spec.version,
        "title": spec.title,
        "citation": spec.source,
        "strictness": spec.strictness,
        "protocol": cell["protocol"],
        "preset": settings.preset,
        "config": cell["config"],
        "settings": _origins(settings, str(plan.cells[0].pair)),
        "seed": request.seed,
        "network": asdict(settings.network),
        "image_size": settings.data.image_size,
        "roi_crop_px": settings.data.roi_crop_px,
        "inference": asdict(settings.inference),
        "inference_seed": inference_seed(job),
        "precision": cell["precision"],
        "source": {**describe(model), "model_sha256": cell["source_model_sha256"]},
        "images": {
            "count": len(job["images"]["train"]["ids"]),
            "set_digest": cell["digests"]["target_train"],
        },
        "epochs": cell["epochs"],
        "adapted_model_sha256": cell["adapted_model_sha256"],
        "cell_key": cell["key"],
        "code_digest": cell["code_digest"],
        "warnings": [*notes, *run["warnings"]],
        "evidence": evidence(read_parquet(folder / "validators.parquet"), unchanged=unchanged),
        "run": {name: run[name] for name in _RECORDED if name in run},
    }


def _origins(settings: Settings, pair: str) -> dict[str, Any]:
    """Return every setting that can matter here, with where it comes from."""
    found = {}
    for key, value, origin in explain(settings):
        owner, name = key.split(".", 1)
        if owner == "source" or key == "data.evaluation_grid":
            continue  # nothing is trained on labels, and nothing is scored
        if owner in settings.methods:
            value = getattr(settings.config_for(owner, pair), name)
            origin = settings.origin_for(key, pair)
        plain = list(value) if isinstance(value, tuple) else value
        found[key] = {"value": plain, "origin": origin}
    return found


def _write(out: Path, cell: Path, card: Mapping[str, Any]) -> None:
    """Write card and model, the model last: where it is, it is whole and described."""
    write_sealed(out.with_suffix(".json"), card)
    write_bytes(out, (cell / "model.safetensors").read_bytes())
