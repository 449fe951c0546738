"""fastconv: convolution for CPUs, five algorithms behind one call, and layers that train."""

from fastconv import functional
from fastconv.comparison import Comparison, compare
from fastconv.environment import __version__, info
from fastconv.functional import conv2d, conv_matrix, plan_conv2d
from fastconv.plan import Plan
from fastconv.threads import get_num_threads, set_num_threads

__all__ = [
    "Comparison",
    "Plan",
    "__version__",
    "compare",
    "conv2d",
    "conv_matrix",
    "functional",
    "get_num_threads",
    "info",
    "plan_conv2d",
    "set_num_threads",
]
