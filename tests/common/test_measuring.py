"""measuring.py: a results file says by which command, when and on what it was measured."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import torch

from course_utils.common.measuring import circumstances, hardware


def test_circumstances_name_command_date_machine_and_python():
    before = datetime.now(UTC).date().isoformat()
    found = circumstances("course compare pets", "cpu")
    after = datetime.now(UTC).date().isoformat()
    assert list(found) == ["command", "date", "hardware", "python"]
    assert found["command"] == "course compare pets" and before <= found["date"] <= after
    assert found["hardware"] == hardware("cpu") and found["python"] == platform.python_version()


def test_hardware_of_a_cpu_names_threads_and_torch():
    assert hardware("cpu") == (
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
