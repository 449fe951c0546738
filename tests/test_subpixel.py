"""Sub-pixel convolution: a convolution and a shuffle, in one."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import fastconv as fc
import strategies
from fastconv import functional, kernels
from support import DTYPES, LEVELS, assert_same_bits, assert_within_bound, error_bound

RNG = np.random.default_rng(8)


def problem(channels, factor, groups=1, size=(13, 10), batch=2, dtype=np.float32, taps=3):
    x = RNG.standard_normal((batch, 16, *size)).astype(dtype)
    weight = RNG.standard_normal((channels * factor**2, 16 // groups, taps, taps)).astype(dtype)
    return x, weight, RNG.standard_normal(len(weight)).astype(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "factor", "options"),
    [(32, 2, {"padding": 1}), (64, 1, {"padding": 1}), (3, 2, {"padding": 1}), (5, 3, {"padding": "same"}),
     (4, 2, {"groups": 2}), (32, 2, {"padding": 1, "padding_mode": "reflect"}),
     (32, 3, {"padding": ((2, 0), (1, 1)), "dilation": 2}), (8, 2, {"stride": 2, "padding": 1})],
)  # fmt: skip
def test_it_is_a_shuffled_convolution(channels, factor, options, dtype, level):
    x, weight, bias = problem(channels, factor, options.get("groups", 1), dtype=dtype)
    pairs = fc.plan_conv2d(x.shape, weight, **options).geometry.padding
    case = strategies.Case(
        x.shape, weight.shape, padding=pairs, groups=options.get("groups", 1),
        stride=(options.get("stride", 1),) * 2, dilation=(options.get("dilation", 1),) * 2, seed=0,
    )  # fmt: skip
    with kernels.use(level):
        wide = (array.astype(np.float64) for array in (x, weight, bias))
        expected = functional.pixel_shuffle(fc.conv2d(*wide, algorithm="direct", **options), factor)
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        plan = functional.plan_subpixel_conv2d(x.shape, weight, bias, upscale_factor=factor, **options)
        for form in (x, last):
            y = functional.subpixel_conv2d(form, weight, bias, upscale_factor=factor, **options)
            bound = max(error_bound(name, case, dtype) for name in ("direct", "winograd"))
            assert_within_bound(y, expected, bound, case.reduction)
            results = [plan(form, num_threads=count) for count in (1, 2)]
            assert_same_bits(*results)
            for out in (np.empty_like(y), np.empty((*y.shape[:3], 2 * y.shape[3]), dtype)[..., ::2]):
                assert plan(form, out=out) is out
                assert_same_bits(np.ascontiguousarray(out), np.ascontiguousarray(results[0]))
            assert (y.strides[1] == y.itemsize) == (form is last)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("inputs", [1, 3, 8])
def test_forms_of_few_channels_write_their_own_images(inputs, level):
    x = RNG.standard_normal((2, inputs, 64, 60)).astype(np.float32)
    weight = RNG.standard_normal((128, inputs, 3, 3)).astype(np.float32)
    with kernels.use(level):
        for form in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
            y = functional.subpixel_conv2d(form, weight, upscale_factor=2, padding=1)
            expected = functional.pixel_shuffle(fc.conv2d(form, weight, padding=1), 2)
            assert np.abs(y - expected).max() < 1e-4


def test_it_writes_straight_where_it_can():
    x, weight, bias = problem(32, 2, size=(28, 28))
    plan = functional.plan_subpixel_conv2d(x.shape, weight, bias, upscale_factor=2, padding=1)
    assert "written to their places" in plan.explain()
    other = functional.plan_subpixel_conv2d(x.shape, weight[:12], upscale_factor=2, padding=1)
    assert "shuffled afterwards" in other.explain()


def test_plans_are_copied_pickled_and_repacked():
    x, weight, bias = problem(32, 2)
    plan = functional.plan_subpixel_conv2d(x.shape, weight, bias, upscale_factor=2, padding=1)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert_same_bits(other(x), plan(x))
    plan.repack(2 * weight)
    expected = functional.subpixel_conv2d(x, 2 * weight, upscale_factor=2, padding=1)
    np.testing.assert_allclose(plan(x), expected, rtol=1e-4, atol=1e-4)


def test_empty_batches_and_wrong_arguments():
    x, weight, bias = problem(4, 2)
    call = functional.subpixel_conv2d
    assert call(x[:0], weight, bias, upscale_factor=2).shape == (0, 4, 22, 16)
    for wrong, error, name in itertools.chain(
        [({"upscale_factor": factor}, ValueError, "upscale_factor") for factor in (0, -1)],
        [
            ({"upscale_factor": 2.0}, TypeError, "upscale_factor"),
            ({"upscale_factor": 3}, ValueError, "weight"),
        ],
        [({"upscale_factor": 2, "bias": bias[:3]}, ValueError, "bias")],
    ):
        with pytest.raises(error, match=f"^{name}"):
            call(x, weight, **wrong)
