"""What ``tests/hostile.py`` prints as a table: no bad input of its hundreds ends in a wrong result or a traceback."""

from __future__ import annotations

import hostile
import pytest
import torch


@pytest.mark.parametrize("kind", hostile.KINDS, ids=lambda kind: kind.__name__)
def test_bad_input_is_refused_by_a_sentence_or_read_right_and_nothing_is_lost(kind, tmp_path):
    torch.set_num_threads(1)
    faults = []
    for number, case in enumerate(kind()):
        end, text = case.ending(tmp_path / str(number))
        if end in hostile.FAULTS:
            faults.append(f"{case.name}: {end} {text[-300:]}")
    assert not faults, "\n".join(faults)


def test_there_are_three_hundred_of_them():
    assert len(hostile.all_cases()) >= 300
