"""The package that the notebooks of the transfer-learning course import.

Two ideas carry it: every network is a row of named stages (:mod:`course_utils.pretrained_models`), and how to transfer
is data (:mod:`course_utils.fine_tuning`). The loop is in :mod:`course_utils.training`; CONTRIBUTING.md draws the house.
"""

import os

# OpenMP's threads wait for each other by spinning, and where another program uses a core too, a lesson of a minute and
# a half took nine. torch reads this when it is loaded; what is started from here, such as kernels, inherits it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
