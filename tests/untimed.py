"""Settings of Hypothesis for tests that take long at times."""

from hypothesis import HealthCheck, settings

# A busy machine must not fail a test.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
