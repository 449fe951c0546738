"""Scratch memory is bounded whatever the problem, and a caller's budget for transformed weights is kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from benchmarks.registry import LAYERS
from fastconv import kernels, lowering
from fastconv.algorithms import ALGORITHMS as TABLE
from fastconv.algorithms import base
from fastconv.functional import plan_separable_conv2d
from fastconv.geometry import ConvGeometry
from fastconv.plan import design
from support import ALGORITHMS, DTYPES, LEVELS, geometry

MEBIBYTE = 1 << 20
BOUNDED = ("direct", "kn2col", "winograd")
WINOGRAD = fc.algorithms.ALGORITHMS["winograd"]


def allowance(problem, num_threads):
    """4 MiB a thread, and the copy of a band with its halo: the image, or 2 MiB and the rows that overlap."""
    row = base.in_columns(problem) * problem.in_channels * problem.dtype.itemsize
    band = 2 * MEBIBYTE + base.in_rows(problem, 1) * row
    image = base.in_rows(problem, problem.output_size[0]) * row
    return num_threads * (4 * MEBIBYTE + min(band, image + base.BAND_BYTES))


def check(problem, level):
    for name in BOUNDED:
        if TABLE[name].unsupported(problem) is None:
            for num_threads in (1, 2, 3):
                with kernels.use(level):
                    made = design(problem, algorithm=name, num_threads=num_threads)
                for part in made.passes:
                    taken = TABLE[name].workspace_bytes(part.geometry, num_threads, made.level)
                    assert taken <= allowance(part.geometry, num_threads), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_workspace_is_bounded_on_real_layers(layer, level):
    for dtype in DTYPES:
        problem = ConvGeometry.create(layer.input_shape, layer.weight_shape, dtype=dtype, **layer.keywords)
        check(problem, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride"),
    [(3, 1, 3, 1), (64, 1, 3, 1), (64, 1, 1, 1), (64, 1, 3, 2), (64, 64, 3, 1), (64, 4, 5, 1), (1, 1, 7, 1)],
)
@pytest.mark.parametrize("columns", [3000, 65_536, 200_001])
def test_workspace_is_bounded_on_wide_images(columns, channels, groups, kernel, stride, level):
    weight = (64, channels // groups, kernel, kernel)
    problem = ConvGeometry.create(
        (1, channels, 9, columns), weight, stride=stride, padding=kernel // 2, groups=groups
    )
    check(problem, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("columns", [3000, 65_536, 200_001])
def test_workspace_is_bounded_on_wide_volumes(columns, kernel, level):
    padding = tuple(k // 2 for k in kernel)
    check(ConvGeometry.create((1, 64, 3, 9, columns), (64, 64, *kernel), padding=padding), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (64, 3), (64, 7), (512, 3)])
@pytest.mark.parametrize("columns", [60, 3000, 65_536, 200_001])
def test_workspace_is_bounded_on_wide_separable_convolutions(columns, channels, kernel, level):
    shape, padding = (1, channels, 9, columns), kernel // 2
    weights = np.ones((channels, 1, kernel, kernel), np.float32), np.ones((64, channels, 1, 1), np.float32)
    problem = ConvGeometry.create(shape, weights[0].shape, padding=padding, groups=channels)
    with kernels.use(level):
        for num_threads in (1, 2, 3):
            plan = plan_separable_conv2d(shape, *weights, padding=padding, num_threads=num_threads)
            assert plan.workspace_bytes <= max(
                allowance(part.geometry, num_threads) for part in lowering.passes(problem)
            )


@settings(max_examples=150)
@given(case=strategies.cases() | strategies.winograd_cases())
def test_workspace_is_bounded_on_any_problem(case):
    for level in LEVELS:
        check(geometry(case, np.float32), level)


@pytest.mark.parametrize("algorithm", ["auto", "fastest"])
def test_a_weight_budget_is_kept(algorithm):
    shape, weight = (1, 48, 30, 30), np.ones((48, 48, 3, 3), np.float32)
    problem = ConvGeometry.create(shape, weight.shape)
    needed = WINOGRAD.transformed_bytes(problem)
    assert needed > weight.nbytes
    assert fc.plan_conv2d(shape, weight).algorithm == "winograd"
    assert fc.plan_conv2d(shape, weight, weight_budget=needed).algorithm == "winograd"
    for budget in (needed - 1, weight.nbytes, 0):
        plan = fc.plan_conv2d(shape, weight, algorithm=algorithm, weight_budget=budget)
        assert TABLE[plan.algorithm].transformed_bytes(problem) <= budget
        assert plan.algorithm != "winograd"


@settings(max_examples=30)
@given(case=strategies.winograd_cases(), budget=st.integers(0, 1 << 20))
def test_a_weight_budget_is_kept_for_any_problem(case, budget):
    _, weight, _ = case.normal(np.float32)
    plan = fc.plan_conv2d(case.x_shape, weight, weight_budget=budget, **case.keywords)
    assert TABLE[plan.algorithm].transformed_bytes(plan.geometry) <= budget


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_named_algorithm_says_what_it_needs(name):
    shape, weight = (1, 4, 20, 20), np.ones((4, 4, 3, 3), np.float32)
    needed = TABLE[name].transformed_bytes(ConvGeometry.create(shape, weight.shape))
    if needed == 0:
        assert fc.plan_conv2d(shape, weight, algorithm=name, weight_budget=0).algorithm == name
        return
    with pytest.raises(ValueError, match=f"^weight_budget must be at least {needed} for algorithm '{name}'"):
        fc.plan_conv2d(shape, weight, algorithm=name, weight_budget=needed - 1)
    plan = fc.plan_conv2d(shape, weight, algorithm=name, weight_budget=needed)
    # Beyond them lie only what fills up whole vectors, and the bias.
    assert plan.packed_bytes >= needed


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"weight_budget": -1}, ValueError),
        ({"weight_budget": 1.5}, TypeError),
        ({"weight_budget": True}, TypeError),
        ({"calls": 0}, ValueError),
        ({"calls": "many"}, TypeError),
    ],
)
def test_wrong_budgets_are_refused(keywords, error):
    (name,) = keywords
    with pytest.raises(error, match=f"^{name} must be an integer >= "):
        fc.plan_conv2d((1, 2, 8, 8), np.ones((2, 2, 3, 3), np.float32), **keywords)


def test_packing_counts_for_few_calls():
    """Transforming 16 MB of weights for one small image costs more than the products it saves."""
    shape, weight = (1, 512, 14, 14), np.ones((512, 512, 3, 3), np.float32)
    names = [fc.plan_conv2d(shape, weight, padding=1, calls=calls).algorithm for calls in (1, 1000, None)]
    assert names[0] != "winograd"
    assert names[1:] == ["winograd", "winograd"]
    assert fc.plan_conv2d((64, *shape[1:]), weight, padding=1, calls=1).algorithm == "winograd"
