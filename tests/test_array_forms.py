"""Every function takes arrays of any form, gives float32 for float16, and leaves what it was given alone."""

import numpy as np
import pytest

import fastconv as fc
from fastconv import functional, kernels
from support import LEVELS

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


X, WEIGHT, BIAS = array(2, 4, 6, 6), array(8, 4, 3, 3), array(8)
ROW, VAR, GRAD = array(4), np.square(array(4)), array(2, 8, 4, 4)
OFFSET, MASK = array(2, 18, 4, 4), array(2, 9, 4, 4)
Q, K, V = array(2, 5, 4), array(2, 3, 4), array(2, 3, 6)
ONES = (array(2, 4, 1, 1), array(2, 4, 1, 1), array(4, 4, 1, 1))

CALLS = {
    "conv1d": (fc.conv1d, (array(2, 4, 9), array(8, 4, 3), BIAS)),
    "conv2d": (fc.conv2d, (X, WEIGHT, BIAS)),
    "conv3d": (fc.conv3d, (array(1, 4, 4, 4, 4), array(8, 4, 2, 2, 2), BIAS)),
    "conv_transpose2d": (fc.conv_transpose2d, (X, array(4, 8, 3, 3), BIAS)),
    "conv2d_input_grad": (lambda g, w: functional.conv2d_input_grad(g, w, X.shape), (GRAD, WEIGHT)),
    "conv2d_weight_grad": (lambda g, x: functional.conv2d_weight_grad(g, x, WEIGHT.shape), (GRAD, X)),
    "deform_conv2d": (
        lambda x, o, w, b, m: fc.deform_conv2d(x, o, w, b, mask=m), (X, OFFSET, WEIGHT, BIAS, MASK)
    ),
    "deform_conv2d_input_grads": (
        lambda g, x, o, w, m: functional.deform_conv2d_input_grads(g, x, o, w, mask=m),
        (GRAD, X, OFFSET, WEIGHT, MASK),
    ),
    "deform_conv2d_weight_grad": (
        lambda g, x, o: functional.deform_conv2d_weight_grad(g, x, o, WEIGHT.shape), (GRAD, X, OFFSET)
    ),
    "separable_conv2d": (
        functional.separable_conv2d, (X, array(4, 1, 3, 3), array(8, 4, 1, 1), ROW, BIAS)
    ),
    "conv_matrix": (lambda w: fc.conv_matrix(w, (4, 6, 6)), (WEIGHT,)),
    "max_pool2d": (lambda x: functional.max_pool2d(x, 2), (X,)),
    "avg_pool2d": (lambda x: functional.avg_pool2d(x, 3, 2, 1), (X,)),
    "adaptive_avg_pool2d": (lambda x: functional.adaptive_avg_pool2d(x, 4), (X,)),
    "adaptive_avg_pool_grad": (lambda g: functional.adaptive_avg_pool_grad(g, (2, 8, 7, 7)), (GRAD,)),
    "interpolate": (lambda x: functional.interpolate(x, 9, mode="bilinear"), (X,)),
    "pad": (lambda x: functional.pad(x, (1, 2), "reflect"), (X,)),
    "pad_grad": (lambda g: functional.pad_grad(g, (2, 8, 4, 2), (1, 1), "reflect"), (GRAD,)),
    "pixel_shuffle": (lambda x: functional.pixel_shuffle(x, 2), (X,)),
    "linear": (functional.linear, (array(3, 4), array(8, 4), BIAS)),
    "linear_weight_grad": (functional.linear_weight_grad, (array(3, 8), array(3, 4))),
    "batch_norm": (functional.batch_norm, (X, ROW, VAR, ROW, ROW)),
    "batch_norm_training": (lambda *a: functional.batch_norm_training(*a)[0], (X, ROW, ROW)),
    "batch_norm_grad": (
        lambda *a: functional.batch_norm_grad(*a, training=True), (array(2, 4, 6, 6), X, ROW, VAR, ROW)
    ),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, 6, w, b), (X, array(6), array(6))),
    "group_norm": (lambda x, w, b: functional.group_norm(x, 2, w, b), (X, ROW, ROW)),
    "group_norm_grad": (lambda g, x, w: functional.group_norm_grad(g, x, 2, w), (array(2, 4, 6, 6), X, ROW)),
    "local_response_norm": (lambda x: functional.local_response_norm(x, 3), (X,)),
    "scaled_dot_product_attention": (functional.scaled_dot_product_attention, (Q, K, V)),
    "scaled_dot_product_attention_grad": (
        functional.scaled_dot_product_attention_grad, (array(2, 5, 6), Q, K, V)
    ),
    "attention_conv2d": (functional.attention_conv2d, (X, *ONES, ROW[:2], ROW[2:], ROW)),
    "relu": (functional.relu, (X,)),
    "gelu": (functional.gelu, (X,)),
    "silu_grad": (functional.silu_grad, (array(2, 4, 6, 6), X)),
    "leaky_relu_grad": (functional.leaky_relu_grad, (array(2, 4, 6, 6), X)),
    "prelu": (functional.prelu, (X, ROW)),
    "prelu_grad": (functional.prelu_grad, (array(2, 4, 6, 6), X, ROW)),
    "softmax": (functional.softmax, (X,)),
}  # fmt: skip


def field(given):
    """One of a record's fields: strides of five bytes."""
    records = np.zeros(given.shape, [("one", np.uint8), ("value", given.dtype)])
    records["value"] = given
    return records["value"]


def unaligned(given):
    result = np.zeros(given.nbytes + 1, np.uint8)[1:].view(given.dtype).reshape(given.shape)
    result[...] = given
    return result


FORMS = {
    "a record's field": field,
    "unaligned": unaligned,
    "big-endian": lambda given: given.astype(">f4"),
    "column by column": np.asfortranarray,
    "reversed": lambda given: given[..., ::-1].copy()[..., ::-1],
    "a list": lambda given: given.tolist(),
    "float64": lambda given: given.astype(np.float64),
}


def results(call, arrays):
    found = call(*arrays)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_any_form_of_each_argument(name, form):
    call, arrays = CALLS[name]
    expected = results(call, arrays)
    for index, given in enumerate(arrays):
        changed = FORMS[form](given)
        if isinstance(changed, np.ndarray):
            changed.flags.writeable = False
        for y, y0 in zip(
            results(call, (*arrays[:index], changed, *arrays[index + 1 :])), expected, strict=True
        ):
            assert y.shape == y0.shape
            np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(changed, given)


@pytest.mark.parametrize("name", CALLS)
def test_dtypes(name):
    call, arrays = CALLS[name]
    for given, expected in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        for y in results(call, [array.astype(given) for array in arrays]):
            assert y.dtype == expected


# Nothing to train on; no batch; or the shape of the input says how many images there are.
BATCHLESS = ("batch_norm_training", "conv_matrix", "conv2d_input_grad", "adaptive_avg_pool_grad", "pad_grad")


@pytest.mark.parametrize("name", sorted(CALLS.keys() - BATCHLESS))
def test_no_images(name):
    call, arrays = CALLS[name]
    batch = len(arrays[0])
    images = 1 if name == "attention_conv2d" else len(arrays)
    for y in results(
        call,
        [given[:0] if given.ndim > 1 and len(given) == batch else given for given in arrays[:images]]
        + list(arrays[images:]),
    ):
        assert np.isfinite(y).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(40, 64, 1, 1), (33, 19, 1, 1), (7, 48, 3, 3)], ids=str)
def test_weights_begin_anywhere_in_a_cache_line(shape, level):
    x, weight = array(1, shape[1], 6, 7), array(*shape)
    with kernels.use(level):
        expected = fc.conv2d(x, weight, algorithm="im2col")
        for first in range(1, 17):
            memory = np.empty(weight.size + first, weight.dtype)
            moved = memory[first:].reshape(shape)
            moved[...] = weight
            np.testing.assert_array_equal(fc.conv2d(x, moved, algorithm="im2col", num_threads=1), expected)
