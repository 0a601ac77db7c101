"""What the keys depend on, what they do not, and what is computed again because of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.methods import METHODS
from sfuda_bench.running.code_digest import code_digest
from sfuda_bench.running.keys import canonical_json, derive_seed, digest, model_sha256


def cell_of(bench: Any, method: str = "cpr", *overrides: str, **request: Any) -> Any:
    return bench.plan(method, overrides=overrides, **request).cells[0]


# -- digests ------------------------------------------------------------------------------------


def test_a_digest_ignores_the_order_of_keys_and_refuses_nan() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert canonical_json({"b": 1, "a": None}) == '{"a":null,"b":1}'
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_a_derived_seed_depends_on_every_part_and_fits_a_generator() -> None:
    seeds = {derive_seed("k", "order", 1), derive_seed("k", "order", 2), derive_seed("k", "x", 1)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_digest_of_a_model_sees_names_types_shapes_bytes_and_buffers() -> None:
    import torch

    state = {"w": torch.zeros(2, 3), "running_mean": torch.zeros(3)}
    digests = {
        model_sha256(state),
        model_sha256({"v": state["w"], "running_mean": state["running_mean"]}),
        model_sha256({**state, "w": torch.zeros(3, 2)}),
        model_sha256({**state, "w": torch.zeros(2, 3, dtype=torch.float64)}),
        model_sha256({**state, "running_mean": torch.ones(3)}),
    }
    assert len(digests) == 5
    assert model_sha256(state) == model_sha256(dict(reversed(state.items())))
    strided = torch.arange(6.0).view(3, 2).T
    assert model_sha256({"w": strided}) == model_sha256({"w": strided.contiguous()})


# -- code digest --------------------------------------------------------------------------------

_CODE = '''"""A module."""
from sfuda_bench.blocks.losses import masked_bce
def f(x):
    """Say something."""
    return masked_bce(x, x, x) + 1
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "method.py"
    path.write_text(_CODE)
    return path


@pytest.mark.parametrize(
    "changed",
    [
        _CODE + "# a comment\n",
        _CODE.replace("Say something", "Say something else"),
        _CODE.replace("A module", "The module"),
        _CODE.replace("def f", "\n\n\ndef f"),
        _CODE.replace("(x, x, x)", "(\n        x,\n        x, x)"),
    ],
)
def test_comments_docstrings_and_layout_do_not_change_the_code_digest(
    code: Path, changed: str
) -> None:
    before = code_digest(code)
    code.write_text(changed)
    assert code_digest(code) == before


@pytest.mark.parametrize(
    "changed",
    [
        _CODE.replace("+ 1", "+ 2"),
        _CODE.replace("blocks.losses import masked_bce", "blocks.losses import focal_masked_bce"),
        _CODE.replace("blocks.losses", "blocks.entropy"),
    ],
)
def test_code_changes_the_code_digest(code: Path, changed: str) -> None:
    before = code_digest(code)
    code.write_text(changed)
    assert code_digest(code) != before


def test_the_code_digest_follows_the_blocks_that_a_method_uses(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfuda_bench.running import code_digest as module

    before = code_digest(code)
    real = module._file_digest
    monkeypatch.setattr(
        module, "_file_digest", lambda p: "other" if p.name == "losses.py" else real(p)
    )
    assert code_digest(code) != before


def test_the_code_digest_does_not_depend_on_where_a_file_lies(code: Path) -> None:
    """A checkout and an installed package put methods before and after the blocks."""
    assert _digest_at(code, Path("/0/method.py")) == _digest_at(code, Path("/~/method.py"))


def _digest_at(code: Path, place: Path) -> str:
    """Return the digest as if the file lay at ``place``."""
    from unittest import mock

    from sfuda_bench.running import code_digest as module

    closure, file_digest = module._closure, module._file_digest
    moved = {place if path == code else path for path in closure(code)}
    with (
        mock.patch.object(module, "_closure", lambda start: moved),
        mock.patch.object(
            module, "_file_digest", lambda path: file_digest(code if path == place else path)
        ),
    ):
        return code_digest(place)


# -- adaptation key -----------------------------------------------------------------------------

MATTERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "a setting of the method": (("cpr.beta=3",), {}),
    "a setting of training": (("cpr.lr=0.001",), {}),
    "seed": ((), {"seeds": (1,)}),
    "source seed": ((), {"source_seeds": (1,)}),
    "source recipe": (("source.epochs=31",), {}),
    "protocol": ((), {"protocol": "transductive"}),
    "batch norm at inference": (("inference.batch_norm=per_image",), {}),
    "dropout at inference": (("inference.dropout=true",), {}),
    "precision": (("run.precision=bfloat16",), {}),
    "image size": (("data.image_size=128",), {}),
    "the other direction": ((), {"pairs": "toy_b:toy_a"}),
    "another target": ((), {"pairs": "toy_a:toy_c"}),
}


@pytest.mark.parametrize("what", MATTERS)
def test_the_adaptation_key_changes_with(bench: Any, what: str) -> None:
    overrides, request = MATTERS[what]
    assert cell_of(bench, "cpr", *overrides, **request).key != cell_of(bench).key


def test_the_adaptation_key_changes_with_the_method_and_its_versions(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cell_of(bench).key
    assert cell_of(bench, "cpr_cbam").key != plain
    spec = METHODS.get("cpr")
    with monkeypatch.context() as patch:
        patch.setitem(METHODS._values, "cpr", replace(spec, version=spec.version + 1))
        assert cell_of(bench).key != plain
    with monkeypatch.context() as patch:
        patch.setattr(spec.frozen_steps[0], "frozen_version", 99)
        assert cell_of(bench).key != plain
    assert cell_of(bench).key == plain


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_adaptation_key_changes_with_a_pixel_of_the_target(bench: Any, split: str) -> None:
    plain = cell_of(bench)
    path = bench.images("toy_b", split)[0]
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    changed = cell_of(bench)
    assert changed.key != plain.key
    # Offline, test images are no part of what streams and artefacts depend on.
    same_streams = split == "test"
    assert (changed.job["stream_key"] == plain.job["stream_key"]) == same_streams
    assert (changed.job["artefact_base"] == plain.job["artefact_base"]) == same_streams


MATTERS_NOT: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "evaluation grid": (("data.evaluation_grid=128",), {}),
    "profiles": ((), {"profiles": ("standard",)}),
    "tracking": ((), {"record": frozenset({"epochs"})}),
    "k of the average": ((), {"average_last": 2}),
    "keeping models": ((), {"keep_models": False}),
    "jobs": ((), {"jobs": 3}),
    "settings of other methods": (("dpl.lr=0.1",), {}),
    "a pair selector": ((), {"pairs": "toy_a->toy_b"}),
    "more methods": ((), {}),
}


@pytest.mark.parametrize("what", MATTERS_NOT)
def test_the_adaptation_key_does_not_change_with(bench: Any, what: str) -> None:
    overrides, request = MATTERS_NOT[what]
    assert cell_of(bench, "cpr", *overrides, **request).key == cell_of(bench).key


def test_the_adaptation_key_ignores_paths_names_and_masks(bench: Any, tmp_path: Path) -> None:
    plain = cell_of(bench)
    moved = replace(bench, data=tmp_path / "elsewhere", out=tmp_path / "other-store")
    shutil.move(bench.data, moved.data)
    for number, path in enumerate(moved.images("toy_b", "train")):
        path.rename(path.with_name(f"renamed_{9 - number}.png"))
    shutil.rmtree(moved.data / "toy_b" / "test" / "ROIs" / "mask")
    cell = cell_of(moved)
    assert cell.key == plain.key
    assert cell.job["stream_key"] == plain.job["stream_key"]
    assert cell.job["artefact_base"] == plain.job["artefact_base"]
    assert cell.source.key == plain.source.key


def test_the_score_key_changes_with_masks_profile_and_grid_only(bench: Any) -> None:
    def keys(*overrides: str) -> list[str]:
        return [job["key"] for job in cell_of(bench, "cpr", *overrides).scoring]

    plain = keys()
    assert len(set(plain)) == 2
    assert not set(plain) & set(keys("data.evaluation_grid=128"))
    assert keys("dpl.lr=0.1") == plain
    paths = bench.images("toy_b", "test", "mask")
    shutil.copy(paths[1], paths[0])
    assert not set(plain) & set(keys())


# -- streams ------------------------------------------------------------------------------------


def test_a_variant_draws_the_same_orders_and_augmentations_as_its_parent(bench: Any) -> None:
    variants = [name for name in METHODS.names() if METHODS.get(name).parent == "cpr"]
    assert variants
    parent = cell_of(bench, "cpr").job["stream_key"]
    assert {cell_of(bench, name).job["stream_key"] for name in variants} == {parent}
    assert cell_of(bench, "cpr", seeds=(1,)).job["stream_key"] != parent


def test_streams_do_not_depend_on_what_was_drawn_before() -> None:
    import torch

    from sfuda_bench.running.streams import Streams

    def draws(noise: int) -> list[Any]:
        streams = Streams("key")
        streams.begin(1)
        for _ in range(noise):
            torch.rand(7)
        streams.begin(2)
        return [torch.rand(3), torch.rand(3, generator=streams.generator("order"))]

    assert all(torch.equal(a, b) for a, b in zip(draws(0), draws(5), strict=True))
    streams = Streams("key")
    streams.begin(1)
    first, second = (torch.rand(3, generator=streams.generator("order")) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_frozen_step_leaves_later_draws_alone(bench: Any) -> None:
    """A cache hit and a computed artefact give the same adapted bytes."""
    missed = bench.run("cpr")
    assert bench.artefacts("similarity_head")
    shutil.rmtree(missed.folder)
    hit = bench.run("cpr")
    assert hit.sha == missed.sha


# -- what is computed again ---------------------------------------------------------------------


def test_the_same_request_computes_nothing_and_a_deleted_cell_alone(bench: Any) -> None:
    methods = ["source_only", "bn_adapt", "dpl"]
    bench.compute(bench.plan(methods))
    plan = bench.plan(methods)
    assert [cell.state for cell in plan.cells] == ["done"] * 3
    assert set(bench.compute(plan).values()) == {"reused"}
    before = bench.outcome(plan, 2)
    shutil.rmtree(before.folder)
    plan = bench.plan(methods)
    assert [cell.state for cell in plan.cells] == ["done", "done", "todo"]
    assert list(bench.compute(plan).values()) == ["reused", "reused", "computed"]
    assert bench.outcome(plan, 2).cell == before.cell


def test_tracking_is_computed_when_a_stored_cell_lacks_it_and_changes_no_byte(bench: Any) -> None:
    untracked = bench.run("dpl")
    plan = bench.plan("dpl", record=frozenset({"epochs"}))
    assert plan.cells[0].state == "todo"
    bench.compute(plan)
    tracked = bench.outcome(plan)
    assert tracked.sha == untracked.sha
    folders = sorted(path.name for path in (tracked.folder / "predictions").glob("epoch-*"))
    assert folders == ["epoch-000", "epoch-001"]
    assert bench.plan("dpl").cells[0].state == "done"


def test_a_plan_warns_when_the_code_of_stored_cells_differs(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfuda_bench.running import plan as module

    bench.run("dpl")
    assert bench.plan("dpl").warnings == []
    monkeypatch.setattr(module, "code_digest", lambda path: "other")
    plan = bench.plan("dpl")
    assert plan.cells[0].state == "done"
    assert len(plan.warnings) == 1 and "'dpl'" in plan.warnings[0]


def test_variants_and_trials_share_frozen_artefacts(bench: Any) -> None:
    """Beta and gamma come after the head; the attention of a variant comes before it."""
    bench.run("cpr")
    bench.run("cpr", overrides=["cpr.threshold=0.6"])
    counts = {name: len(bench.artefacts(name)) for name in ("initial_labels", "similarity_head")}
    assert counts == {"initial_labels": 1, "similarity_head": 1}
    assert len(bench.artefacts("refined_labels")) == 1
    bench.run("cpr", overrides=["cpr.beta=4"])
    assert len(bench.artefacts("similarity_head")) == 1
    assert len(bench.artefacts("refined_labels")) == 2
    bench.run("cpr_cbam")
    assert len(bench.artefacts("initial_labels")) == 1
    assert len(bench.artefacts("similarity_head")) == 2
    bench.run("dpl", overrides=["dpl.mc_batch=4", "cpr.passes=3"])
    assert len(bench.artefacts("initial_labels")) == 1


def test_an_artefact_is_computed_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfuda_bench.running.frozen import ArtefactCache

    computed: list[str] = []
    real = ArtefactCache._compute

    def counting(self: Any, function: Any, *args: Any) -> None:
        computed.append(function.__name__)
        real(self, function, *args)

    monkeypatch.setattr(ArtefactCache, "_compute", counting)
    bench.run("cpr")
    bench.run("cpr", overrides=["cpr.lr=0.001"])
    assert sorted(computed) == ["initial_labels", "refined_labels", "similarity_head"]


def test_a_frozen_step_refuses_what_has_no_content_key(bench: Any) -> None:
    from sfuda_bench.errors import UsageError
    from sfuda_bench.methods import frozen_step
    from sfuda_bench.running.frozen import ArtefactCache

    cache = ArtefactCache.__new__(ArtefactCache)
    cache.base = {}
    step = METHODS.get("cpr").frozen_steps[0]
    with pytest.raises(UsageError, match="parameter 'labels' is a list"):
        cache.key_fields(step, {"labels": [1]})

    @frozen_step(version=1)
    def local() -> dict[str, Any]:
        return {}

    with pytest.raises(UsageError, match="module-level function"):
        cache.key_fields(local, {})
