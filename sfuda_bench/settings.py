"""Settings of a run: presets, TOML, --set, and where each value came from."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import did_you_mean
from sfuda_bench.tunable import build_config, checked_values, setting

_PRESETS = "sfuda_bench.presets"
Layer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Sizes.

    Attributes:
        image_size: Side of the model's input, px.
        evaluation_grid: Side of the grid on which predictions are scored, px.
    """

    image_size: int = setting(256, 32, 2048)
    evaluation_grid: int = setting(512, 32, 4096)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network, and what its encoder starts from (none, imagenet or a file)."""

    name: str = "deeplabv3plus"
    encoder: str = "mobilenet_v2"
    encoder_weights: str = "none"


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """How source models are trained.

    Attributes:
        epochs: Upper bound of epochs.
        min_updates: Updates before a plateau may stop the training.
        patience: Validations without a new best that make a plateau; 0 trains to the bound.
        validate_every: Epochs between validations.
        batch_size: Images per step.
        lr: Learning rate of Adam.
        lr_drop_epoch: Last epoch at the full rate.
        lr_drop_factor: The rate after it, as a share.
        beta1: First momentum of Adam.
        beta2: Second momentum of Adam.
        augment: ``none``, ``flip`` or the ``dpl`` set.
        train_scale: Crops are taken from images of this many times the input size.
        validation_fraction: Share of source ``train`` held out to choose the checkpoint.
        selection: The best validated checkpoint, or the last.
    """

    epochs: int = setting(200, 1, 100_000)
    min_updates: int = setting(0, 0, 10_000_000)
    patience: int = setting(0, 0, 100_000)
    validate_every: int = setting(5, 1, 100_000)
    batch_size: int = setting(8, 2, 1024)
    lr: float = setting(1e-3, 0.0, 1.0)
    lr_drop_epoch: int = setting(100, 0, 100_000)
    lr_drop_factor: float = setting(0.2, 0.0, 1.0)
    beta1: float = setting(0.9, 0.0, 1.0)
    beta2: float = setting(0.99, 0.0, 1.0)
    augment: Literal["none", "flip", "dpl"] = "dpl"
    train_scale: float = setting(1.0, 1.0, 4.0)
    validation_fraction: float = setting(0.15, 0.01, 0.5)
    selection: Literal["source_val", "last"] = "source_val"


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the adapted network is run when it is scored.

    Attributes:
        batch_norm: Running statistics, or each image's own.
        dropout: Keep dropout active.
        pooling_bn: Keep the batch norm of the ASPP's pooling branch.
    """

    batch_norm: Literal["running", "per_image"] = "running"
    dropout: bool = False
    pooling_bn: bool = True


@dataclass(frozen=True, kw_only=True)
class RunDefaults:
    """Numerical precision of every forward and backward pass."""

    precision: Literal["float32", "bfloat16", "auto"] = "float32"


_SECTIONS: dict[str, type[Any]] = {
    "data": DataSettings,
    "network": NetworkSettings,
    "source": SourceRecipe,
    "inference": Inference,
    "run": RunDefaults,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run needs to know besides names and folders.

    Attributes:
        preset: Name of the preset.
        data: Sizes.
        network: The network.
        source: The source recipe.
        inference: How adapted networks are run.
        precision: ``float32``, ``bfloat16`` or ``auto``.
        methods: Method name to its config.
        origins: Dotted key to where its value came from; keys not listed are defaults.
    """

    preset: str
    data: DataSettings
    network: NetworkSettings
    source: SourceRecipe
    inference: Inference
    precision: str
    methods: Mapping[str, Any]
    origins: Mapping[str, str]


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    files = resources.files(_PRESETS).iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".toml"))


def resolve(
    preset: str,
    *,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
) -> Settings:
    """Resolve the settings: plug-in default < preset < config file < flags and ``--set``.

    A variant (``cpr_cbam``) takes its parent's values from each layer unless that layer sets
    the variant itself.

    Args:
        preset: Name of a shipped preset.
        config_file: A TOML file with the sections of a preset.
        overrides: ``key=value`` texts such as ``cpr.radius=6`` or ``source.epochs=20``.
        flags: Dotted key to value from dedicated flags, e.g. ``data.image_size``.
        methods: Methods whose configs are built.

    Raises:
        UsageError: Unknown preset, section, method or key; a value out of its range.
    """
    raw: list[Layer] = [(f"preset {preset}", _read_preset(preset))]
    if config_file is not None:
        raw.append((str(config_file), _read_toml(config_file)))
    raw.append(("flag", _nest(dict(flags or {}))))
    raw.append(("--set", _nest(dict(_split_override(text) for text in overrides))))
    layers = [(origin, _checked(origin, layer)) for origin, layer in raw]
    origins: dict[str, str] = {}
    sections = {
        name: build_config(kind, _merge_section(name, layers, origins), owner=name)
        for name, kind in _SECTIONS.items()
    }
    configs = {}
    for method in methods:
        spec = METHODS.get(method)
        values = _merge_method(method, spec.parent, layers, origins)
        configs[method] = build_config(spec.config, values, owner=method)
    settings = Settings(
        preset=preset,
        data=sections["data"],
        network=sections["network"],
        source=sections["source"],
        inference=sections["inference"],
        precision=sections["run"].precision,
        methods=configs,
        origins=origins,
    )
    _cross_check(settings)
    return settings


def explain(settings: Settings) -> list[tuple[str, Any, str]]:
    """Return (dotted key, value, origin) of every resolved value."""
    owners: list[tuple[str, Any]] = [
        ("data", settings.data),
        ("network", settings.network),
        ("source", settings.source),
        ("inference", settings.inference),
        ("run", RunDefaults(precision=settings.precision)),  # type: ignore[arg-type]  # checked
        *sorted(settings.methods.items()),
    ]
    return [
        (key, value, settings.origins.get(key, "plug-in default"))
        for owner, config in owners
        for name, value in dataclasses.asdict(config).items()
        for key in [f"{owner}.{name}"]
    ]


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        known = ", ".join(preset_names())
        nearest = did_you_mean(name, preset_names())
        raise UsageError(f"--preset {name}: unknown{nearest}; known: {known}")
    text = resources.files(_PRESETS).joinpath(f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: {error}", hint="start from a preset") from error


def _split_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("methods.")  # as the tables of a TOML file are called
    if not equals or "." not in key:
        raise UsageError(
            f"--set {text}: expected owner.key=value", hint="for example --set cpr.radius=6"
        )
    return key, value.strip()


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into sections; an owner that is no section is a method."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        owner, name = key.split(".", 1)
        place = nested if owner in _SECTIONS else nested.setdefault("methods", {})
        place.setdefault(owner, {})[name] = value
    return nested


def _checked(origin: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer with canonical method names, every name and value checked on its own."""
    known = [*_SECTIONS, "methods"]
    for section, values in layer.items():
        if section not in known:
            nearest = did_you_mean(section, known)
            raise UsageError(
                f"{origin}: unknown section [{section}]{nearest}; known: {', '.join(known)}"
            )
        _check_table(values, section, origin)
        if section in _SECTIONS:
            checked_values(_SECTIONS[section], values, owner=section)
    methods: dict[str, dict[str, Any]] = {}
    for given, values in layer.get("methods", {}).items():
        method = _method_name(given, origin)
        _check_table(values, f"methods.{given}", origin)
        checked_values(METHODS.get(method).config, values, owner=method)
        methods.setdefault(method, {}).update(values)
    return {**layer, "methods": methods}


def _check_table(values: Any, name: str, origin: str) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{origin}: {name} must be a table of keys and values")


def _method_name(given: str, origin: str) -> str:
    known = METHODS.names()
    if given.lower() in known:
        return given.lower()
    nearest = did_you_mean(given, [*known, *_SECTIONS])
    raise UsageError(
        f"{origin}: '{given}' is neither a method nor a section{nearest}; "
        f"known: {', '.join([*_SECTIONS, *known])}",
        hint="sfuda-bench ls methods",
    )


def _merge_section(name: str, layers: Sequence[Layer], origins: dict[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for origin, layer in layers:
        for key, value in layer.get(name, {}).items():
            merged[key] = value
            origins[f"{name}.{key}"] = origin
    return merged


def _merge_method(
    method: str, parent: str | None, layers: Sequence[Layer], origins: dict[str, str]
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    names = {field.name for field in dataclasses.fields(METHODS.get(method).config)}
    for origin, layer in layers:
        tables = layer.get("methods", {})
        for owner in (parent, method):
            if owner is None:
                continue
            suffix = "" if owner == method else f" (inherited from {owner})"
            for key, value in tables.get(owner, {}).items():
                if owner == parent and (key not in names or _own_default(method, owner, key)):
                    continue
                merged[key] = value
                origins[f"{method}.{key}"] = f"{origin}{suffix}"
    return merged


def _own_default(method: str, parent: str, key: str) -> bool:
    """Whether the variant declares its own default for ``key``: that is what makes it a variant."""
    own, inherited = METHODS.get(method).config, METHODS.get(parent).config
    defaults = [
        {field.name: field.default for field in dataclasses.fields(kind)}
        for kind in (own, inherited)
    ]
    return bool(defaults[0].get(key) != defaults[1].get(key))


def _cross_check(settings: Settings) -> None:
    if settings.data.image_size % 16:
        size = settings.data.image_size
        raise UsageError(
            f"data.image_size = {size}: the network's stride needs a multiple of 16",
            hint=f"--image-size {max(32, round(size / 16) * 16)}",
        )
