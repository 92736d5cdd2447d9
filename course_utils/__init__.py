"""The package that the notebooks of the transfer-learning course import.

Two ideas carry it: every network is a row of named stages (:mod:`course_utils.pretrained_models`), and how to transfer
is data (:mod:`course_utils.fine_tuning`). The loop is in :mod:`course_utils.training`; CONTRIBUTING.md draws the house.
"""

__version__ = "0.1.0"
