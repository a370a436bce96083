"""Hypothesis: the same examples every time, so that a run tells about the code; HYPOTHESIS_PROFILE=explore looks further."""

import os

from hypothesis import HealthCheck, settings

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, max_examples=150, suppress_health_check=_SLOW
)
settings.register_profile("explore", deadline=None, max_examples=3000, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
