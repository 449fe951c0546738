"""fastconv: convolution for CPUs, five algorithms behind one call, and layers that train."""

__version__ = "0.1.0"

from fastconv import functional
from fastconv.functional import conv2d, plan_conv2d
from fastconv.plan import Plan
from fastconv.threads import get_num_threads, set_num_threads

__all__ = ["Plan", "__version__", "conv2d", "functional", "get_num_threads", "plan_conv2d", "set_num_threads"]
