from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfuda_bench.scoring.codes import decode, encode, upsample

Array = NDArray[Any]


def around(value: float) -> Array:
    """The float32 just below a value, the value, and the one just above."""
    value32 = np.float32(value)
    return np.array([np.nextafter(value32, np.float32(-9)), value32, np.nextafter(value32, 9)])


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_the_neighbouring_floats_of_a_threshold_stay_on_their_side(threshold: float) -> None:
    prob = around(threshold).astype(np.float32)
    assert (prob > threshold).tolist() == [False, False, True]
    assert (decode(encode(prob)) > threshold).tolist() == [False, False, True]


def test_every_threshold_of_a_256th_is_exact() -> None:
    for k in range(1, 256):
        prob = around(k / 256).astype(np.float32)
        assert ((encode(prob) >= k) == (prob > k / 256)).all()


@given(st.floats(0, 1, width=32), st.integers(1, 255))
def test_code_compares_as_the_probability_does(p: float, k: int) -> None:
    code = encode(np.array([p], dtype=np.float32))[0]
    assert (code >= k) == (p > k / 256)


def test_double_precision_just_above_a_threshold_is_not_rounded_onto_it() -> None:
    assert encode(np.array([0.5 + 1e-12]))[0] == 128


def test_the_ends_of_the_range_have_codes_and_every_code_survives_a_round_trip() -> None:
    assert encode(np.array([0.0, 1.0], dtype=np.float32)).tolist() == [0, 255]
    codes = np.arange(256, dtype=np.uint8)
    assert encode(decode(codes)).tolist() == codes.tolist()
    assert decode(codes).dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1, -7.0])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        encode(np.array([0.2, bad], dtype=np.float32))


def random_codes(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# A ratio that is no power of two is placed in float32 by torch and in float64 here.
@pytest.mark.parametrize(
    ("size", "grid", "tolerance"),
    [(32, 64, 1e-6), (64, 32, 1e-6), (1, 8, 1e-6), (40, 64, 1e-4), (50, 32, 1e-4), (3, 100, 1e-4)],
)
def test_upsample_equals_torch_bilinear_with_half_pixel_centres(
    size: int, grid: int, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    codes = random_codes(2, size, size)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(decode(codes))[None],
        size=(grid, grid),
        mode="bilinear",
        align_corners=False,
    )
    np.testing.assert_allclose(upsample(codes, grid), expected[0].numpy(), rtol=0, atol=tolerance)


def test_upsample_on_the_same_grid_only_decodes() -> None:
    codes = random_codes(2, 16, 16)
    assert (upsample(codes, 16) == decode(codes)).all()


def test_upsample_treats_leading_dimensions_alike_and_keeps_float32() -> None:
    codes = random_codes(3, 2, 8, 8)
    prob = upsample(codes, 20)
    assert prob.shape == (3, 2, 20, 20)
    assert prob.dtype == np.float32
    assert (prob[1, 0] == upsample(codes[1, 0], 20)).all()


def test_upsample_commutes_with_mirroring_and_transposing() -> None:
    codes = random_codes(8, 8)
    prob = upsample(codes, 16)
    assert (upsample(codes[::-1], 16) == prob[::-1]).all()
    np.testing.assert_allclose(upsample(codes.T, 16), prob.T, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "codes", [np.zeros((2, 4, 5), np.uint8), np.zeros((4, 4), np.float32), np.zeros(4, np.uint8)]
)
def test_upsample_refuses_what_is_no_square_of_bytes(codes: Array) -> None:
    with pytest.raises(ValueError, match="uint8"):
        upsample(codes, 8)
