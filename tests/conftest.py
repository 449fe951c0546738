"""Hypothesis profiles: the default draws the same examples every time, so that a failure can be repeated.

``HYPOTHESIS_PROFILE=explore pytest`` draws new and many more of them.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from fastconv import threads

_COMMON = {
    "deadline": None,  # the first call of a shape may page in code; time is the benchmarks' concern
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("ci", max_examples=40, derandomize=True, **_COMMON)
settings.register_profile("explore", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def threads_for_small_images():
    """Several threads, where they are asked for, for images of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "ELEMENTS_PER_THREAD", 1)
        patch.setattr(threads, "MULTIPLICATIONS_PER_THREAD", 1)
        yield
