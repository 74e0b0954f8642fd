"""Few examples, and the same ones every time: quick, and a failure repeats. tests/robustness/fuzz.py looks further."""

from hypothesis import HealthCheck, settings

settings.register_profile("ours", derandomize=True, max_examples=40, deadline=None, database=None,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])  # fmt: skip
settings.load_profile("ours")
