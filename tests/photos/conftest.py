"""The commands are tried with the small networks, in seconds; their own default is tried in test_default_weights.py."""

import pytest


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    monkeypatch.setenv("COURSE_WEIGHTS", "mini")
