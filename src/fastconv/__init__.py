"""fastconv: convolution for CPUs, five algorithms behind one call, and layers that train."""

__version__ = "0.1.0"

from fastconv.threads import get_num_threads, set_num_threads

__all__ = ["__version__", "get_num_threads", "set_num_threads"]
