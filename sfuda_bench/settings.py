"""Settings of a run: presets, TOML, --set, and where each value came from.

:mod:`sfuda_bench.setting_layers` says how layers are written and which one wins.
"""

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
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import did_you_mean
from sfuda_bench.setting_layers import (
    ANY,
    Layer,
    PairValue,
    Table,
    checked_from,
    merge_method,
    merge_section,
    read_layer,
)
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
        roi_crop_px: Side of the central window that is cut from each image and mask before they
            are resized, px; 0 takes the whole file. A file that is no larger is taken whole.
    """

    image_size: int = setting(256, 32, 2048)
    evaluation_grid: int = setting(512, 32, 4096)
    roi_crop_px: int = setting(0, 0, 16_384, added=True)


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
        selection: The best checkpoint on held-out images of source ``train`` (``source_val``), the
            last one, or the best on the source ``test`` split (``source_test_best``, as released
            code does): nothing is held out then, and the source's own test score is no estimate.
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
    selection: Literal["source_val", "last", "source_test_best"] = "source_val"


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
        methods: Method name to its config, for pairs about which nothing else is said.
        origins: Dotted key to where its value came from; keys not listed are defaults.
        pair_values: Settings of methods that hold for some pairs only, weakest first.
        fallbacks: Dotted key to the pair whose value ``methods`` holds for want of a general one.
    """

    preset: str
    data: DataSettings
    network: NetworkSettings
    source: SourceRecipe
    inference: Inference
    precision: str
    methods: Mapping[str, Any]
    origins: Mapping[str, str]
    pair_values: tuple[PairValue, ...] = ()
    fallbacks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def config_for(self, method: str, pair: object = None) -> Any:
        """Return a method's config for a pair (``source:target``, or what prints like that).

        Raises:
            UsageError: The pair's values and the others exclude each other.
        """
        values = {found.name: found.value for found in self._of_pair(method, pair)}
        if not values:
            return self.methods[method]
        try:
            return dataclasses.replace(self.methods[method], **values)
        except UsageError as error:
            raise UsageError(f"{error.message} (for the pair {pair})", hint=error.hint) from error

    def origin_for(self, key: str, pair: object = None) -> str:
        """Return where the value of ``owner.name`` comes from in a pair."""
        owner, name = key.split(".", 1)
        found = [value.origin for value in self._of_pair(owner, pair) if value.name == name]
        return found[-1] if found else self.origins.get(key, DEFAULT_ORIGIN)

    def with_values(self, overrides: Mapping[str, Mapping[str, Any]], origin: str) -> Settings:
        """Return settings in which methods have other values, in every pair.

        Args:
            overrides: Method to setting to value.
            origin: Where the values come from.

        Raises:
            UsageError: An unknown setting, a value out of its range, or values that exclude each
                other.
        """
        methods, origins = dict(self.methods), dict(self.origins)
        for method, values in overrides.items():
            checked = checked_values(type(methods[method]), values, owner=method)
            methods[method] = dataclasses.replace(methods[method], **checked)
            origins |= {f"{method}.{name}": origin for name in checked}
        changed = {f"{method}.{name}" for method, values in overrides.items() for name in values}
        return dataclasses.replace(
            self,
            methods=methods,
            origins=origins,
            pair_values=tuple(
                value for value in self.pair_values if f"{value.method}.{value.name}" not in changed
            ),
            fallbacks={key: text for key, text in self.fallbacks.items() if key not in changed},
        )

    def with_stand_ins(self, stand_ins: Mapping[str, str]) -> Settings:
        """Return settings in which a pair with a stand-in has the values of the pair it stands for.

        Args:
            stand_ins: Missing domain to the one that takes its place.
        """
        copies = []
        for value in self.pair_values:
            ends = [stand_ins.get(end, end) for end in value.pattern.split(":")]
            if ":".join(ends) != value.pattern:
                origin = f"{value.origin}, stand-in"
                copies.append(dataclasses.replace(value, pattern=":".join(ends), origin=origin))
        return dataclasses.replace(self, pair_values=(*self.pair_values, *copies))

    def _of_pair(self, method: str, pair: object) -> list[PairValue]:
        if pair is None:
            return []
        text = str(pair)
        return [v for v in self.pair_values if v.method == method and v.applies(text)]


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
    _check_values(layers, set(map(METHODS.canonical, methods)))
    origins: dict[str, str] = {}
    network = merge_section("network", layers, "", {}).get("name", DEFAULT_NETWORK)
    sections = {
        name: _build(kind, merge_section(name, layers, network, origins), name, origins)
        for name, kind in _SECTIONS.items()
    }
    merged = {m: merge_method(m, layers, network) for m in map(METHODS.canonical, methods)}
    for found in merged.values():
        origins |= found.origins
    settings = _assemble(
        preset,
        sections,
        {m: _build(METHODS.get(m).config, f.values, m, origins) for m, f in merged.items()},
        origins,
        tuple(value for found in merged.values() for value in found.pairs),
        {key: pair for found in merged.values() for key, pair in found.fallbacks.items()},
    )
    _cross_check(settings)
    return settings


def explain(settings: Settings) -> list[tuple[str, Any, str]]:
    """Return (dotted key, value, origin) of every resolved value, in a fixed order."""
    return [
        (f"{owner}.{name}", value, settings.origins.get(f"{owner}.{name}", DEFAULT_ORIGIN))
        for owner, config in _owners(settings)
        for name, value in dataclasses.asdict(config).items()
    ]


def explain_pairs(
    settings: Settings, pairs: Iterable[object] = ()
) -> dict[str, list[tuple[str, Any, str]]]:
    """Return what depends on the pair: (dotted key, value, origin) by pair.

    Args:
        settings: Resolved settings.
        pairs: Pairs of a plan; those that the settings name are added.

    Returns:
        Nothing when no setting depends on the pair.
    """
    keys = sorted({f"{v.method}.{v.name}" for v in settings.pair_values} | {*settings.fallbacks})
    named = [v.pattern for v in settings.pair_values if ANY not in v.pattern.split(":")]
    found = {}
    for pair in dict.fromkeys([*map(str, pairs), *named]) if keys else ():
        rows = []
        for key in keys:
            method, name = key.split(".", 1)
            value = getattr(settings.config_for(method, pair), name)
            rows.append((key, value, settings.origin_for(key, pair)))
        found[pair] = rows
    return found


def fallback_notes(settings: Settings, pairs: Iterable[object]) -> list[str]:
    """Say which pairs take values that are meant for another pair, one sentence per pair."""
    notes = []
    for pair in map(str, pairs):
        borrowed: dict[str, list[str]] = {}
        for key, owner in settings.fallbacks.items():
            method, name = key.split(".", 1)
            if not any(value.name == name for value in settings._of_pair(method, pair)):
                borrowed.setdefault(owner, []).append(key)
        notes += [
            f"{pair}: {', '.join(keys)} fall back to the values of {owner}"
            for owner, keys in borrowed.items()
        ]
    return notes


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as one JSON-able document; :func:`from_json` reads it back."""
    document: dict[str, Any] = {
        "preset": settings.preset,
        "origins": dict(settings.origins),
        "pair_values": [_plain(value) for value in settings.pair_values],
        "fallbacks": dict(settings.fallbacks),
    }
    methods = document["methods"] = {}
    for owner, config in _owners(settings):
        place = document if owner in _SECTIONS else methods
        place[owner] = _plain(config)
    return document


def _plain(config: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


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
    pair_values = [
        PairValue(**{**found, "value": _checked_value(found)})
        for found in document.get("pair_values", ())
    ]
    return _assemble(
        document["preset"],
        sections,
        configs,
        document["origins"],
        tuple(pair_values),
        document.get("fallbacks", {}),
    )


def _checked_value(found: Mapping[str, Any]) -> Any:
    """Return a pair's value in the type of its field: JSON has no tuples."""
    config = METHODS.get(found["method"]).config
    checked = checked_values(config, {found["name"]: found["value"]}, owner=found["method"])
    return checked[found["name"]]


def _assemble(
    preset: str,
    sections: Mapping[str, Any],
    methods: Mapping[str, Any],
    origins: Mapping[str, str],
    pair_values: tuple[PairValue, ...],
    fallbacks: Mapping[str, str],
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
        pair_values=pair_values,
        fallbacks=fallbacks,
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


# -- reading ---------------------------------------------------------------------------------


def _layer(place: str, tables: Mapping[str, Any]) -> Layer:
    return read_layer(place, tables, _SECTIONS)


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
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
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


# -- checks ----------------------------------------------------------------------------------


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


def _check_values(layers: Sequence[Layer], asked: set[str]) -> None:
    """Check what this run does not use: a mistake must not wait for the run that does.

    That is the methods that are not asked for, and tables of other networks or pairs.
    """
    for layer in layers:
        for table in layer.tables():
            for method, values in table.methods.items():
                if table.where or method not in asked:
                    _check_table(layer, table, method, METHODS.get(method).config, values)
            if table.where:
                for section, values in table.sections.items():
                    _check_table(layer, table, section, _SECTIONS[section], values)


def _check_table(
    layer: Layer, table: Table, owner: str, config: type[Any], values: Mapping[str, Any]
) -> None:
    for name, value in values.items():
        origin = layer.origin(table, owner, name) if table.where else layer.place
        checked_from(config, {name: value}, owner, origin)


def _cross_check(settings: Settings) -> None:
    network, encoder = NETWORKS.get(settings.network.name), settings.network.encoder
    if not settings.inference.pooling_bn and not network.pooling_bn:
        raise UsageError(
            f"inference.pooling_bn = false: network '{network.name}' has no such switch",
            hint="leave inference.pooling_bn at true, or --network dpl_deeplabv3plus",
        )
    if network.encoders and encoder not in network.encoders:
        raise UsageError(
            f"network.encoder = '{encoder}': network '{network.name}' has only "
            f"{', '.join(network.encoders)}",
            hint=f"--encoder {network.encoders[0]}, or --network {DEFAULT_NETWORK}",
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
