"""The port of adaptation methods: what a method gets, what it returns, how it registers.

A method is one file in the top-level folder ``methods/``::

    @register("entropy_min", version=1, config=EntropyMinConfig, updates={"bn_affine"}, ...)
    def adapt(task: AdaptationTask, config: EntropyMinConfig) -> nn.Module: ...

Nothing that a method can reach carries a target label, and nothing that depends on a label or
on a test image comes back to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sfuda_bench._checkout import plugin_path
from sfuda_bench.errors import UsageError
from sfuda_bench.registry import Registry, defining_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sfuda_bench.networks.taps import SegmentationNetwork

__path__ = plugin_path("methods")

Photometric = Literal["none", "dpl", "report"]
Carried = Mapping[str, Any]
"""What a loop over epochs carries, by name: tensors, or things with ``state_dict``."""
PROTOCOLS = ("offline", "transductive", "online", "episodic")
UPDATES = ("bn_stats", "bn_affine", "whole", "input")
STRICTNESS = {"area_prior": "S1"}
"""Strictness class of every aux field; what a method gets without asking is S0."""


@dataclass(frozen=True)
class Batch:
    """Unlabelled target images.

    Attributes:
        image: (B, 3, H, W) float32, normalised to [-1, 1], perhaps augmented.
        index: (B,) int64 positions in the target set, to look up frozen per-image results.
    """

    image: Tensor
    index: Tensor


class Target(Protocol):
    """The unlabelled target images, resident on the device; there is no field for a mask."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    @property
    def ids(self) -> tuple[str, ...]:
        """Opaque ids in the order of ``index``; they follow the content, never the file name."""
        ...

    def batches(
        self,
        size: int,
        *,
        augment: Photometric = "none",
        shuffle: bool = False,
        scale: float = 1.0,
    ) -> Iterator[Batch]:
        """Yield the set once; a final batch of one joins the batch before it.

        Args:
            size: Images per batch.
            augment: ``"none"``, ``"dpl"`` (salt and pepper, gamma, eraser) or ``"report"``.
            shuffle: Draw the order from the epoch's stream; otherwise order by content digest.
            scale: Side of the images over the model's input size, to the nearest multiple of 16.
                Above 1 only the scale that the method declares with ``target_scale``.
        """
        ...


class Artefact(Protocol):
    """A frozen intermediate: named tensors under a content key."""

    @property
    def key(self) -> str:
        """Hex digest of the function, its version, its parameters and everything it saw."""
        ...

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        ...

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor onto the task's device; keep it when it is needed again."""
        ...


class FrozenTask(Protocol):
    """What the function of a frozen step may use; its results depend on nothing else."""

    @property
    def source_model(self) -> SegmentationNetwork:
        """A fresh copy of the source model in eval mode."""
        ...

    @property
    def target(self) -> Target:
        """The unlabelled target images."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the mixed-precision context of this run."""
        ...

    def epochs(self, count: int, *, state: Carried | None = None) -> Iterable[int]:
        """Yield 1..count, seeding each epoch's streams from the artefact's key.

        Args:
            count: Number of epochs.
            state: All that one epoch hands to the next; a killed step then goes on after its
                last finished epoch. Without it the step starts over.
        """
        ...


class AdaptationTask(Protocol):
    """All that a method can reach."""

    @property
    def source_model(self) -> SegmentationNetwork:
        """The method's own copy of the source model, in eval mode, on the device."""
        ...

    @property
    def target(self) -> Target:
        """The unlabelled target images of the protocol."""
        ...

    @property
    def aux(self) -> Mapping[str, Any]:
        """Source-side extras, only those declared in ``requires``."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the mixed-precision context of this run."""
        ...

    def frozen(self, function: Callable[..., dict[str, Tensor]], **parameters: Any) -> Artefact:
        """Return the result of a :func:`frozen_step`, computed once per content key.

        Args:
            function: A module-level function ``f(task: FrozenTask, **parameters)`` marked with
                :func:`frozen_step`.
            **parameters: JSON scalars, or artefacts of other steps (their keys chain).
        """
        ...

    def epochs(
        self,
        count: int,
        *,
        model: nn.Module,
        optimizer: Any = None,
        state: Carried | None = None,
    ) -> Iterable[int]:
        """Yield 1..count (a second call goes on counting); the harness seeds and records.

        With an ``optimizer`` or a ``state`` (an empty one counts), the two and ``model`` are
        declared to be all that one epoch hands to the next: a killed cell then goes on after its
        last finished epoch, with the same bytes. Without either it starts over.

        Args:
            count: Number of epochs.
            model: The network being adapted; it is observed at each epoch's end.
            optimizer: Its optimiser.
            state: What else is handed on: other networks, tensors that are updated in place, or
                anything with ``state_dict`` and ``load_state_dict``.
        """
        ...

    def track(self, **values: float) -> None:
        """Record label-free scalars (losses, coverage) for the current epoch."""
        ...

    def pseudo_labels(self, stage: str, label: Tensor, keep: Tensor | None = None) -> None:
        """Hand in the pseudo-labels of one stage, to be stored when that was asked for.

        Nothing comes back. Of a stage that is handed in again, the first labels count.

        Args:
            stage: ``"initial"``, ``"refined"``, ``"calibrated"``, ``"masked"``, ...
            label: (N, 2, S, S) bool, in the order of ``index``.
            keep: (N, 2, S, S) bool, the pixels that are used; ``None`` for all.
        """
        ...


@dataclass(frozen=True)
class MethodSpec:
    """One registered method.

    Attributes:
        name: Name in selectors, tables and paths.
        version: Integer; raise it when results change.
        config: Frozen dataclass of settings.
        adapt: The method; ``None`` for a method that only works online.
        online: Returns a step function (images (B, 3, H, W) normalised -> logits) for the online
            and episodic protocols.
        supervised: A labelled reference instead of a method; see :class:`SupervisedTask`.
        updates: What may differ from the source model afterwards.
        requires: Aux fields that it may see.
        inert: Settings under which it must equal the source model, or ``None``.
        protocols: Protocols it supports, its default first.
        source: Paper and code.
        title: Name in tables.
        parent: Method whose settings it inherits (a variant by config default).
        frozen_steps: Frozen functions it uses, so that their versions enter the key.
        check: Called at planning with (config, image size); raises ``UsageError`` for settings
            that cannot work at that size.
        target_scale: Takes the config and returns how many times larger than the model's input
            some of its target images must be; planning packs them, or refuses smaller files.
        pictures: Takes the task, the config and a number of images, and returns tensors that show
            how it works on the first of the target images; asked for with ``--record pictures``.
        origin: File that registered it.
    """

    name: str
    version: int
    config: type[Any]
    adapt: Callable[[Any, Any], nn.Module] | None
    online: Callable[[Any, Any], Callable[[Tensor], Tensor]] | None
    supervised: Callable[[Any, Any], nn.Module] | None
    updates: frozenset[str]
    requires: frozenset[str]
    inert: Mapping[str, Any] | None
    protocols: tuple[str, ...]
    source: str
    title: str
    parent: str | None
    frozen_steps: tuple[Callable[..., Any], ...] = field(default=())
    check: Callable[[Any, int], None] | None = None
    target_scale: Callable[[Any], float] | None = None
    pictures: Callable[[Any, Any, int], dict[str, Tensor]] | None = None
    origin: str = "?"

    @property
    def oracle(self) -> bool:
        """Whether it uses target labels."""
        return self.supervised is not None

    @property
    def strictness(self) -> str:
        """The widest class of source-side information it sees: S0 weights, S1 scalars, ..."""
        return max((STRICTNESS[name] for name in self.requires), default="S0")


class SupervisedTask(Protocol):
    """What a labelled reference row may use; it runs in the process that may open masks."""

    @property
    def target_model(self) -> nn.Module:
        """The network trained with labels on the target's ``train`` split, same recipe."""
        ...


METHODS: Registry[MethodSpec] = Registry("methods", __name__)


def register(
    name: str,
    *,
    version: int,
    config: type[Any],
    source: str,
    updates: Iterable[str] = (),
    requires: Iterable[str] = (),
    inert: Mapping[str, Any] | None = None,
    online: Callable[..., Any] | None = None,
    protocols: tuple[str, ...] = ("offline", "transductive"),
    title: str = "",
    parent: str | None = None,
    frozen_steps: tuple[Callable[..., Any], ...] = (),
    check: Callable[[Any, int], None] | None = None,
    target_scale: Callable[[Any], float] | None = None,
    pictures: Callable[[Any, Any, int], dict[str, Tensor]] | None = None,
    supervised: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated ``adapt(task, config)`` as a method.

    With ``supervised=True`` the function gets a :class:`SupervisedTask` and its row is marked
    as an oracle. A decorator may be stacked to register variants of one function.

    Raises:
        UsageError: A name clash, an unknown update, aux field or protocol, or an online method
            whose config has no ``batch_size`` (images per visit).
    """
    checks: list[tuple[Iterable[str], Iterable[str], str]] = [
        (updates, UPDATES, "update"),
        (requires, STRICTNESS, "aux field"),
        (protocols, PROTOCOLS, "protocol"),
    ]
    for given, known, kind in checks:
        for item in given:
            if item not in known:
                raise UsageError(f"method '{name}' names an unknown {kind} '{item}'")

    if online is not None and "batch_size" not in {f.name for f in dataclasses.fields(config)}:
        raise UsageError(f"method '{name}' works online but its config has no batch_size")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        spec = MethodSpec(
            name=name,
            version=version,
            config=config,
            adapt=None if supervised else function,
            online=online,
            supervised=function if supervised else None,
            updates=frozenset(updates),
            requires=frozenset(requires),
            inert=inert,
            protocols=protocols,
            source=source,
            title=title or name,
            parent=parent,
            frozen_steps=frozen_steps,
            check=check,
            target_scale=target_scale,
            pictures=pictures,
            origin=defining_file(function),
        )
        METHODS.add(name, spec, origin=spec.origin)
        return function

    return decorate


def frozen_step(*, version: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a module-level function as a frozen step; raise ``version`` when results change."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.frozen_version = version  # type: ignore[attr-defined]  # a mark on a function
        return function

    return decorate
