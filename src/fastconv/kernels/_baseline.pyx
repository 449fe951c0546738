"""The kernels, compiled for the baseline: SSE4.2, or what another machine has by default."""

include "sources.pyx"
