"""Settings: precedence, inheritance, origins, and what every bad value says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.settings import Settings, explain, from_json, preset_names, resolve, to_json


def origins(settings: Settings) -> dict[str, tuple[object, str]]:
    return {key: (value, origin) for key, value, origin in explain(settings)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[data]\nimage_size = 160\n[source]\nepochs = 7\n[methods.cpr]\nradius = 5\nbeta = 3\n"
    )
    return path


# -- precedence, origins ----------------------------------------------------------------------


def test_each_layer_overrides_the_one_before_it(config: Path) -> None:
    """Plug-in default < preset < config file < flag < --set."""

    def sizes(**more: object) -> list[object]:
        settings = resolve("quick", methods=["cpr"], **more)  # type: ignore[arg-type]  # a test's shorthand
        found = origins(settings)
        return [settings.data.image_size, found["data.image_size"][1]]

    assert sizes() == [128, "preset quick"]
    assert sizes(config_file=config) == [160, f"{config}:data.image_size"]
    flags = {"data.image_size": 192}
    assert sizes(config_file=config, flags=flags) == [192, "--image-size"]
    overrides = ["data.image_size=224"]
    assert sizes(config_file=config, flags=flags, overrides=overrides) == [224, "--set"]


def test_a_method_value_goes_through_the_same_layers(config: Path) -> None:
    plain = resolve("quick", methods=["cpr"])
    assert (plain.methods["cpr"].radius, plain.methods["cpr"].beta) == (3, 2.0)
    filed = resolve("quick", methods=["cpr"], config_file=config)
    assert (filed.methods["cpr"].radius, filed.methods["cpr"].beta) == (5, 3.0)
    both = resolve("quick", methods=["cpr"], config_file=config, overrides=["cpr.radius=6"])
    assert (both.methods["cpr"].radius, both.methods["cpr"].beta) == (6, 3.0)


def test_every_value_has_an_origin(config: Path) -> None:
    settings = resolve(
        "quick",
        config_file=config,
        flags={"network.encoder": "resnet18"},
        overrides=["cpr.low=0.3"],
        methods=["cpr", "cpr_cbam"],
    )
    found = origins(settings)
    assert found["network.encoder"] == ("resnet18", "--encoder")
    assert found["network.name"] == ("deeplabv3plus", "preset quick")
    assert found["source.epochs"] == (7, f"{config}:source.epochs")
    assert found["source.patience"] == (4, "preset quick")
    assert found["cpr.low"] == (0.3, "--set")
    assert found["cpr_cbam.low"] == (0.3, "--set (inherited from cpr)")
    assert found["cpr_cbam.attention"] == (True, "plug-in default")
    assert found["run.precision"] == ("float32", "plug-in default")


def test_explain_lists_every_field_of_every_config() -> None:
    settings = resolve("small", methods=["cpr"])
    keys = [key for key, _, _ in explain(settings)]
    assert len(keys) == len(set(keys))
    for name in METHODS.get("cpr").config.__dataclass_fields__:
        assert f"cpr.{name}" in keys


def test_the_last_of_two_overrides_of_one_key_counts() -> None:
    settings = resolve("quick", methods=["cpr"], overrides=["cpr.radius=2", "cpr.radius=5"])
    assert settings.methods["cpr"].radius == 5


# -- variants ---------------------------------------------------------------------------------


def test_a_variant_inherits_what_its_parent_is_given() -> None:
    settings = resolve("quick", methods=["cpr", "cpr_cbam"], overrides=["cpr.radius=6"])
    assert settings.methods["cpr"].radius == settings.methods["cpr_cbam"].radius == 6


def test_a_variant_may_be_set_alone() -> None:
    settings = resolve("quick", methods=["cpr", "cpr_cbam"], overrides=["cpr_cbam.radius=6"])
    assert settings.methods["cpr"].radius == 3
    assert settings.methods["cpr_cbam"].radius == 6


def test_within_a_layer_the_variant_beats_its_parent_in_any_order() -> None:
    for order in ([0, 1], [1, 0]):
        texts = ["cpr.radius=5", "cpr_cbam.radius=6"]
        settings = resolve("quick", methods=["cpr_cbam"], overrides=[texts[i] for i in order])
        assert settings.methods["cpr_cbam"].radius == 6


def test_what_makes_a_variant_is_not_inherited() -> None:
    """``cpr.attention=false`` says nothing about the variant that exists for its attention."""
    settings = resolve("quick", methods=["cpr", "cpr_cbam"], overrides=["cpr.attention=false"])
    assert settings.methods["cpr_cbam"].attention is True


def test_each_variant_differs_from_its_parent_under_every_preset() -> None:
    for preset in preset_names():
        for name in METHODS.names():
            parent = METHODS.get(name).parent
            if parent is None or METHODS.get(name).protocols != METHODS.get(parent).protocols:
                continue
            found = resolve(preset, methods=[name, parent]).methods
            own, inherited = vars(found[name]), vars(found[parent])
            assert own != inherited, f"{name} equals {parent} under {preset}"


# -- presets ----------------------------------------------------------------------------------


def test_the_documented_presets_are_shipped() -> None:
    assert {"quick", "small", "reproduction", "paper"} <= set(preset_names())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves_for_every_method_and_suits_its_image_size(preset: str) -> None:
    settings = resolve(preset, methods=METHODS.names())
    assert set(settings.methods) == set(METHODS.names())
    for name, config in settings.methods.items():
        check = METHODS.get(name).check
        if check is not None:
            check(config, settings.data.image_size)


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_keeps_every_pixel_by_a_fixed_uncertainty_threshold(preset: str) -> None:
    """The default network's dropout moves so little that 0.05 would filter nothing."""
    for config in resolve(preset, methods=["dpl", "cpr", "cpr_cbam"]).methods.values():
        assert config.uncertainty_quantile is not None


# -- spelling ---------------------------------------------------------------------------------


def test_method_names_ignore_case_and_are_never_dropped(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[methods.CPR]\nradius = 5\n")
    assert resolve("quick", methods=["cpr"], config_file=path).methods["cpr"].radius == 5
    assert resolve("quick", methods=["cpr"], overrides=["Cpr.radius=6"]).methods["cpr"].radius == 6


def test_set_also_takes_the_name_of_a_toml_table() -> None:
    found = resolve("quick", methods=["cpr"], overrides=["methods.cpr.radius = 6"])
    assert found.methods["cpr"].radius == 6


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("cpr.uncertainty_quantile=none", "uncertainty_quantile", None),
        ("cpr.uncertainty_quantile=0.8", "uncertainty_quantile", 0.8),
        ("cpr.iterations=1e1", "iterations", 10),
        ("cpr.shuffle=off", "shuffle", False),
        ("cpr.shuffle=Yes", "shuffle", True),
        ("cpr.lr=1e-3", "lr", 1e-3),
        ("cpr.border=full", "border", "full"),
    ],
)
def test_texts_become_the_type_of_the_field(text: str, key: str, value: object) -> None:
    found = getattr(resolve("paper", methods=["cpr"], overrides=[text]).methods["cpr"], key)
    assert found == value
    assert type(found) is type(value)


# -- bad values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cpr.radios=3", r"--set: unknown setting of cpr 'radios'.*did you mean 'radius'"),
        ("crp.radius=3", r"--set: unknown method 'crp'.*did you mean 'cpr'"),
        ("sorce.epochs=3", r"--set: unknown .*'sorce'.*did you mean 'source'"),
        ("source.epoch=3", r"--set: unknown setting of source 'epoch'.*did you mean 'epochs'"),
        (
            "data.imagesize=3",
            r"--set: unknown setting of data 'imagesize'.*did you mean 'image_size'",
        ),
        ("cpr.radius=three", r"cpr\.radius = 'three': expected int"),
        ("cpr.radius=2.5", r"cpr\.radius = '2.5': expected int"),
        ("cpr.radius=", r"--set cpr\.radius=: expected owner\.key=value"),
        ("cpr.radius=inf", r"cpr\.radius = 'inf': expected int"),
        ("cpr.radius=nan", r"cpr\.radius = 'nan': expected int"),
        ("cpr.radius=1e999", r"cpr\.radius = '1e999': expected int"),
        ("cpr.radius=1", r"cpr\.radius = 1 is outside \[2, 12\]"),
        ("cpr.radius=99", r"cpr\.radius = 99 is outside \[2, 12\]"),
        ("cpr.radius=none", r"cpr\.radius = 'none': expected int"),
        ("cpr.beta=nan", r"cpr\.beta = nan is not a finite number"),
        ("cpr.beta=-inf", r"cpr\.beta = -inf is not a finite number"),
        ("cpr.beta=big", r"cpr\.beta = 'big': expected float"),
        ("cpr.uncertainty_quantile=1.5", r"cpr\.uncertainty_quantile = 1\.5 is outside"),
        ("cpr.uncertainty_quantile=nan", r"cpr\.uncertainty_quantile = nan is not a finite"),
        ("cpr.shuffle=maybe", r"cpr\.shuffle = 'maybe': expected bool"),
        ("cpr.border=offical", r"cpr\.border = 'offical'.*did you mean 'official'"),
        ("cpr.low=0.9", r"cpr\.low = 0\.9 exceeds cpr\.high = 0\.85"),
        ("cpr.high=0.1", r"cpr\.low = 0\.4 exceeds cpr\.high = 0\.1"),
        ("data.image_size=200", r"data\.image_size = 200.*multiple of 16"),
        ("data.image_size=0", r"data\.image_size = 0 is outside"),
        ("data.image_size=99999", r"data\.image_size = 99999 is outside"),
        ("source.augment=flop", r"source\.augment = 'flop'.*did you mean 'flip'"),
        ("source.validation_fraction=0", r"source\.validation_fraction = 0\.0 is outside"),
        ("run.precision=float16", r"run\.precision = 'float16' is not one of"),
        ("inference.dropout=2", r"inference\.dropout = '2': expected bool"),
        ("dpl.lr=x", r"dpl\.lr = 'x': expected float \(from --set\)"),
        ("radius=3", r"--set radius=3: expected owner\.key=value"),
        ("cpr.radius", r"--set cpr\.radius: expected owner\.key=value"),
        ("methods.cpr=3", r"--set methods\.cpr=3: expected owner\.key=value"),
        ("", r"--set : expected owner\.key=value"),
    ],
)
def test_a_bad_override_is_refused_and_named(override: str, says: str) -> None:
    """Also for a method that is not asked for: ``dpl`` is not in the list here."""
    with pytest.raises(UsageError, match=says):
        resolve("quick", methods=["cpr"], overrides=[override])


def test_low_above_high_is_found_across_layers_and_only_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[methods.cpr]\nlow = 0.9\n")
    with pytest.raises(UsageError, match=r"low = 0\.9 exceeds"):
        resolve("quick", methods=["cpr"], config_file=path)
    found = resolve("quick", methods=["cpr"], config_file=path, overrides=["cpr.high=0.95"])
    assert (found.methods["cpr"].low, found.methods["cpr"].high) == (0.9, 0.95)


def test_the_hint_for_an_image_size_names_a_size_that_works() -> None:
    with pytest.raises(UsageError) as caught:
        resolve("quick", flags={"data.image_size": 250})
    assert caught.value.hint == "--image-size 256"
    assert resolve("quick", flags={"data.image_size": 256}).data.image_size == 256


@pytest.mark.parametrize("name", ["smal", "reproducton", "", "../quick", "Quick"])
def test_an_unknown_preset_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(UsageError, match="--preset") as caught:
        resolve(name)
    assert "known: paper, quick, reproduction, small" in caught.value.message
    if name == "smal":
        assert "did you mean 'small'?" in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data\n", "mine.toml"),
        ("data = 5\n", "mine.toml: 'data' must be a table"),
        ("[[data]]\nimage_size = 64\n", "mine.toml: 'data' must be a table"),
        ("methods = 5\n", "mine.toml: 'methods' must be a table"),
        ("[methods]\ncpr = 5\n", "mine.toml: 'methods.cpr' must be a table"),
        ("[sorce]\nepochs = 1\n", r"mine.toml: unknown section 'sorce'.*'source'"),
        ("[methods.crp]\nradius = 1\n", "mine.toml: unknown method 'crp'.*did you mean 'cpr'"),
        ("[methods.cpr]\nradius = true\n", r"cpr\.radius = True: expected int"),
        ("[methods.cpr]\nradius = [3]\n", r"cpr\.radius = \[3\]: expected int"),
        ("[methods.cpr]\nbeta = nan\n", r"cpr\.beta = nan is not a finite number"),
        ("[network]\nencoder = 5\n", r"network\.encoder = 5: expected str"),
        ("[data.image_size]\nx = 1\n", r"data\.image_size = .*expected int"),
    ],
)
def test_a_bad_config_file_is_refused_and_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        resolve("quick", methods=["cpr"], config_file=path)


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    for name in ("missing.toml", "latin.toml", "."):
        with pytest.raises(UsageError, match="--config"):
            resolve("quick", config_file=tmp_path / name)


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'cpr_cbam'"):
        resolve("quick", methods=["cpr_cbm"])


def test_an_error_says_where_the_value_came_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[methods.cpr]\nradius = 99\n")
    for methods in (["cpr"], ["cpr_cbam"], ["dpl"]):
        with pytest.raises(UsageError, match=r"radius = 99 is outside .*\(from .*mine\.toml"):
            resolve("quick", methods=methods, config_file=path)


# -- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
def test_settings_survive_the_way_through_json(preset: str) -> None:
    settings = resolve(preset, methods=METHODS.names(), overrides=["cpr.radius=2"])
    assert from_json(json.loads(json.dumps(to_json(settings)))) == settings
