"""Settings of a run: presets, TOML, --set, and where each value came from."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import did_you_mean
from sfuda_bench.tunable import BELOW_ONE, build_config, checked_values, setting

_PRESETS = "sfuda_bench.presets"
DEFAULT_ORIGIN = "plug-in default"
DEFAULT_NETWORK = "deeplabv3plus"
_MULTIPLE = 16  # the output stride of the networks


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

    name: str = DEFAULT_NETWORK
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
    beta1: float = setting(0.9, 0.0, BELOW_ONE)
    beta2: float = setting(0.99, 0.0, BELOW_ONE)
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
    """Resolve the settings: plug-in default < preset < config file < flags < ``--set``.

    A variant (``cpr_cbam``) takes its parent's values from each layer unless that layer sets
    the variant itself, or the variant's own default is what sets it apart.

    Args:
        preset: Name of a shipped preset.
        config_file: A TOML file with the sections of a preset.
        overrides: ``key=value`` texts such as ``cpr.radius=6`` or ``source.epochs=20``.
        flags: Dotted key to value from dedicated flags, e.g. ``data.image_size``.
        methods: Methods whose configs are built.

    Raises:
        UsageError: Unknown preset, section, method or key; a value out of its range.
    """
    layers = [_layer(f"preset {preset}", _read_preset(preset))]
    if config_file is not None:
        layers.append(_layer(f"--config {config_file}", _read_toml(config_file)))
    layers.append(_layer("flag", _nest((flags or {}).items())))
    layers.append(_layer("--set", _nest(map(_split_override, overrides))))
    origins: dict[str, str] = {}
    sections = {
        name: _build(kind, _merge_section(name, layers, origins), name, origins)
        for name, kind in _SECTIONS.items()
    }
    configs = {
        method: _build(
            METHODS.get(method).config, _merge_method(method, layers, origins), method, origins
        )
        for method in map(METHODS.canonical, methods)
    }
    _check_others(layers, configs)
    settings = _assemble(preset, sections, configs, origins)
    _cross_check(settings)
    return settings


def explain(settings: Settings) -> list[tuple[str, Any, str]]:
    """Return (dotted key, value, origin) of every resolved value, in a fixed order."""
    return [
        (f"{owner}.{name}", value, settings.origins.get(f"{owner}.{name}", DEFAULT_ORIGIN))
        for owner, config in _owners(settings)
        for name, value in dataclasses.asdict(config).items()
    ]


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as one JSON-able document; :func:`from_json` reads it back."""
    document: dict[str, Any] = {"preset": settings.preset, "origins": dict(settings.origins)}
    methods = document["methods"] = {}
    for owner, config in _owners(settings):
        place = document if owner in _SECTIONS else methods
        place[owner] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config).items()
        }
    return document


def from_json(document: Mapping[str, Any]) -> Settings:
    """Rebuild settings from :func:`to_json`, checking every value again.

    Raises:
        UsageError: A section or method that is not known, or a value out of its range.
    """
    sections = {
        name: build_config(kind, document[name], owner=name) for name, kind in _SECTIONS.items()
    }
    configs = {
        method: build_config(METHODS.get(method).config, values, owner=method)
        for method, values in document["methods"].items()
    }
    return _assemble(document["preset"], sections, configs, document["origins"])


def _assemble(
    preset: str,
    sections: Mapping[str, Any],
    methods: Mapping[str, Any],
    origins: Mapping[str, str],
) -> Settings:
    return Settings(
        preset=preset,
        data=sections["data"],
        network=sections["network"],
        source=sections["source"],
        inference=sections["inference"],
        precision=sections["run"].precision,
        methods=methods,
        origins=origins,
    )


def _owners(settings: Settings) -> list[tuple[str, Any]]:
    """Return every config under the name of its section or method."""
    return [
        ("data", settings.data),
        ("network", settings.network),
        ("source", settings.source),
        ("inference", settings.inference),
        ("run", build_config(RunDefaults, {"precision": settings.precision}, owner="run")),
        *settings.methods.items(),
    ]


# -- layers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """The values that one place sets: sections and methods by name, each a table of values."""

    place: str
    sections: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]

    def origin(self, owner: str, name: str) -> str:
        """Return where this layer sets ``owner.name``, as precisely as a reader can use."""
        if self.place == "flag":
            return "--network" if name == "name" else f"--{name.replace('_', '-')}"
        if self.place.startswith("--config "):
            table = owner if owner in _SECTIONS else f"methods.{owner}"
            return f"{self.place.removeprefix('--config ')}:{table}.{name}"
        return self.place


def _layer(place: str, tables: Mapping[str, Any]) -> _Layer:
    """Check the names of a layer's tables and keys; values are checked when all are merged."""
    _check_known(place, "section", tables, [*_SECTIONS, "methods"])
    _check_tables(place, tables)
    methods = tables.get("methods", {})
    _check_tables(place, {f"methods.{name}": values for name, values in methods.items()})
    sections = {name: tables[name] for name in _SECTIONS if name in tables}
    for name, values in sections.items():
        _check_known(place, f"setting of {name}", values, _field_names(_SECTIONS[name]))
    by_name: dict[str, Mapping[str, Any]] = {}
    for given, values in methods.items():
        _check_method(place, given)
        method = METHODS.canonical(given)
        _check_known(
            place, f"setting of {method}", values, _field_names(METHODS.get(method).config)
        )
        by_name[method] = {**by_name.get(method, {}), **values}
    return _Layer(place, sections, by_name)


def _check_method(place: str, name: str) -> None:
    if name.lower() in (known.lower() for known in METHODS.names()):
        return
    known = METHODS.names()
    # "--set sourc.epochs=3" may mean a section as well as a method.
    near = did_you_mean(name, [*_SECTIONS, *known] if place == "--set" else known)
    raise UsageError(
        f"{place}: unknown method '{name}'{near}; known: {', '.join(known)}",
        hint="sfuda-bench ls methods",
    )


def _check_known(place: str, kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = did_you_mean(name, list(known))
            raise UsageError(
                f"{place}: unknown {kind} '{name}'{near}; known: {', '.join(sorted(known)) or '-'}",
                hint="sfuda-bench plan --explain",
            )


def _check_tables(place: str, tables: Mapping[str, Any]) -> None:
    for name, values in tables.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"{place}: '{name}' must be a table of keys and values", hint=f"[{name}]"
            )


def _field_names(config: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _read_preset(name: str) -> dict[str, Any]:
    known = preset_names()
    if name not in known:
        raise UsageError(
            f"--preset {name}: unknown{did_you_mean(name, known)}; known: {', '.join(known)}",
            hint="settings of your own: --config FILE.toml",
        )
    text = resources.files(_PRESETS).joinpath(f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"--config {path}: {error.strerror}", hint="give a TOML file with a preset's sections"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"--config {path}: not TOML: {error}", hint="give a TOML file with a preset's sections"
        ) from error


def _split_override(text: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    key = key.removeprefix("methods.")  # as the table is called in a TOML file
    owner, dot, name = key.partition(".")
    if not (equals and dot and owner and name and value):
        raise UsageError(
            f"--set {text}: expected owner.key=value", hint="for example --set cpr.radius=6"
        )
    return key, value


def _nest(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn dotted keys into tables; an owner that is no section is a method."""
    nested: dict[str, Any] = {}
    for key, value in flat:
        owner, name = key.split(".", 1)
        tables = nested if owner in _SECTIONS else nested.setdefault("methods", {})
        tables.setdefault(owner, {})[name] = value
    return nested


# -- merging ----------------------------------------------------------------------------------


def _merge_section(name: str, layers: Sequence[_Layer], origins: dict[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.sections.get(name, {}).items():
            merged[key] = value
            origins[f"{name}.{key}"] = layer.origin(name, key)
    return merged


def _merge_method(method: str, layers: Sequence[_Layer], origins: dict[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    parent = METHODS.get(method).parent
    inherited = _inherited(method, parent)
    for layer in layers:
        if parent is not None:
            for key, value in layer.methods.get(parent, {}).items():
                if key in inherited:
                    merged[key] = value
                    where = layer.origin(parent, key)
                    origins[f"{method}.{key}"] = f"{where} (inherited from {parent})"
        for key, value in layer.methods.get(method, {}).items():
            merged[key] = value
            origins[f"{method}.{key}"] = layer.origin(method, key)
    return merged


def _inherited(method: str, parent: str | None) -> set[str]:
    """Return the keys that a variant takes from its parent.

    A key whose default the variant declares anew is what makes it a variant: it stays.
    """
    if parent is None:
        return set()
    own, inherited = (
        {field.name: field.default for field in dataclasses.fields(METHODS.get(name).config)}
        for name in (method, parent)
    )
    return {key for key in own if key in inherited and own[key] == inherited[key]}


def _build(
    kind: type[Any], values: Mapping[str, Any], owner: str, origins: Mapping[str, str]
) -> Any:
    """Build a config; an error about a value says where the value came from."""
    try:
        return build_config(kind, values, owner=owner)
    except UsageError as error:
        key = error.message.partition(" = ")[0]
        if key not in origins:
            raise
        raise UsageError(f"{error.message} (from {origins[key]})", hint=error.hint) from error


def _check_others(layers: Sequence[_Layer], asked: Mapping[str, Any]) -> None:
    """Check what is set for methods that are not asked for: a mistake must not wait for them."""
    for layer in layers:
        for method, values in layer.methods.items():
            if method not in asked:
                _check_values(method, values, layer.place)


def _check_values(method: str, values: Mapping[str, Any], place: str) -> None:
    try:
        checked_values(METHODS.get(method).config, values, owner=method)
    except UsageError as error:
        raise UsageError(f"{error.message} (from {place})", hint=error.hint) from error


def _cross_check(settings: Settings) -> None:
    if not settings.inference.pooling_bn and settings.network.name == DEFAULT_NETWORK:
        raise UsageError(
            f"inference.pooling_bn = false: network '{DEFAULT_NETWORK}' has no such switch",
            hint="leave inference.pooling_bn at true",
        )
    size = settings.data.image_size
    if size % _MULTIPLE:
        nearest = max(32, round(size / _MULTIPLE) * _MULTIPLE)
        where = settings.origins.get("data.image_size", DEFAULT_ORIGIN)
        raise UsageError(
            f"data.image_size = {size}: expected a multiple of {_MULTIPLE}, the network's stride "
            f"(from {where})",
            hint=f"--image-size {nearest}",
        )
