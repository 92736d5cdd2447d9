"""A Stop in a notebook: one sentence instead of a traceback, and *Run All* ends with the cell that was stopped."""

from __future__ import annotations

import os
import queue

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from course_tools.authoring.notebooks import kernel_environment

pytestmark = pytest.mark.kernel

TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers import ColourPatches
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.training import fit, last_run

class Announced:
    def on_epoch_end(self, run, model):
        print(f"epoch {{len(run.history)}}", flush=True)

model = FEATURE_EXTRACTION.starting_model("resnet18_mini", 3)
train, val = ColourPatches(12, seed=1), ColourPatches(6, seed=2)
runs = []
for seed in range(3):
    runs.append(fit(model, train, val, FEATURE_EXTRACTION, epochs=100_000, seed=seed, log="off", hooks=[Announced()]))
"""


@pytest.fixture
def kernel():
    """A client of a fresh kernel of this Python."""
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    manager.start_kernel(env=kernel_environment(os.environ))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def wait_for(client, wanted):
    """The messages of the kernel up to the one that `wanted` accepts."""
    seen = []
    while True:
        try:
            seen.append(client.get_iopub_msg(timeout=120))
        except queue.Empty:
            raise AssertionError(f"it never came; the kernel said {[m['content'] for m in seen]}") from None
        if wanted(seen[-1]):
            return seen


def test_a_stop_ends_the_cell_its_loop_and_run_all(kernel):
    manager, client = kernel
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # As Run All does: the next cell is waiting in the kernel while this one runs.
    first, second = client.execute(TRAIN.format(tests=tests)), client.execute("print('the next cell ran')")
    wait_for(client, lambda message: "epoch 2" in message["content"].get("text", ""))
    manager.interrupt_kernel()
    replies = {}
    while not {first, second} <= replies.keys():
        reply = client.get_shell_msg(timeout=120)
        replies[reply["parent_header"]["msg_id"]] = reply["content"]
    assert replies[first]["status"] == "error" and replies[second]["status"] == "aborted"
    (line,) = replies[first]["traceback"]
    assert line.startswith("Stopped in epoch ") and "; the same call begins anew" in line and "Traceback" not in line
    after = client.execute("print(len(runs), last_run().stopped, len(last_run().history) > 1, model.training)")
    said = wait_for(client, lambda m: m["parent_header"].get("msg_id") == after and "text" in m["content"])
    assert said[-1]["content"]["text"] == "0 interrupted True False\n"
    assert not any("the next cell ran" in message["content"].get("text", "") for message in said)
