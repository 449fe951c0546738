"""fastconv: convolution for CPUs, five algorithms behind one call, and layers that train.

fc.conv1d/2d/3d, fc.plan_conv…  compute a convolution; prepare one for many calls
fc.compare, fc.conv_matrix     see how it is computed
fc.nn, fc.training             layers and models; losses, optimizers, the training loop
fc.functional                  what layers are made of, gradients included
fc.plot                        pictures of receptive fields
fc.load                        a saved model
"""

import importlib

from fastconv import functional
from fastconv.comparison import Comparison, compare
from fastconv.environment import __version__, info
from fastconv.functional import (
    avg_pool2d,
    conv1d,
    conv2d,
    conv3d,
    conv_matrix,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    deform_conv2d,
    max_pool2d,
    plan_conv1d,
    plan_conv2d,
    plan_conv3d,
    plan_conv_transpose1d,
    plan_conv_transpose2d,
    plan_conv_transpose3d,
)
from fastconv.measurement import remember_measurements
from fastconv.plan import Plan
from fastconv.threads import get_num_threads, set_num_threads

__all__ = [
    "Comparison",
    "Plan",
    "__version__",
    "avg_pool2d",
    "compare",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_matrix",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "count_parameters",
    "deform_conv2d",
    "functional",
    "get_num_threads",
    "info",
    "load",
    "max_pool2d",
    "nn",
    "plan_conv1d",
    "plan_conv2d",
    "plan_conv3d",
    "plan_conv_transpose1d",
    "plan_conv_transpose2d",
    "plan_conv_transpose3d",
    "plot",
    "receptive_field",
    "remember_measurements",
    "set_num_threads",
    "training",
]

# Layers and training would double the time `import fastconv` takes, so they load when first named.
_LATE = {
    "nn": "fastconv.nn",
    "training": "fastconv.training",
    "plot": "fastconv.plot",
    "count_parameters": "fastconv.nn",
    "load": "fastconv.nn",
    "receptive_field": "fastconv.nn",
}


def __getattr__(name):
    if name not in _LATE:
        raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
    module = importlib.import_module(_LATE[name])
    value = module if _LATE[name] == f"fastconv.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
