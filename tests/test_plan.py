"""Plans: what they report, that they can be reused, and that their stated memory is the memory they take."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.geometry import ConvGeometry
from support import ALGORITHMS, DTYPES, LEVELS, assert_same_bits

CASE = strategies.Case((2, 24, 30, 34), (40, 24, 3, 3), padding=((1, 1), (1, 1)), seed=6)
# What Python objects, views and index arithmetic may take besides arrays.
SLACK = 64 << 10


def make(algorithm="auto", dtype=np.float32, **keywords):
    x, weight, bias = CASE.normal(dtype)
    plan = fc.plan_conv2d(x.shape, weight, bias, algorithm=algorithm, **{**CASE.keywords, **keywords})
    return plan, x, weight, bias


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_reports(algorithm):
    plan, x, weight, _ = make(algorithm)
    assert plan.geometry == ConvGeometry.create(x.shape, weight.shape, dtype=np.float32, **CASE.keywords)
    assert plan.algorithm in (ALGORITHMS if algorithm == "auto" else (algorithm,))
    described = fc.algorithms.ALGORITHMS[plan.algorithm]
    assert plan.multiplications == described.multiplications(plan.geometry)
    assert plan.error_bound == described.error_bound(plan.geometry)
    assert 0 < plan.error_bound < 1e-3
    assert plan.workspace_bytes >= 0
    assert plan.packed_bytes > 0
    assert plan.num_threads >= 1
    assert isinstance(plan.reason, str)
    assert plan.reason


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_explains(algorithm):
    plan, *_ = make(algorithm, activation="relu")
    text = plan.explain()
    assert len(text.splitlines()) > 1
    assert plan.algorithm in text
    assert plan.reason in text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gives_what_conv2d_gives(algorithm, level):
    with kernels.use(level):
        plan, x, weight, bias = make(algorithm, activation="relu")
        expected = fc.conv2d(x, weight, bias, activation="relu", algorithm=algorithm, **CASE.keywords)
        assert_same_bits(plan(x), expected)
    # A plan keeps the level it was packed for.
    assert_same_bits(plan(x), expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reuse_leaves_no_trace(algorithm):
    plan, x, *_ = make(algorithm)
    first = plan(x)
    kept = first.copy()
    other = plan(2 * x + 1)
    assert not np.shares_memory(first, other)
    assert_same_bits(first, kept)
    assert_same_bits(plan(x), kept)
    out = np.full(kept.shape, np.nan, np.float32)
    assert plan(x, out=out) is out
    assert_same_bits(out, kept)
    assert_same_bits(plan(strategies.MEMORY_LAYOUTS["channels_last"](x)), kept)


# One kernel, borders that none writes, padding that is copied, and other ranks.
REPEATED = {
    "2-D": ((2, 24, 20, 21), (16, 24, 3, 3), {}),
    "depthwise": ((1, 24, 20, 21), (24, 1, 3, 3), {"groups": 24}),
    "edges": ((1, 3, 4, 5), (8, 3, 3, 3), {"padding": 3}),
    "reflect": ((1, 3, 9, 8), (8, 3, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "1-D": ((2, 24, 40), (16, 24, 3), {"padding": 1}),
    "3-D": ((1, 8, 6, 7, 8), (8, 8, 3, 3, 3), {"padding": 1}),
}
FORMS = {
    "contiguous": np.ascontiguousarray,
    "channels last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
}


@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col"])
@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_takes_any_arrays(name, algorithm):
    """Calls after the first for arrays of some form leave out what it found, which others may not rely on."""
    shape, weight_shape, keywords = REPEATED[name]
    make_plan = {3: fc.plan_conv1d, 4: fc.plan_conv2d, 5: fc.plan_conv3d}[len(shape)]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(weight_shape, dtype=np.float32)
    for threads in (1, 2):
        plan = make_plan(shape, weight, algorithm=algorithm, num_threads=threads, **keywords)
        for form in (*FORMS.values(), *reversed(FORMS.values())):
            x = rng.standard_normal(shape, dtype=np.float32)
            expected = make_plan(shape, weight, algorithm=algorithm, num_threads=threads, **keywords)(x)
            x, out = form(x), form(np.empty_like(expected))
            for _ in range(3):
                assert_same_bits(np.ascontiguousarray(plan(x)), expected)
                out[...] = np.nan
                assert plan(x, out=out) is out
                assert_same_bits(np.ascontiguousarray(out), expected)


def test_a_repeated_call_is_checked_like_the_first():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16, 3, 3), dtype=np.float32)
    x = rng.standard_normal((1, 16, 12, 12), dtype=np.float32)
    plan = fc.plan_conv2d(x.shape, weight, padding=1)
    out = np.empty_like(x)
    expected = plan(x, out=out).copy()
    for _ in range(3):
        plan(x, out=out)
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    for wrong, error in (
        (read_only, ValueError),
        (out.astype(np.float64), TypeError),
        (out[:, :8], ValueError),
    ):
        with pytest.raises(error, match="^out "):
            plan(x, out=wrong)
    for wrong, error in ((x.astype(np.int32), TypeError), (x[:, :8], ValueError), (None, TypeError)):
        with pytest.raises(error, match="^x "):
            plan(wrong, out=out)
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    swapped = x.astype(x.dtype.newbyteorder())
    for same in (unaligned, swapped, x.view(type("Own", (np.ndarray,), {}))):
        out[...] = 0
        assert_same_bits(plan(same, out=out), expected)
    assert_same_bits(plan(x, out=x), expected)  # in place
    assert_same_bits(x, expected)


def test_a_repeated_call_sees_new_weights():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 16, 16, 3, 3), dtype=np.float32)
    x = rng.standard_normal((1, 16, 12, 12), dtype=np.float32)
    plan = fc.plan_conv2d(x.shape, first, padding=1)
    out = np.empty_like(x)
    for _ in range(3):
        plan(x, out=out)
    for weight in (second, np.where(second > 2, np.inf, second)):
        plan.repack(weight)
        with np.errstate(invalid="ignore"):
            assert_same_bits(plan(x, out=out), fc.plan_conv2d(x.shape, weight, padding=1)(x))


def test_changing_the_weight_afterwards_changes_nothing():
    for algorithm in ALGORITHMS:
        plan, x, weight, bias = make(algorithm)
        expected = plan(x)
        weight[...] = 0
        bias[...] = 0
        assert_same_bits(plan(x), expected)


def test_an_input_of_another_shape_is_refused():
    plan, x, *_ = make()
    for wrong in (x[:1], x[:, :23], x[:, :, 1:], x[0], np.swapaxes(x, 2, 3)):
        with pytest.raises(ValueError, match="^x ") as caught:
            plan(wrong)
        assert str(x.shape) in str(caught.value)
        assert str(wrong.shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, bool, object])
def test_an_input_of_another_kind_is_refused(dtype):
    plan, x, *_ = make()
    with pytest.raises(TypeError, match="^x "):
        plan(x.astype(dtype))


def test_out_and_num_threads_are_checked():
    plan, x, *_ = make()
    with pytest.raises(ValueError, match="^out "):
        plan(x, out=np.empty((2, 40, 30, 33), np.float32))
    with pytest.raises(TypeError, match="^out "):
        plan(x, out=np.empty((2, 40, 30, 34)))
    with pytest.raises(ValueError, match="^num_threads "):
        plan(x, num_threads=0)
    plan(x, num_threads=1)
    for equal, error in ((True, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="^num_threads "):
            plan(x, num_threads=equal)


def test_dtype_of_the_plan():
    _, x, weight, _ = make()
    assert fc.plan_conv2d(x.shape, weight).geometry.dtype == np.float32
    assert fc.plan_conv2d(x.shape, weight.astype(np.float64)).geometry.dtype == np.float64
    assert fc.plan_conv2d(x.shape, weight, dtype=np.float64).geometry.dtype == np.float64
    assert fc.plan_conv2d(x.shape, weight.astype(np.float16)).geometry.dtype == np.float32
    with pytest.raises(TypeError, match="^dtype "):
        fc.plan_conv2d(x.shape, weight, dtype=np.int32)


def test_nhwc_plan():
    plan, x, weight, bias = make()
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    last = fc.plan_conv2d(nhwc.shape, weight, bias, layout="NHWC", **CASE.keywords)
    y = last(nhwc)
    assert y.flags.c_contiguous
    assert_same_bits(y.transpose(0, 3, 1, 2), plan(x))
    with pytest.raises(ValueError, match="^x "):
        last(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_workspace_bytes_are_all_it_takes(algorithm, memory, num_threads, dtype):
    plan, x, *_ = make(algorithm, dtype, num_threads=num_threads)
    x = strategies.MEMORY_LAYOUTS[memory](x)
    output_bytes, packed_bytes = plan.geometry.output_bytes, plan.packed_bytes
    fc.conv2d(x[:, :, :3, :3], np.ones((1, 24, 1, 1), dtype), algorithm="direct")
    tracemalloc.start()
    try:
        y = plan(x)
        _, peak = tracemalloc.get_traced_memory()
        # The form of the weights that this memory layout asks for may be made now.
        late = plan.packed_bytes - packed_bytes
        assert peak <= plan.workspace_bytes + output_bytes + late + SLACK
        del y
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        y = plan(x)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= plan.workspace_bytes + output_bytes + SLACK
    assert after - before <= output_bytes + SLACK
    assert y.nbytes == output_bytes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_repeated_calls_do_not_grow(algorithm):
    plan, x, *_ = make(algorithm)
    out = plan(x)
    plan(x, out=out)
    tracemalloc.start()
    try:
        plan(x, out=out)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            plan(x, out=out)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= SLACK


def test_im2col_lowers_panel_by_panel():
    """Its buffer must not hold all patches, which for this problem would be 9 times the input."""
    x_shape, weight = (1, 64, 112, 112), np.ones((64, 64, 3, 3), np.float32)
    plan = fc.plan_conv2d(x_shape, weight, padding=1, algorithm="im2col", num_threads=1)
    patches = 64 * 9 * 112 * 112 * 4
    assert plan.workspace_bytes < patches / 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_accumulate_adds_to_out_before_the_activation(algorithm, activation, layout):
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((37, 5, 3, 3)), rng.standard_normal(37)
    shape = (2, 5, 11, 9) if layout == "NCHW" else (2, 11, 9, 5)
    x = rng.standard_normal(shape)
    plan = fc.plan_conv2d(shape, weight, bias, padding=1, algorithm=algorithm, layout=layout)
    residual = rng.standard_normal(plan.output_shape)
    expected = residual + plan(x)
    if activation:
        expected = np.maximum(expected, 0)
        plan = fc.plan_conv2d(
            shape, weight, bias, padding=1, algorithm=algorithm, layout=layout, activation=activation
        )
    out = residual.copy()
    assert plan(x, out=out, accumulate=True) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_accumulate_without_out_is_refused():
    plan = fc.plan_conv2d((1, 2, 4, 4), np.ones((3, 2, 1, 1), np.float32))
    with pytest.raises(ValueError, match="^out must be given with accumulate=True, got None"):
        plan(np.ones((1, 2, 4, 4), np.float32), accumulate=True)


def test_narrow_vectors_make_tiles_of_few_channels_worth_it():
    """Twelve channels fill vectors of four better than one of sixteen."""
    weight = np.zeros((64, 12, 3, 3), np.float32)
    chosen = {}
    for level in LEVELS:
        with kernels.use(level):
            plan = fc.plan_conv2d((1, 12, 224, 224), weight, stride=2, padding=1)
            chosen[kernels.active().vector_bytes()] = plan.algorithm
    assert chosen[16] == "winograd"
    assert chosen.get(64, "direct") == "direct"


def copies(plan):
    return copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_plan_can_be_copied_and_pickled(algorithm):
    plan, x, weight, bias = make(algorithm, activation="relu", num_threads=2)
    weight[...] = 0  # the plan's are those it was made of
    expected = plan(x)
    for other in copies(plan):
        assert_same_bits(other(x), expected)
        assert (other.algorithm, other.reason, other.num_threads) == (algorithm, plan.reason, 2)
    plan.repack(-2 * np.ones_like(weight), bias)
    expected = plan(x)
    for other in copies(plan):
        assert_same_bits(other(x), expected)


def test_a_pickled_plan_moves_to_other_kernels():
    plan, x, *_ = make("direct")
    state, expected = pickle.dumps(plan), plan(x)
    for level in LEVELS:
        with kernels.use(level):
            np.testing.assert_allclose(pickle.loads(state)(x), expected, rtol=1e-4, atol=1e-4)


def test_what_holds_plans_can_be_copied_and_pickled():
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(2, 6, 7, 9)), rng.normal(size=(6, 4, 4, 4))
    plan = fc.functional.plan_conv_transpose2d(
        x.shape, weight, rng.normal(size=4), stride=2, output_padding=1
    )
    rows, mixture = rng.normal(size=(12, 1, 3, 3)), rng.normal(size=(5, 12, 1, 1))
    separable = fc.functional.plan_separable_conv2d(x.shape, rows, mixture, padding=1, activation="relu")
    for made in (plan, separable):
        for other in copies(made):
            assert_same_bits(other(x), made(x))
