"""What every method must keep to, ours and third parties'; none is named here."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from sfuda_bench.contract import conditions as at
from sfuda_bench.contract.bench import SOURCE, TARGET, Outcome
from sfuda_bench.contract.conditions import Condition
from sfuda_bench.contract.laboratory import Laboratory
from sfuda_bench.contract.verdicts import Invariants, NothingToCheck, demand
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import MethodSpec
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.adaptation import changed_parts
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.predict import predict_with
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import read_json
from sfuda_bench.settings import NetworkSettings
from sfuda_bench.tunable import bounds_of, build_config, search_space

INVARIANTS: Invariants[MethodSpec, Laboratory] = Invariants()
PROFILES = ("standard", "cpr-2023")
_STREAMED = ("online", "episodic")
_CPU = torch.device("cpu")


def unlabelled(spec: MethodSpec) -> bool:
    """Whether a method adapts without labels."""
    return not spec.oracle


def offline(spec: MethodSpec) -> bool:
    """Whether a method adapts to target train images before it sees a test image."""
    return unlabelled(spec) and spec.protocols[0] == "offline"


def trained(spec: MethodSpec) -> bool:
    """Whether a method draws random numbers: it takes gradient steps in a shuffled order."""
    return offline(spec) and bool(spec.updates & {"bn_affine", "whole", "input"})


def episodic(spec: MethodSpec) -> bool:
    """Whether a method can start anew with every test batch."""
    return unlabelled(spec) and "episodic" in spec.protocols


def streamed(spec: MethodSpec) -> list[str]:
    """Return the protocols in which a method sees one test batch after the other."""
    return [protocol for protocol in spec.protocols if protocol in _STREAMED]


# -- blindness ----------------------------------------------------------------------------------


@INVARIANTS.add("label-blind verified", unlabelled)
def label_blind(lab: Laboratory, spec: MethodSpec) -> str:
    """Deleting or shuffling the target's masks changes no byte, in any protocol."""
    seen = _same_everywhere(lab, spec, [at.MASKS_DELETED, at.MASKS_SHUFFLED], predictions=True)
    for protocol in spec.protocols[1:]:
        there = lab.result(at.AGAIN, spec.name, protocol=protocol)
        gone = lab.result(at.RECORDED_UNLABELLED, spec.name, protocol=protocol)
        _demand_same(there, gone, f"{protocol}: masks deleted", predictions=True)
    return seen


@INVARIANTS.add("blind to test images", offline)
def test_blind(lab: Laboratory, spec: MethodSpec) -> str:
    """Noise in the place of the test images leaves the adapted model as it is."""
    return _same_everywhere(lab, spec, [at.TEST_NOISE, at.TEST_NOISE_RECORDED])


@INVARIANTS.add("blind to file names", unlabelled)
def name_blind(lab: Laboratory, spec: MethodSpec) -> str:
    """Renaming the files into another order changes no byte."""
    return _same_everywhere(lab, spec, [at.RENAMED], predictions=True)


@INVARIANTS.add("unmoved by recording", unlabelled)
def record_blind(lab: Laboratory, spec: MethodSpec) -> str:
    """What a cell records besides its result changes no byte of it."""
    seen = _same_everywhere(lab, spec, [at.RECORDED_UNLABELLED], predictions=True)
    recorded = lab.result(at.RECORDED_UNLABELLED, spec.name)
    demand(recorded.cell["tracked"], "the epochs were not recorded")
    return seen


def _same_everywhere(
    lab: Laboratory,
    spec: MethodSpec,
    conditions: Sequence[Condition],
    *,
    predictions: bool = False,
) -> str:
    plain = lab.result(at.PLAIN, spec.name)
    for condition in conditions:
        changed = lab.result(condition, spec.name)
        _demand_same(plain, changed, condition.name, predictions=predictions)
    names = "; ".join(condition.name for condition in conditions)
    return f"{plain.sha[:12]}, and so it is with {names}"


def _demand_same(plain: Outcome, changed: Outcome, where: str, *, predictions: bool) -> None:
    demand(
        changed.sha == plain.sha,
        f"the adapted model is {plain.sha[:12]}, but with {where} {changed.sha[:12]}",
    )
    if predictions:
        demand(_equal_codes(plain, changed), f"other predictions with {where}")


def _equal_codes(one: Outcome, other: Outcome) -> bool:
    return _farthest(one, other) == 0


def _farthest(one: Outcome, other: Outcome) -> float:
    """Return the largest difference of two outcomes' codes; infinite for other images."""
    first, second = one.codes(), other.codes()
    if first.keys() != second.keys():
        return float("inf")
    return max(float(np.abs(first[k].astype(int) - second[k].astype(int)).max()) for k in first)


# -- repeatability ------------------------------------------------------------------------------


@INVARIANTS.add("same seed, same bytes")
def same_seed(lab: Laboratory, spec: MethodSpec) -> str:
    """One seed gives the same cell and the same scores in a store of its own."""
    plain, again = lab.result(at.PLAIN, spec.name), lab.result(at.AGAIN, spec.name)
    demand(again.cell == plain.cell, f"{plain.sha[:12]}, and the second time {again.sha[:12]}")
    for profile in PROFILES:
        first, second = plain.scores(profile)["digest"], again.scores(profile)["digest"]
        demand(first == second, f"other scores under {profile}: {first[:12]}, {second[:12]}")
    return f"{plain.sha[:12]} twice"


@INVARIANTS.add("another seed, other bytes", trained)
def other_seed(lab: Laboratory, spec: MethodSpec) -> str:
    """Another seed gives another model of a method that is trained."""
    plain, other = lab.result(at.PLAIN, spec.name), lab.result(at.AGAIN, spec.name, seed=1)
    demand(other.sha != plain.sha, f"{plain.sha[:12]} with seed 0 and with seed 1")
    return f"seed 0: {plain.sha[:12]}, seed 1: {other.sha[:12]}"


# -- what changes -------------------------------------------------------------------------------


@INVARIANTS.add("adapts", lambda spec: offline(spec) and bool(spec.updates))
def adapts(lab: Laboratory, spec: MethodSpec) -> str:
    """A method that declares updates differs from the source model."""
    plain = lab.result(at.PLAIN, spec.name)
    demand(plain.sha != plain.source_sha, f"still the source model, {plain.sha[:12]}")
    return f"source {plain.source_sha[:12]}, adapted {plain.sha[:12]}"


@INVARIANTS.add("only declared updates", offline)
def declared_updates(lab: Laboratory, spec: MethodSpec) -> str:
    """The stored weights differ from the source model's only where ``updates`` says so."""
    result = lab.result(at.PLAIN, spec.name)
    stored = load_file(result.folder / "model.safetensors")
    demand(model_sha256(stored) == result.sha, "the stored weights have another digest")
    before, after = _source_model(lab, result), _source_model(lab, result)
    after.load_state_dict(stored)
    changed = changed_parts(before, after)
    if "whole" not in spec.updates:
        undeclared = ", ".join(sorted(changed - spec.updates))
        demand(not undeclared, f"changes {undeclared}; declares {sorted(spec.updates)}")
    return f"changes {', '.join(sorted(changed)) or 'nothing'}"


def _source_model(lab: Laboratory, result: Outcome) -> SegmentationNetwork:
    key = result.cell["source_key"][:16]
    folder = lab.bench(at.PLAIN).out / "sources" / SOURCE / key
    return load_source_model(folder, NetworkSettings(name="tiny"), _CPU)


@INVARIANTS.add("inert settings", lambda spec: unlabelled(spec) and spec.inert is not None)
def inert(lab: Laboratory, spec: MethodSpec) -> str:
    """Under its ``inert`` settings a method equals the source model, in every protocol."""
    overrides = [f"{spec.name}.{key}={value}" for key, value in (spec.inert or {}).items()]
    result = lab.result(at.AGAIN, spec.name, overrides=overrides)
    demand(result.sha == result.source_sha, f"{result.sha[:12]}, source {result.source_sha[:12]}")
    demand(_equal_codes(result, lab.unadapted()), "other predictions than the source model's")
    for protocol in streamed(spec):
        result = lab.result(at.AGAIN, spec.name, overrides=overrides, protocol=protocol)
        demand(result.sha == result.source_sha, f"{protocol}: {result.sha[:12]}")
        # The batches differ, so a code may round differently.
        demand(_farthest(result, lab.unadapted()) <= 1, f"{protocol}: other predictions")
    return f"{result.source_sha[:12]} with {', '.join(overrides) or 'the defaults'}"


@INVARIANTS.add("leaves nothing behind", unlabelled)
def leaves_nothing(lab: Laboratory, spec: MethodSpec) -> str:
    """The next cell of the same process is what it is without this method before it."""
    before, after = lab.unadapted(), lab.unadapted_after(at.AGAIN, spec.name)
    left = lab.compute.left.get(spec.name)
    demand(not left, f"{left}; a run restarts the process after each of its cells")
    demand(after.sha == before.sha, f"the source model became {after.sha[:12]}")
    demand(_equal_codes(before, after), "the source model predicts something else afterwards")
    return f"the source model is {after.sha[:12]} before and after"


# -- robustness ---------------------------------------------------------------------------------


@INVARIANTS.add("finite on hard targets", unlabelled)
def finite(lab: Laboratory, spec: MethodSpec) -> str:
    """Constant images, one image, or a source model that finds nothing end in finite numbers."""
    for condition in at.HARD:
        result = lab.result(condition, spec.name)
        state = load_file(result.folder / "model.safetensors")
        for name, value in state.items():
            demand(torch.isfinite(value).all(), f"{condition.name}: {name} is not finite")
        images = len(lab.bench(condition).images(TARGET, "test"))
        demand(len(result.codes()) == 2 * images, f"{condition.name}: predictions are missing")
        demand(result.scores()["digest"], f"{condition.name}: no scores")
    return "; ".join(condition.name for condition in at.HARD)


@INVARIANTS.add("resumed, same bytes", offline)
def resumed(lab: Laboratory, spec: MethodSpec) -> str:
    """Stopped as its second epoch begins, a method goes on to the bytes of an undisturbed run."""
    overrides = _two_epochs(lab, spec)
    whole = lab.result(at.PLAIN, spec.name, overrides=overrides)
    if whole.cell["epochs"] < 2:
        asked = f" with {overrides[0]}" if overrides else ""
        return NothingToCheck(f"it begins no second epoch{asked}: there is nothing to go on with")
    again = lab.resumed(spec.name, overrides=overrides)
    if again is None:
        return NothingToCheck("task.epochs is given no optimizer and no state: it starts over")
    after = read_json(again.folder / "run.json")["resumed_after_epoch"]
    demand(after, f"it starts over, since task.epochs is told of other things; {_HAND_OVER}")
    differ = _different_tensors(whole, again)
    demand(not differ, f"resumed after its first epoch, other bytes in {differ}; {_HAND_OVER}")
    demand(_equal_codes(whole, again), f"resumed, it predicts something else; {_HAND_OVER}")
    return f"{again.sha[:12]} in one go, and resumed after the first epoch"


_HAND_OVER = (
    "hand whatever one epoch leaves to the next (a teacher, a memory bank, a counter) to "
    "task.epochs(..., state={...}), under the same names each time"
)
_NAMED = 4
"""How many tensors a message names."""


def _two_epochs(lab: Laboratory, spec: MethodSpec) -> list[str]:
    """Return settings under which a method begins a second epoch, if it needs and has any."""
    if lab.result(at.PLAIN, spec.name).cell["epochs"] >= 2:
        return []
    highest = [bounds_of(f).high for f in dataclasses.fields(spec.config) if f.name == "epochs"]
    return [f"{spec.name}.epochs=2" for high in highest if high is None or high >= 2]


def _different_tensors(one: Outcome, other: Outcome) -> str:
    """Name the tensors in which two adapted models differ; empty if there are none."""
    first, second = (
        {
            name: model_sha256({name: value})
            for name, value in load_file(result.folder / "model.safetensors").items()
        }
        for result in (one, other)
    )
    names = sorted({name for name, _ in first.items() ^ second.items()})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@INVARIANTS.add("any prediction batch", offline)
def prediction_batch(lab: Laboratory, spec: MethodSpec) -> str:
    """One image at a time gives the same predictions, but for rounding at a code's edge."""
    result = lab.result(at.PLAIN, spec.name)
    stored = result.codes()
    model = _source_model(lab, result)
    model.load_state_dict(load_file(result.folder / "model.safetensors"))
    plan = lab.bench(at.PLAIN).plan(spec.name)
    test = ImageSet.load(plan.cells[0].job["images"]["test"], _CPU)
    for batch in (1, 3):
        codes = predict_with(model, test.images, "float32", batch=batch)
        for id, pair in zip(test.ids, codes, strict=True):
            for structure, code in zip(("cup", "disc"), pair, strict=True):
                far = np.abs(stored[f"{id}-{structure}.png"].astype(int) - code.astype(int)).max()
                demand(far <= 1, f"batches of {batch}: a {structure} code is off by {far}")
    return "batches of 1, 3 and all agree"


# -- protocols and declarations -----------------------------------------------------------------


@INVARIANTS.add("every protocol", lambda spec: unlabelled(spec) and len(spec.protocols) > 1)
def protocols(lab: Laboratory, spec: MethodSpec) -> str:
    """Every declared protocol runs, is scored and marked, and is unmoved by recording."""
    plain = lab.result(at.PLAIN, spec.name)
    for protocol in spec.protocols[1:]:
        result = lab.result(at.AGAIN, spec.name, protocol=protocol)
        demand(result.cell["protocol"] == protocol, f"{protocol}: the cell is marked otherwise")
        demand("target_train" not in result.cell["digests"], f"{protocol}: train images are used")
        demand(result.cell["key"] != plain.cell["key"], f"{protocol}: the key is the default's")
        demand(result.scores()["digest"], f"{protocol}: no scores")
        recorded = lab.result(at.RECORDED_UNLABELLED, spec.name, protocol=protocol)
        demand(recorded.cell["tracked"], f"{protocol}: the epochs were not recorded")
        _demand_same(result, recorded, f"{protocol}, recorded", predictions=True)
    return ", ".join(spec.protocols)


@INVARIANTS.add("episodes are apart", episodic)
def episodes(lab: Laboratory, spec: MethodSpec) -> str:
    """An episodic prediction does not depend on the other test images."""
    alone = [f"{spec.name}.batch_size=1"]
    codes = [
        lab.result(condition, spec.name, overrides=alone, protocol="episodic").codes()
        for condition in (at.AGAIN, at.ONE_TEST_IMAGE_KEPT)
    ]
    shared = codes[0].keys() & codes[1].keys()
    demand(len(shared) == 2, f"{len(shared)} predictions of the image that both have, not 2")
    same = all((codes[0][key] == codes[1][key]).all() for key in shared)
    demand(same, "one image is segmented otherwise among other test images")
    return "one image among others, and among noise"


@INVARIANTS.add("declared extras", unlabelled)
def extras(lab: Laboratory, spec: MethodSpec) -> str:
    """Tables print the strictness class of the source-side extras that ``requires`` names."""
    found = lab.result(at.PLAIN, spec.name).cell["strictness"]
    demand(found == spec.strictness, f"the cell says {found}, the declaration {spec.strictness}")
    return f"{found}: {', '.join(sorted(spec.requires)) or 'the source model alone'}"


@INVARIANTS.add("settings resolve")
def settings(lab: Laboratory, spec: MethodSpec) -> str:
    """The config is a frozen dataclass whose defaults, ``inert`` values and ranges go together."""
    frozen = getattr(spec.config, "__dataclass_params__", None)
    demand(frozen is not None and frozen.frozen, f"{spec.config.__name__} is no frozen dataclass")
    defaults = _defaults(spec.config)
    config = build_config(spec.config, defaults, owner=spec.name)
    hints = typing.get_type_hints(spec.config)
    for name, value in defaults.items():
        same = getattr(config, name) == value
        demand(same, f"{name} = {value!r} becomes {getattr(config, name)!r} as {hints[name]}")
    build_config(spec.config, {**defaults, **(spec.inert or {})}, owner=spec.name)
    for name, distribution in search_space(spec.config).items():
        inside = defaults[name] is None or distribution._contains(
            distribution.to_internal_repr(defaults[name])
        )
        demand(inside, f"the default {name} = {defaults[name]!r} is outside its range")
    searched = [f.name for f in dataclasses.fields(spec.config) if bounds_of(f).search]
    return f"{len(defaults)} settings, tunable: {', '.join(searched) or 'none'}"


def _defaults(config: Callable[..., Any]) -> dict[str, Any]:
    try:
        made = config()
    except TypeError as error:
        raise UsageError(f"a setting has no default: {error}") from error
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


@INVARIANTS.add("says what it is")
def described(lab: Laboratory, spec: MethodSpec) -> str:
    """It names its source, has an integer version and lies in a file."""
    demand(spec.source.strip(), "source= is empty: name the paper and the code")
    demand(spec.title.strip(), "title= is empty")
    demand(spec.version >= 1, f"version {spec.version}; the first one is 1")
    demand(Path(spec.origin).is_file(), f"{spec.origin} is no file")
    return f"'{spec.title}' v{spec.version}, {spec.source}"
