"""authoring/networks_page.py: the table of networks is in step with the code."""

from __future__ import annotations

import pytest
from torchvision import models

from course_tools.authoring.networks_page import COLUMNS, INTRODUCTION, PAGE, row_of

TEXT = PAGE.read_text(encoding="utf-8")
CELLS = [tuple(line[2:-2].split(" | ")) for line in TEXT.splitlines() if line.startswith("| `")]
ROWS = {cells[0].strip("`"): cells for cells in CELLS}
MEMBERS = (
    *("alexnet", "vgg11", "googlenet", "resnet18", "inception_v3", "squeezenet1_1", "densenet121", "mobilenet_v2"),
    *("shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "vit_b_32"),
    *("swin_t", "convnext_tiny", "maxvit_t"),
)


def test_the_page_has_a_row_for_every_classification_network_of_torchvision():
    assert TEXT.startswith(INTRODUCTION) and f"| {' | '.join(COLUMNS)} |" in TEXT
    assert list(ROWS) == models.list_models(module=models)
    assert {row[1] for row in ROWS.values()} == {ROWS[name][1] for name in MEMBERS}, "one of each family is measured"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_row_says_what_is_measured(name):
    assert ROWS[name] == row_of(name)
