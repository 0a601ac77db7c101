"""Online and episodic protocols, and what single methods promise about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

STRONG = ["entropy_min.lr=0.01", "entropy_min.batch_size=1"]


def differences(one: dict[str, Any], two: dict[str, Any]) -> int:
    assert one.keys() == two.keys()
    return max(
        int(np.abs(code.astype(int) - two[key].astype(int)).max()) for key, code in one.items()
    )


def test_the_first_online_batch_scored_before_the_update_is_prediction_time_batch_norm(
    bench: Any,
) -> None:
    """T-ENT-5: all four test images are the first batch of both."""
    tent = bench.run(
        "entropy_min",
        overrides=["entropy_min.batch_size=4", "entropy_min.score_output=before"],
        protocol="online",
    )
    norm = bench.run("ptbn", overrides=["ptbn.batch_size=4"])
    assert differences(tent.codes(), norm.codes()) <= 1
    after = bench.run(
        "entropy_min",
        overrides=[*STRONG, "entropy_min.batch_size=4", "entropy_min.score_output=after"],
        protocol="online",
    )
    assert differences(after.codes(), norm.codes()) > 1


def test_an_online_run_carries_its_state_and_an_episodic_run_does_not(bench: Any) -> None:
    online = bench.run("entropy_min", overrides=STRONG, protocol="online")
    episodic = bench.run("entropy_min", overrides=STRONG, protocol="episodic")
    assert online.sha != online.source_sha
    assert differences(online.codes(), episodic.codes()) > 1


def test_the_order_of_an_online_target_follows_the_seed(bench: Any) -> None:
    first, second = (
        bench.run("entropy_min", overrides=STRONG, protocol="online", seeds=(seed,))
        for seed in (0, 1)
    )
    assert first.sha != second.sha


def test_alpha_one_of_alpha_bn_is_prediction_time_batch_norm(bench: Any) -> None:
    alpha = bench.run("alpha_bn", overrides=["alpha_bn.alpha=1.0", "alpha_bn.batch_size=2"])
    norm = bench.run("ptbn", overrides=["ptbn.batch_size=2"])
    assert differences(alpha.codes(), norm.codes()) == 0


@pytest.mark.parametrize("method", ["dpl", "cpr"])
def test_a_method_without_an_online_form_refuses_the_protocol(bench: Any, method: str) -> None:
    from sfuda_bench.errors import UsageError

    with pytest.raises(UsageError, match=f"'{method}' supports only offline, transductive"):
        bench.plan(method, protocol="online")


def test_batch_norm_adaptation_undoes_a_gain_and_an_offset(bench: Any) -> None:
    """On this shift, which batch norm can undo, AdaBN must beat the source model by far."""
    import pandas as pd

    dice = {}
    for method in ("source_only", "bn_adapt"):
        result = bench.run(method)
        cases = pd.read_parquet(result.folder / "cases-standard.parquet")
        dice[method] = cases["dice"].mean()
    assert dice["bn_adapt"] >= dice["source_only"] + 0.1
