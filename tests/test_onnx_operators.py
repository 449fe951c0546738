"""The operator cases of the onnx package for what fastconv has, called as functions."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import onnx_operators

onnx = pytest.importorskip("onnx", reason="the operator cases are part of the onnx package")

# Cases without any of these operators are not ours to count.
FAMILIES = frozenset(onnx_operators.OPERATORS)
# Left out, with the reason; a test below holds the list to exactly these.
LEFT_OUT = {
    "dtype uint8": 1,
    "dtype int32": 3,
    "storage_order 1": 1,
    "PRelu with a slope for more than a channel": 2,
}


def stored_cases(suite):
    """(name, model, inputs, expected outputs) of the cases that lie in the wheel as files."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / suite
    for case in sorted(folder.iterdir()):
        model = onnx.load(case / "model.onnx")
        for data in sorted(case.glob("test_data_set_*")):
            inputs, outputs = (
                [
                    onnx.numpy_helper.to_array(onnx.load_tensor(data / f"{kind}_{index}.pb"))
                    for index in range(len(list(data.glob(f"{kind}_*.pb"))))
                ]
                for kind in ("input", "output")
            )
            yield f"{suite}/{case.name}", model, inputs, outputs


def generated_cases():
    """The same for the cases the package computes, one node each; not their expansions into others."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some reference implementations overflow on purpose
        cases = collect_testcases(None)
    for case in cases:
        if "_expanded" not in case.name:
            for inputs, outputs in case.data_sets:
                yield f"node/{case.name}", case.model, inputs, outputs


def ours(model):
    return any(node.op_type in FAMILIES for node in model.graph.node)


def all_cases():
    for cases in (stored_cases("pytorch-converted"), stored_cases("pytorch-operator"), generated_cases()):
        yield from (case for case in cases if ours(case[1]))


def test_operator_cases():
    passed, left_out, failed = [], {}, {}
    for name, model, inputs, expected in all_cases():
        try:
            outputs = onnx_operators.execute(model, inputs)
        except onnx_operators.Unsupported as reason:
            left_out[name] = str(reason)
            continue
        except (TypeError, ValueError) as error:
            failed[name] = repr(error)
            continue
        try:
            for y, target in zip(outputs, expected, strict=True):
                if y is None:
                    continue  # an output that only ONNX has
                np.testing.assert_allclose(y, target, rtol=1e-3, atol=1e-7)
            passed.append(name)
        except AssertionError as error:
            failed[name] = str(error)
    reasons = Counter(left_out.values())
    print(f"\n{len(passed)} passed, {len(failed)} failed, {len(left_out)} left out: {dict(reasons)}")
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert dict(reasons) == LEFT_OUT
    assert len(passed) > 200
