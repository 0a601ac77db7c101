"""What every label-free validator must keep to; none is named here."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfuda_bench.contract.bench import SOURCE, TARGET, UNADAPTED, trained_bench
from sfuda_bench.contract.verdicts import Invariants, demand
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.validation import Validation
from sfuda_bench.scoring.validators import NEEDS, ValidationRecord, ValidatorSpec, evaluate
from sfuda_bench.settings import NetworkSettings

Values = tuple[float, float]
_CPU = torch.device("cpu")


@dataclass
class Records:
    """What is recorded of a trained model, and of one that predicts background everywhere."""

    folder: Path

    @cached_property
    def _models(self) -> tuple[Validation, torch.nn.Module, torch.nn.Module]:
        bench = trained_bench(self.folder / "trained", (SOURCE, TARGET))
        job = bench.plan(UNADAPTED).cells[0].job
        source = load_source_model(Path(job["source_dir"]), NetworkSettings(name="tiny"), _CPU)
        blind = copy.deepcopy(source)
        state = blind.state_dict()
        state["head.weight"].zero_()
        state["head.bias"].fill_(-20)
        train = ImageSet.load(job["images"]["train"], _CPU)
        validation = Validation(
            source=source, images=train.images, ids=train.ids, precision="float32", seed=0
        )
        return validation, source, blind

    @cached_property
    def usual(self) -> ValidationRecord:
        """The record of the source model."""
        return _full(self._models[0].record(self._models[1]))

    @cached_property
    def background(self) -> ValidationRecord:
        """The record of a model that finds nothing."""
        return _full(self._models[0].record(self._models[2]))


def _full(record: ValidationRecord) -> ValidationRecord:
    lacking = [name for name in NEEDS if record.lacks([name])]
    demand(not lacking, f"the record of the toy model lacks {', '.join(lacking)}")
    return record


def value(record: ValidationRecord, spec: ValidatorSpec) -> Values:
    """Return the values of cup and disc; what is done to the record stays without effect."""
    return evaluate(copy.deepcopy(record), [spec.name])[spec.name]


INVARIANTS: Invariants[ValidatorSpec, Records] = Invariants()


@INVARIANTS.add("finite")
def finite(records: Records, spec: ValidatorSpec) -> str:
    """A model that segments gets two finite numbers, one that finds nothing raises no error."""
    cup, disc = value(records.usual, spec)
    demand(math.isfinite(cup) and math.isfinite(disc), f"cup {cup}, disc {disc}")
    nothing = value(records.background, spec)
    return f"cup {cup:.4g}, disc {disc:.4g}; of background {nothing[0]:.4g}, {nothing[1]:.4g}"


@INVARIANTS.add("deterministic")
def deterministic(records: Records, spec: ValidatorSpec) -> str:
    """The same record gives the same numbers, whatever random numbers were drawn before."""
    np.random.seed(0)
    first = value(records.usual, spec)
    np.random.seed(1)
    torch.manual_seed(1)
    second = value(records.usual, spec)
    demand(first == second, f"{first}, and the second time {second}")
    return f"{first[0]!r} twice"


@INVARIANTS.add("label-free")
def label_free(records: Records, spec: ValidatorSpec) -> str:
    """It is handed what ``needs`` declares and the probabilities; a record holds no label."""
    held = {field.name for field in fields(ValidationRecord)} - {"prob", *NEEDS}
    demand(not held, f"a record has more fields: {sorted(held)}")
    full = spec.function(copy.deepcopy(records.usual))
    declared = spec.function(copy.deepcopy(records.usual).only(spec.needs))
    same = np.array_equal(np.array(full), np.array(declared), equal_nan=True)
    demand(same, f"{full} with the whole record, {declared} with what it declares")
    return f"prob{''.join(f', {name}' for name in sorted(spec.needs))}; {spec.strictness}"


@INVARIANTS.add("leaves the record alone")
def leaves_the_record(records: Records, spec: ValidatorSpec) -> str:
    """Nothing in the record changes: other validators read it as well."""
    record = copy.deepcopy(records.usual)
    spec.function(record)
    for name in ("prob", *NEEDS):
        before, after = getattr(records.usual, name), getattr(record, name)
        demand(_same(before, after), f"{name} was changed")
    return "all fields are as they were"


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if isinstance(before, tuple):
        return all(_same(*pair) for pair in zip(before, after, strict=True))
    if hasattr(before, "__dataclass_fields__"):
        return all(_same(getattr(before, f.name), getattr(after, f.name)) for f in fields(before))
    return bool(before == after)


@INVARIANTS.add("says what it is")
def described(records: Records, spec: ValidatorSpec) -> str:
    """It names its source, has an integer version and one line that describes it."""
    demand(spec.source.strip(), "source= is empty")
    demand(spec.description.strip(), "it has no docstring")
    demand(spec.version >= 1, f"version {spec.version}; the first one is 1")
    return f"v{spec.version}, {spec.source}"
