"""The package that the notebooks of the transfer-learning course import.

Start reading in :mod:`course_utils.pretrained_models`; CONTRIBUTING.md lists the modules in order.
"""

__version__ = "0.1.0"
