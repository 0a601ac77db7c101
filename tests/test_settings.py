"""Settings: precedence, inheritance, origins, and what every bad value says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.setting_layers import check_pair_names
from sfuda_bench.settings import (
    Settings,
    explain,
    explain_pairs,
    fallback_notes,
    from_json,
    preset_names,
    resolve,
    to_json,
)


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
    documented = {"quick", "small", "reproduction", "paper", "official", "dpl-official"}
    assert documented | {"dpl-clean"} == set(preset_names())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves_for_every_method_and_suits_its_image_size(preset: str) -> None:
    settings = resolve(preset, methods=METHODS.names())
    assert set(settings.methods) == set(METHODS.names())
    for name, config in settings.methods.items():
        check = METHODS.get(name).check
        if check is not None:
            check(config, settings.data.image_size)


@pytest.mark.parametrize("preset", preset_names())
def test_the_quantile_replaces_eta_on_the_network_whose_dropout_hardly_moves(preset: str) -> None:
    """There 0.05 would filter nothing; on DPL's own network it is what the code uses."""
    for network, quantile in (("deeplabv3plus", 0.9), ("dpl_deeplabv3plus", None)):
        flags = {"network.name": network}
        found = resolve(preset, flags=flags, methods=["dpl", "cpr", "cpr_cbam"])
        assert {c.uncertainty_quantile for c in found.methods.values()} == {quantile}


D1_D2, D4_D1 = "drishti_gs:rim_one_r3", "refuge_val:drishti_gs"
NOT_STATED_IN_ANY = {
    "passes": 100,
    "temperature": 2.0,
    "uncertainty_threshold": 0.05,
    "initial_threshold": 0.75,
    "mc_bn": "running",
    "mc_batch": 4,
    "mc_dropout": True,
    "head_norm": True,
    "head_gain": 4.0,
    "radius": 4,
    "head_lr": 3e-2,
    "head_epochs": 16,
    "beta": 2.0,
    "calibrate": "max",
    "threshold": 0.75,
    "low": 0.4,
    "high": 0.85,
    "lr": 3e-4,
    "beta1": 0.9,
    "beta2": 0.99,
    "attention_at": "context",
    "initial_weights": "stage2",
    "bn_stats": "target",
}
OFFICIAL = {
    "similarity_reduce": "mean",
    "neighbourhood": "lt",
    "border": "official",
    "head_batch": 8,
    "head_shuffle": False,
    "encoder_bn": "adapt",
    "refine_scale": 800 / 512,
    "iterations": 4,
    "epochs": 10,
    "batch_size": 8,
    "focal_exponent": 2.0,
    "loss_reduction": "mean",
    "shuffle": False,
    "augment": "dpl",
    "class_mask": "source",
}
REPRODUCTION = {
    "similarity_reduce": "mean",
    "neighbourhood": "le",
    "border": "full",
    "head_batch": 4,
    "head_shuffle": True,
    "encoder_bn": "adapt",
    "refine_scale": 1.0,
    "iterations": 4,
    "epochs": 20,
    "batch_size": 4,
    "focal_exponent": 0.0,
    "loss_reduction": "mean",
    "shuffle": True,
    "augment": "report",
    "class_mask": "source",
}
PAPER = {
    **REPRODUCTION,
    "similarity_reduce": "sum",
    "encoder_bn": "frozen",
    "loss_reduction": "sum",
    "class_mask": "target",
}
CPR_ROWS = [
    ("official", D1_D2, OFFICIAL),
    ("official", D4_D1, {**OFFICIAL, "iterations": 32, "epochs": 20}),
    ("official", "refuge_train:drishti_gs", OFFICIAL),
    ("reproduction", D1_D2, REPRODUCTION),
    ("reproduction", D4_D1, REPRODUCTION),
    ("paper", D1_D2, PAPER),
    ("paper", D4_D1, PAPER),
]


@pytest.mark.parametrize(("preset", "pair", "rows"), CPR_ROWS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("method", ["cpr", "cpr_cbam"])
def test_a_preset_has_every_row_of_the_table_of_presets(
    preset: str, pair: str, rows: dict[str, object], method: str
) -> None:
    found = vars(resolve(preset, methods=["cpr", "cpr_cbam"]).config_for(method, pair))
    assert {key: found[key] for key in NOT_STATED_IN_ANY} == NOT_STATED_IN_ANY
    assert {key: found[key] for key in rows} == rows


@pytest.mark.parametrize(
    ("preset", "roi_crop_px", "train_scale", "selection"),
    [
        ("official", 0, 800 / 512, "source_test_best"),
        ("dpl-official", 0, 800 / 512, "source_test_best"),
        ("dpl-clean", 0, 800 / 512, "source_test_best"),
        ("reproduction", 512, 1.0, "source_val"),
        ("paper", 512, 1.0, "source_val"),
    ],
)
def test_a_preset_has_the_images_and_the_source_recipe_of_its_text(
    preset: str, roi_crop_px: int, train_scale: float, selection: str
) -> None:
    found = resolve(preset)
    assert (found.data.image_size, found.data.roi_crop_px) == (512, roi_crop_px)
    assert found.network.name == "dpl_deeplabv3plus"
    recipe = found.source
    assert (recipe.train_scale, recipe.selection) == (train_scale, selection)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.augment) == (200, 8, 1e-3, "dpl")
    assert (recipe.lr_drop_epoch, recipe.lr_drop_factor, recipe.validate_every) == (100, 0.2, 5)


@pytest.mark.parametrize(
    ("preset", "mc_bn", "inference"),
    [
        ("dpl-official", "batch", ("per_image", True, False)),
        ("dpl-clean", "running", ("running", False, True)),
    ],
)
def test_the_two_dpl_presets_differ_in_batch_norm_and_dropout_alone(
    preset: str, mc_bn: str, inference: tuple[str, bool, bool]
) -> None:
    found = resolve(preset, methods=["dpl"])
    dpl = found.methods["dpl"]
    assert dpl.mc_bn == mc_bn
    assert tuple(vars(found.inference).values()) == inference
    assert (dpl.passes, dpl.mc_batch, dpl.lr, dpl.epochs, dpl.batch_size) == (10, 8, 2e-3, 2, 8)
    assert (dpl.shuffle, dpl.augment, dpl.initial_threshold) == (False, "dpl", 0.75)
    other = resolve("dpl-clean", methods=["dpl"])
    assert (found.source, found.data, found.network) == (other.source, other.data, other.network)
    assert {**vars(dpl), "mc_bn": ""} == {**vars(other.methods["dpl"]), "mc_bn": ""}


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_also_resolves_off_its_own_network(preset: str) -> None:
    """``dpl-official`` switches off a batch norm that only DPL's network can switch off."""
    found = resolve(preset, flags={"network.name": "deeplabv3plus"}, methods=METHODS.names())
    assert found.inference.pooling_bn is True


def test_official_says_where_each_value_of_both_published_pairs_comes_from() -> None:
    settings = resolve("official", methods=["cpr", "cpr_cbam"])
    found = explain_pairs(settings, ["refuge_train:drishti_gs"])
    assert list(found) == ["refuge_train:drishti_gs", D1_D2, D4_D1]
    rows = {pair: {key: (value, origin) for key, value, origin in found[pair]} for pair in found}
    assert rows[D4_D1]["cpr.iterations"] == (32, f"preset official [pair {D4_D1}]")
    assert rows[D1_D2]["cpr.epochs"] == (10, f"preset official [pair {D1_D2}]")
    inherited = f"preset official [pair {D4_D1}] (inherited from cpr)"
    assert rows[D4_D1]["cpr_cbam.epochs"] == (20, inherited)
    borrowed = f"preset official [pair {D1_D2}], fallback for other pairs"
    assert rows["refuge_train:drishti_gs"]["cpr.epochs"] == (10, borrowed)


def test_a_pair_that_borrows_the_values_of_another_is_named() -> None:
    settings = resolve("official", methods=["cpr"])
    assert fallback_notes(settings, [D1_D2, D4_D1]) == []
    (note,) = fallback_notes(settings, [D1_D2, "refuge_train:drishti_gs"])
    assert note == (
        "refuge_train:drishti_gs: cpr.iterations, cpr.epochs fall back to the values of "
        f"{D1_D2} (preset official)"
    )
    asked = resolve("official", methods=["cpr"], overrides=["cpr.epochs=3", "cpr.iterations=2"])
    assert fallback_notes(asked, ["refuge_train:drishti_gs"]) == []
    assert explain_pairs(asked, ["refuge_train:drishti_gs"]) == {}


# -- values that hold for some pairs or one network --------------------------------------------


CONDITIONAL = """
[methods.cpr]
epochs = 1
[pair."*:drishti_gs".methods.cpr]
epochs = 2
radius = 5
[pair."Domain4->Domain1".methods.cpr]
epochs = 3
[pair."*:*".methods.cpr]
beta = 7
[on_network.deeplabv3plus]
inference.dropout = true
[on_network.deeplabv3plus.methods.cpr]
low = 0.1
epochs = 9
[on_network.dpl_deeplabv3plus.methods.cpr]
low = 0.2
"""


@pytest.fixture
def conditional(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.toml"
    path.write_text(CONDITIONAL)
    return path


def test_within_a_file_the_table_that_names_more_wins(conditional: Path) -> None:
    """Every run < this network < any pair < one end of the pair < the pair."""
    settings = resolve("quick", methods=["cpr"], config_file=conditional)

    def values(pair: str | None) -> tuple[object, ...]:
        config = settings.config_for("cpr", pair)
        return (config.epochs, config.radius, config.beta, config.low)

    assert values(None) == (9, 3, 2.0, 0.1)
    assert values("toy_a:toy_b") == (9, 3, 7.0, 0.1)
    assert values("refuge_train:drishti_gs") == (2, 5, 7.0, 0.1)
    assert values(D4_D1) == (3, 5, 7.0, 0.1)
    assert settings.inference.dropout is True
    other = resolve("quick", methods=["cpr"], config_file=conditional,
                    flags={"network.name": "dpl_deeplabv3plus"})  # fmt: skip
    assert (other.methods["cpr"].low, other.methods["cpr"].epochs) == (0.2, 1)
    assert other.inference.dropout is False


def test_a_later_layer_beats_the_conditional_tables_of_an_earlier_one(conditional: Path) -> None:
    settings = resolve(
        "quick", methods=["cpr"], config_file=conditional, overrides=["cpr.epochs=8"]
    )
    assert settings.config_for("cpr", D4_D1).epochs == 8
    assert settings.config_for("cpr", D4_D1).radius == 5
    assert settings.origin_for("cpr.epochs", D4_D1) == "--set"


def test_a_conditional_value_says_which_table_it_comes_from(conditional: Path) -> None:
    settings = resolve("quick", methods=["cpr", "cpr_cbam"], config_file=conditional)
    where = f'{conditional}:pair."refuge_val:drishti_gs".methods.cpr.epochs'
    assert settings.origin_for("cpr.epochs", D4_D1) == where
    assert settings.origin_for("cpr_cbam.epochs", D4_D1) == f"{where} (inherited from cpr)"
    found = origins(settings)
    assert found["cpr.low"] == (0.1, f"{conditional}:on_network.deeplabv3plus.methods.cpr.low")
    assert (
        found["inference.dropout"][1] == f"{conditional}:on_network.deeplabv3plus.inference.dropout"
    )


def test_a_variant_that_a_layer_sets_itself_is_not_moved_by_its_parents_pairs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "v.toml"
    path.write_text('[methods.cpr_cbam]\nepochs = 6\n[pair."*:*".methods.cpr]\nepochs = 2\n')
    settings = resolve("quick", methods=["cpr", "cpr_cbam"], config_file=path)
    assert settings.config_for("cpr", D1_D2).epochs == 2
    assert settings.config_for("cpr_cbam", D1_D2).epochs == 6


def test_values_of_a_study_hold_in_every_pair() -> None:
    settings = resolve("official", methods=["cpr"])
    moved = settings.with_values({"cpr": {"iterations": 8}}, "study s")
    assert moved.config_for("cpr", D4_D1).iterations == 8
    assert moved.config_for("cpr", D4_D1).epochs == 20
    assert moved.origin_for("cpr.iterations", D4_D1) == "study s"
    assert settings.config_for("cpr", D4_D1).iterations == 32
    (note,) = fallback_notes(moved, ["a:b"])
    assert "cpr.epochs" in note and "cpr.iterations" not in note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[pair."drishti_gs".methods.cpr]\nepochs=1', "pair 'drishti_gs': expected source:target"),
        ('[pair."a:".methods.cpr]\nepochs=1', "pair 'a:': expected source:target"),
        ('[pair."a:a".methods.cpr]\nepochs=1', "two different domains"),
        ('[pair."refuge:drishti_gs".methods.cpr]\nepochs=1', "'refuge' is ambiguous"),
        ('[pair."a:b".source]\nepochs=1', "unknown table 'source'; known: methods"),
        ('[pair."a:b".methods.crp]\nepochs=1', r"a:b.*unknown method 'crp'.*did you mean 'cpr'"),
        ('[pair."a:b".methods.cpr]\nepoch=1', r"a:b.*unknown setting of cpr 'epoch'.*'epochs'"),
        ('[pair."a:b".methods.cpr]\nradius=99', r"radius = 99 is outside.*from .*pair..a:b"),
        ('[pair."a:b".methods.dpl]\nlr="x"', r"dpl\.lr = 'x': expected float.*from .*pair"),
        ('[pair."a:b"]\nmethods=3', "must be a table"),
        ('[pair]\n"a:b"=3', "must be a table"),
        ("pair = 3", "'pair' must be a table"),
        ('[pair]\nfallback="a:b"', r"fallback = 'a:b': there is no table"),
        ("[pair]\nfallback=3", "expected source:target"),
        (
            '[pair."Domain1:a".methods.cpr]\nepochs=1\n[pair."drishti_gs:a".methods.cpr]\nepochs=1',
            "a second table for drishti_gs:a",
        ),
        ("[on_network.deeplab.methods.cpr]\nepochs=1", "unknown network 'deeplab'.*did you mean"),
        ('[on_network.deeplabv3plus.network]\nname="x"', "cannot depend on the network"),
        ("[on_network.deeplabv3plus.sorce]\nepochs=1", "unknown table 'sorce'.*'source'"),
        ("[on_network.dpl_deeplabv3plus.source]\nepochs=0", r"source\.epochs = 0 is outside"),
        ("[on_network.dpl_deeplabv3plus.methods.cpr]\nradius=99", "radius = 99 is outside"),
    ],
)
def test_a_bad_conditional_table_is_refused_and_named(tmp_path: Path, text: str, says: str) -> None:
    """Also one that this run would not use: another network, another method, another pair."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        resolve("quick", methods=["cpr"], config_file=path)
    assert "mine.toml" in caught.value.message


def test_values_that_exclude_each_other_in_one_pair_name_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[pair."a:b".methods.cpr]\nlow = 0.9\n')
    settings = resolve("quick", methods=["cpr"], config_file=path)
    with pytest.raises(UsageError, match=r"low = 0\.9 exceeds .*for the pair a:b"):
        settings.config_for("cpr", "a:b")


def test_a_pair_of_domains_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[pair."drishti_sg:mine".methods.cpr]\nepochs = 1\n')
    values = resolve("quick", methods=["cpr"], config_file=path).pair_values
    with pytest.raises(UsageError, match=r"mine\.toml.*no domain 'drishti_sg' .*'drishti_gs'"):
        check_pair_names(values, ["mine", "other"])
    path.write_text('[pair."drishti_gs:mine".methods.cpr]\nepochs = 1\n')
    values = resolve("quick", methods=["cpr"], config_file=path).pair_values
    check_pair_names(values, ["mine", "other"])


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
    assert "paper, quick, reproduction, small" in caught.value.message
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
