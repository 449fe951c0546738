"""Plans that conv2d keeps for its next call: never a stale result, never a wrong argument let through."""

from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

import numpy as np
import pytest

import fastconv as fc
from fastconv import kernels
from fastconv.functional import plan_cache
from fastconv.functional.kept import Newest
from fastconv.plan import Plan
from support import ALGORITHMS, LEVELS, assert_same_bits

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 8, 14, 15)).astype(np.float32)
WEIGHT = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)
FUNCTIONS = {"conv2d": fc.conv2d, "conv_transpose2d": fc.conv_transpose2d}


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """No plans at first, and the plans kept."""
    monkeypatch.setattr(plan_cache, "_cache", Newest(128, 1 << 25, attrgetter("nbytes")))
    return plan_cache._cache


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_every_call_sees_the_weights_it_was_given(algorithm, level, kept):
    weight, bias = WEIGHT.copy(), BIAS.copy()
    with kernels.use(level):
        for call in range(3):
            weight *= -0.5
            bias += 1
            given = bias if call else None
            plan = fc.plan_conv2d(X.shape, weight, given, padding=1, algorithm=algorithm, calls=1)
            assert_same_bits(fc.conv2d(X, weight, given, padding=1, algorithm=algorithm), plan(X))
    assert len(kept) == 2  # without a bias and with one


def packings(monkeypatch):
    """How often weights are packed from now on."""
    counted, repack = [], Plan.repack
    monkeypatch.setattr(Plan, "repack", lambda *arguments: counted.append(1) or repack(*arguments))
    return counted


def test_weights_are_packed_anew_only_where_they_have_changed(monkeypatch):
    counted = packings(monkeypatch)
    strided = np.repeat(WEIGHT, 2, axis=3)[..., ::2]
    for call in range(3):  # the first makes the plan
        assert_same_bits(fc.conv2d(X, strided, BIAS), fc.conv2d(X, WEIGHT.copy(), BIAS.copy()))
        assert len(counted) == 1, call
    for bias in (BIAS + 1, BIAS):
        expected = fc.plan_conv2d(X.shape, WEIGHT, bias, calls=1)(X)
        counted.clear()
        assert_same_bits(fc.conv2d(X, WEIGHT, bias), expected)
        assert len(counted) == 1


def test_large_weights_are_not_compared(monkeypatch, kept):
    monkeypatch.setattr(plan_cache, "_MOST_COMPARED", WEIGHT.nbytes - 1)
    counted = packings(monkeypatch)
    for _ in range(3):
        fc.conv2d(X, WEIGHT)
    assert len(counted) == 3
    assert [entry.given for entry in kept.values()] == [None]


def test_out_may_be_the_weight():
    x = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)
    given = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)
    for _ in range(3):
        weight = given.copy()
        expected = fc.plan_conv2d(x.shape, weight, padding=1, calls=1)(x)
        assert fc.conv2d(x, weight, padding=1, out=weight) is weight
        assert_same_bits(weight, expected)
        expected = fc.plan_conv2d(x.shape, weight, padding=1, calls=1)(x)
        assert_same_bits(fc.conv2d(x, weight, padding=1), expected)
        given = weight.copy()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank_of_both_kinds(rank, kept):
    size = (6, 9, 7)[:rank]
    x = RNG.standard_normal((2, 4, *size)).astype(np.float32)
    for name in ("conv", "conv_transpose"):
        function = getattr(fc, f"{name}{rank}d")
        for _ in range(3):
            weight = RNG.standard_normal((4, 4, *[3] * rank)).astype(np.float32)
            bias = RNG.standard_normal(4).astype(np.float32)
            expected = getattr(fc, f"plan_{name}{rank}d")(x.shape, weight, bias, stride=2)(x)
            assert_same_bits(function(x, weight, bias, stride=2), expected)
    assert len(kept) == 2


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pointwise_weights_in_both_forms(layout):
    """A 1×1 kernel is kept as it is and, once pixels want that, as panels."""
    x = RNG.standard_normal((1, 16, 20, 16)).astype(np.float32)
    for _ in range(3):
        weight = RNG.standard_normal((16, 16, 1, 1)).astype(np.float32)
        expected = np.einsum("nchw,oc->nohw", x.astype(float), weight[:, :, 0, 0])
        y = fc.conv2d(x.transpose(0, 2, 3, 1) if layout == "NHWC" else x, weight, layout=layout)
        y = y.transpose(0, 3, 1, 2) if layout == "NHWC" else y
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_a_weight_that_is_not_finite_is_met_by_padding_in_its_own_call_alone():
    depthwise = {"padding": 1, "groups": 8}
    weight = RNG.standard_normal((8, 1, 3, 3)).astype(np.float32)
    expected = fc.conv2d(X, weight, **depthwise)
    infinite = weight.copy()
    infinite[0, 0, 0, 0] = np.inf
    for _ in range(2):
        assert np.isnan(fc.conv2d(X, infinite, **depthwise)[0, 0, 0, 0])
        assert_same_bits(fc.conv2d(X, weight, **depthwise), expected)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"stride": True},
        {"stride": 1.0},
        {"stride": (1, True)},
        {"groups": True},
        {"groups": 1.0},
        {"padding": (1.0, 1)},
        {"padding": ((1, 1), (1, True))},
        {"dilation": np.True_},
        {"num_threads": 1.0},
        {"num_threads": True},
    ],
    ids=str,
)
def test_what_equals_an_accepted_argument_is_still_refused(function, wrong):
    for right in (1, (1, 1)):
        function(X, WEIGHT, stride=right, padding=1, dilation=1, groups=1, num_threads=1)
    function(X, WEIGHT, stride=1, padding=((1, 1), (1, 1)), dilation=1, groups=1, num_threads=1)
    right = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "num_threads": 1}
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))}"):
        function(X, WEIGHT, **{**right, **wrong})


def test_shapes_and_dtypes_are_told_apart():
    for x in (X, X[:, :, 1:], X.astype(np.float64), X.astype(">f4"), X.astype(np.float16), X.tolist()):
        array = np.asarray(x)
        dtype = np.float64 if array.dtype == np.float64 else np.float32
        for weight in (WEIGHT, WEIGHT[:, :, :2], WEIGHT.astype(np.float64)):
            wanted = np.result_type(dtype, weight)
            expected = fc.plan_conv2d(array.shape, weight, dtype=wanted, calls=1)(array.astype(wanted))
            for _ in range(2):
                y = fc.conv2d(x, weight)
                assert y.dtype == wanted
                assert_same_bits(y, expected)
    with pytest.raises(ValueError, match=r"^weight must have 8 input channels"):
        fc.conv2d(X, WEIGHT[:, :4])
    with pytest.raises(ValueError, match=r"^bias must have shape \(8,\)"):
        fc.conv2d(X, WEIGHT, BIAS[:4])


def test_another_rank_is_still_refused():
    fc.conv2d(X, WEIGHT)
    with pytest.raises(ValueError, match="^layout must be one of 'NCW', 'NWC'"):
        fc.conv1d(X, WEIGHT, layout="NCHW")


def test_options_that_cannot_be_looked_up_are_taken(kept):
    expected = fc.conv2d(X, WEIGHT, stride=(2, 2))
    kept.clear()
    for stride in ([2, 2], np.array([2, 2]), np.int64(2)):
        assert_same_bits(fc.conv2d(X, WEIGHT, stride=stride), expected)
    assert not kept


def test_a_refused_out_changes_nothing():
    expected = fc.conv2d(X, WEIGHT)
    for _ in range(2):
        with pytest.raises(ValueError, match="^out must have shape"):
            fc.conv2d(X, WEIGHT, out=np.empty((1, 1, 1, 1), np.float32))
        assert_same_bits(fc.conv2d(X, WEIGHT), expected)


def test_results_outlive_the_calls_that_follow(kept):
    """Calls at the same time never share a plan, and none returns memory that a plan keeps."""
    x = RNG.standard_normal((1, 64, 40, 40), dtype=np.float32)
    weights = [RNG.standard_normal((64, 64, 3, 3), dtype=np.float32) for _ in range(4)]
    expected = [fc.plan_conv2d(x.shape, weight, padding=1, calls=1)(x) for weight in weights]

    def call(index):
        return fc.conv2d(x, weights[index % 4], padding=1, num_threads=1)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(40)))
    assert len(kept) == 1
    for index, result in enumerate(results):
        assert result.tobytes() == expected[index % 4].tobytes()


def test_what_is_kept_is_bounded(kept):
    for size in range(kept.most + 9):
        fc.conv2d(np.ones((1, 1, 3, 3 + size), np.float32), np.ones((1, 1, 3, 3), np.float32))
    assert len(kept) == kept.most
    newest = list(kept)[-1]
    plan, given = kept[newest]
    assert kept[newest].nbytes >= plan.packed_bytes + plan.workspace_bytes + len(given)
    kept.most_size = 2 * kept[newest].nbytes
    kept.trim()
    assert 1 <= len(kept) <= 2
    assert newest in kept
    kept.most_size = 0
    fc.conv2d(X, WEIGHT)
    assert not kept
