"""Benchmarks: one registry of real network layers, fastconv's algorithms, and the rivals beside them.

``python -m benchmarks.side_by_side`` prints the table; ``pytest benchmarks`` times the algorithms alone.
"""
