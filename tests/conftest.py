"""What holds for all tests."""

import os
import signal

import pytest

# Whoever starts the tests in the background of a script has them ignore Ctrl-C, and what they start inherits that: a
# test that stops a program by Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cached_activations_go_to_a_temporary_folder(tmp_path_factory):
    """``fit`` caches activations by itself, and tests must not fill the cache of whoever runs them either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ACTIVATIONS", str(tmp_path_factory.mktemp("activations")))
        yield


@pytest.fixture(scope="session", autouse=True)
def runs_go_to_a_temporary_folder(tmp_path_factory):
    """``fit`` writes a log of every run; those of tests must not pile up in the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.delenv("COURSE_TENSORBOARD", raising=False)
        yield os.environ["COURSE_RUNS"]
