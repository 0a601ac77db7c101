"""What every registered network must keep to; none is named here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfuda_bench.contract.networks import INVARIANTS, Networks
from sfuda_bench.errors import UsageError
from sfuda_bench.networks.registry import NETWORKS, NetworkSpec

SPECS = [NETWORKS.get(name) for name in NETWORKS.names()]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("invariant", list(INVARIANTS), ids=lambda invariant: invariant.name)
def test_the_network_keeps_the_contract(
    invariant: Any, spec: NetworkSpec, networks: Networks
) -> None:
    assert invariant.check(networks, spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_one_image_in_train_mode_is_refused_clearly(spec: NetworkSpec, networks: Networks) -> None:
    """Networks of this project normalise a pooled map; another's may do without."""
    with pytest.raises(UsageError, match="batch of one image"):
        networks.fresh(spec).train()(networks.image[:1])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_side_not_divisible_by_the_stride_is_refused(
    spec: NetworkSpec, networks: Networks
) -> None:
    with pytest.raises(UsageError, match="65 x 64") as error:
        networks.network(spec).encode(torch.zeros(1, 3, 65, 64))
    assert error.value.hint == "--image-size 64"
