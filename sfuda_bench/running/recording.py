"""What a cell keeps besides its result: epochs, label-free validators, predictions on train.

Recording looks at models and changes nothing: a cell with and without it has the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sfuda_bench.frames import write_parquet
from sfuda_bench.images.packed import load_pack
from sfuda_bench.images.resident import ResidentImages
from sfuda_bench.running.counting import ImageCount
from sfuda_bench.running.firewall import barred, lifted
from sfuda_bench.running.keys import derive_seed, digest, model_sha256
from sfuda_bench.running.predict import predict, write_predictions
from sfuda_bench.running.store import read_json, sync_tree
from sfuda_bench.running.streams import forked
from sfuda_bench.running.validation import Validation
from sfuda_bench.settings import Inference

Codes = np.ndarray[Any, Any]
Row = tuple[int, str, str, float]
"""Epoch, validator, structure, value."""


_SOURCES_KEPT = 2
_SOURCES: dict[str, Validation] = {}
"""What a worker knows of the last source models: the cells of a study share it."""
_UNADAPTED: WeakKeyDictionary[Validation, list[Row]] = WeakKeyDictionary()
"""The values of the unadapted source models, epoch 0 of every cell."""


def forget_sources() -> None:
    """Forget what was computed from images that a method has changed since."""
    _SOURCES.clear()


@dataclass(frozen=True)
class ImageSet:
    """A packed split without masks and without file names: (N, 3, S, S) uint8 and opaque ids."""

    images: Tensor
    ids: tuple[str, ...]
    large: Path | None = None

    @classmethod
    def load(cls, paths: Mapping[str, Any], device: torch.device) -> ImageSet:
        """Move one packed split to the device; its larger copy stays in the file."""
        images = ResidentImages(np.array(load_pack(Path(paths["images"]))), device).images
        return cls(images, tuple(paths["ids"]), Path(paths["large"]) if "large" in paths else None)


@dataclass(frozen=True)
class LateImages:
    """A packed split that is read when it is predicted; nothing keeps it before that.

    What adapts offline must not meet test images, neither in memory nor by their file's name.
    """

    paths: Mapping[str, Any]
    device: torch.device

    @property
    def ids(self) -> tuple[str, ...]:
        """Opaque ids, in packed order."""
        return tuple(self.paths["ids"])

    def load(self) -> ImageSet:
        """Read the split."""
        with lifted():
            return ImageSet.load(self.paths, self.device)

    def closed(self) -> AbstractContextManager[None]:
        """Return a context in which an adapt worker refuses to open the file."""
        return barred(self.paths["images"])


def inference_seed(job: Mapping[str, Any]) -> int:
    """Return the seed of dropout at prediction: equal for methods that share streams."""
    return derive_seed(job["stream_key"], "inference")


class Recorder:
    """Observes one cell's models.

    Args:
        job: The cell's job; ``record`` says what is kept.
        source: The unadapted source model.
        test: Target test images; read for each look at them.
        staged: The folder that becomes the cell's.
        device: Where networks run.
        count: Stands still while something is recorded.
        train: Target ``train`` images, if they are loaded already.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        source: nn.Module,
        test: LateImages,
        staged: Path,
        device: torch.device,
        count: ImageCount,
        train: ImageSet | None = None,
    ) -> None:
        self.seconds = 0.0
        self._job, self._test, self._staged = job, test, staged
        self._device, self._count = device, count
        self._records = frozenset(job["record"])
        self._inference = Inference(**job["inference"])
        self._seed = inference_seed(job)
        self._rows: dict[int, list[Row]] = {}
        self._validated = (-1, "")
        self._unsynced: list[Path] = []
        self._train: ImageSet | None = None
        if self._records & {"validators", "train"}:
            self._train = train or ImageSet.load(job["images"]["train"], device)
        self._validation = self._make_validation(source)

    def _make_validation(self, source: nn.Module) -> Validation | None:
        if "validators" not in self._records or self._train is None:
            return None
        aux_dir = Path(self._job["source_dir"]) / "aux"
        aux = {path.stem: read_json(path) for path in sorted(aux_dir.glob("*.json"))}
        seed = derive_seed(self._job["stream_key"], "validation")
        sha = model_sha256(source.state_dict())
        key = digest(
            [sha, seed, self._train.ids, self._job["precision"], aux, asdict(self._inference)]
        )
        with self.aside():
            if key not in _SOURCES:
                validation = Validation(
                    source=source,
                    images=self._train.images,
                    ids=self._train.ids,
                    precision=self._job["precision"],
                    seed=seed,
                    aux=aux,
                    inference=self._inference,
                )
                _SOURCES[key] = validation
                while len(_SOURCES) > _SOURCES_KEPT:
                    _SOURCES.pop(next(iter(_SOURCES)))
            return _SOURCES[key]

    def observe(self, epoch: int, model: nn.Module) -> None:
        """Look at a model at the end of an epoch; epoch 0 is the unadapted source model."""
        with self.aside():
            if "epochs" in self._records:
                self._keep_epoch(epoch, self._predict(model, self._test.load()))
            if "epochs" in self._records or epoch == 0:
                self._validate(epoch, model)

    def finish(self, model: nn.Module, last_epoch: int, codes: Codes) -> None:
        """Look at the final model: it stands for the last epoch, whatever was trained there.

        Args:
            model: What the method returned.
            last_epoch: 0 for a method without epochs, whose final model stands for epoch 1.
            codes: Predictions of the final model for the test images, as they are scored.
        """
        with self.aside():
            last = max(last_epoch, 1)
            if "epochs" in self._records:
                self._keep_epoch(last, codes)
            self._validate(last, model)
            if "train" in self._records and self._train is not None:
                folder = self._staged / "predictions-train"
                write_predictions(folder, self._train.ids, self._predict(model, self._train))
            if self._validation is not None:
                write_parquet(self._frame(), self._staged / "validators.parquet")

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, for checkpoints; the epochs' files are on disk by then."""
        while self._unsynced:
            sync_tree(self._unsynced.pop())
        return {"rows": self._rows, "validated": self._validated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was seen."""
        self._rows = state["rows"]
        self._validated = state["validated"]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the random state and the method's cost as they are found."""
        self._wait()
        started = time.monotonic()
        with self._count.paused(), forked(self._seed):
            yield
        self._wait()
        self.seconds += time.monotonic() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _keep_epoch(self, epoch: int, codes: Codes) -> None:
        folder = self._staged / "predictions" / f"epoch-{epoch:03d}"
        write_predictions(folder, self._test.ids, codes)
        self._unsynced.append(folder)

    def _predict(self, model: nn.Module, images: ImageSet) -> Codes:
        return predict(model, images.images, self._inference, self._job["precision"], self._seed)

    def _validate(self, epoch: int, model: nn.Module) -> None:
        """Ask the validators, unless they saw this very model at this epoch."""
        if self._validation is None:
            return
        state = (epoch, model_sha256(model.state_dict()))
        if state == self._validated:
            return
        self._validated = state
        if epoch == 0:
            if self._validation not in _UNADAPTED:
                _UNADAPTED[self._validation] = self._validation.rows(0, model)
            self._rows[0] = _UNADAPTED[self._validation]
        else:
            self._rows[epoch] = self._validation.rows(epoch, model)

    def _frame(self) -> pd.DataFrame:
        kinds = {"epoch": "int64", "validator": "str", "structure": "str", "value": "float64"}
        rows = [row for _, rows in sorted(self._rows.items()) for row in rows]
        return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)
