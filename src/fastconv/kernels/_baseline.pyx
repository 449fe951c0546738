"""The kernels, compiled for the baseline CPU (x86-64-v2 without its integer extras, or any other machine's default)."""

include "sources.pyx"
