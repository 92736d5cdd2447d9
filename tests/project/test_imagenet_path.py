"""COURSE_WEIGHTS=imagenet, as far as that goes without a network: both notebooks up to their first training step.

torchvision's weights cannot travel with the course. Files of the same names and shapes, filled with random numbers,
stand in for them, so that everything around the numbers is tried: names, sizes, transforms, heads and memory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell
from PIL import Image
from torchvision import models

from course_tools.authoring import notebooks
from course_tools.authoring.notebooks import read_notebook, run_notebook, write_notebook
from course_utils.common.weight_files import weights_path
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.settings import BASIC_MODEL, MODELS

ROOT = Path(__file__).parents[2]
NETWORKS = sorted({BASIC_MODEL["imagenet"], *MODELS["imagenet"].values()})
OTHERS = ["efficientnet_b0", "resnet18", "vgg16"]  # day 20 shows these three beside each other

# The first cell of the notebook under test. A tally is added to right behind the optimizer's step.
STOP = """
from course_utils.engine.metrics import EpochMetrics

class FirstTrainingStepDone(Exception):
    pass

def stop(tally, logits, labels):
    raise FirstTrainingStepDone(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}")

EpochMetrics.add = stop
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache folder with placeholder weights, a few photographs, and nothing else."""
    home = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        patch.setattr(torch.hub, "_hub_dir", None)
        for name in sorted({*NETWORKS, *OTHERS}):
            write_placeholder(name)
    yield {
        **os.environ,
        "TORCH_HOME": str(home),
        "COURSE_UNVERIFIED_WEIGHTS": "1",  # their SHA-256 is that of random numbers
        "COURSE_WEIGHTS": "imagenet",
        "COURSE_DATASET": str(write_photographs(tmp_path_factory.mktemp("photos"))),
        "COURSE_RUNS": str(tmp_path_factory.mktemp("runs")),
        "PYTHONPATH": str(ROOT / "tests" / "offline"),
        "OMP_WAIT_POLICY": "PASSIVE",  # two threads that spin, beside another process that tests, take minutes
    }
    shutil.rmtree(home)  # most of a gigabyte


def write_placeholder(name):
    torch.manual_seed(0)
    path = weights_path(weights_entry(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(models.get_model(name, weights=None).state_dict(), path)


def write_photographs(folder):
    pixels = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (folder / name).mkdir()
        for number in range(8):
            picture = pixels.integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.jpg")
    return folder


@pytest.mark.kernel
@pytest.mark.parametrize("day", ["day20", "day21"])
def test_a_notebook_reaches_its_first_training_step(day, environment, tmp_path):
    notebook = read_notebook(ROOT / "notebooks" / f"{day}.ipynb")
    notebook.cells.insert(0, new_code_cell(STOP))
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "results", tmp_path / "results")
    write_notebook(notebook, tmp_path / "notebooks" / f"{day}.ipynb")
    execution = run_notebook(tmp_path / "notebooks" / f"{day}.ipynb", environ=environment)
    assert execution.failure is not None, "no cell called fit"
    assert execution.failure.error.startswith("FirstTrainingStepDone"), f"{execution.failure}"
    outputs = [output for cell in notebooks.code_cells(execution.notebook) for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "weights: imagenet" in text
    if day == "day21":
        assert all(name in text for name in MODELS["imagenet"].values())
        assert text.count("M at 224 px") == 4


def test_every_network_of_the_setting_loads_from_its_file(environment, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", environment["TORCH_HOME"])
    monkeypatch.setenv("COURSE_UNVERIFIED_WEIGHTS", "1")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in NETWORKS:
        assert load_pretrained(name, num_classes=2)(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
