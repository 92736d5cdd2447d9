"""What holds for all tests."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def runs_go_to_a_temporary_folder(tmp_path_factory):
    """``fit`` writes a log of every run; those of tests must not pile up in the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.delenv("COURSE_TENSORBOARD", raising=False)
        yield os.environ["COURSE_RUNS"]
