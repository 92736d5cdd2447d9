"""The default needs no network: the stored notebooks run, in ``course test``, in kernels that cannot reach one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OFFLINE = Path(__file__).parents[1] / "offline"


def run_offline(code):
    env = {**os.environ, "PYTHONPATH": str(OFFLINE)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "import socket; socket.getaddrinfo('download.pytorch.org', 443)",
        "import urllib.request; urllib.request.urlopen('https://download.pytorch.org/', timeout=5)",
        "import socket; socket.socket().connect_ex(('192.0.2.1', 80))",
    ],
)
def test_a_process_with_the_block_reaches_nobody(attempt):
    result = run_offline(attempt)
    assert result.returncode != 0
    assert "there is no network in this test" in result.stderr


def test_a_process_with_the_block_reaches_itself():
    code = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).sendall(b'hello')\n"
        "print(server.accept()[0].recv(5))"
    )
    assert run_offline(code).stdout.strip() == "b'hello'"


def test_the_notebooks_of_the_default_run_are_tested_without_a_network(pytestconfig):
    """conftest.py puts the block in front of every kernel that nbval starts, unless other data are asked for."""
    if pytestconfig.getoption("no_compare"):
        pytest.skip("other data may have to be downloaded")
    assert str(OFFLINE) in os.environ.get("PYTHONPATH", "").split(os.pathsep)
