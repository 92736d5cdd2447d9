"""Weights, data, device and seed of a notebook, decided in one place.

Five environment variables change everything that the course does:

=====================  ==========================================================================================
``COURSE_WEIGHTS``     ``mini`` (embedded in the package; default of the lessons), ``lite`` (EfficientNet-Lite0 with
                       ImageNet weights, installed with the course; default of the commands for your own photos), or
                       ``imagenet`` (torchvision's, downloaded once)
``COURSE_DATASET``     ``pets`` (default, drawn on first use), ``hymenoptera``, or your own photos: a folder with one
                       sub-folder per class, or a ``.csv`` file with the columns ``file`` and ``label``
``COURSE_CACHE``       folder for data sets (default: in the user's cache folder)
``COURSE_DATA_MIRROR`` folder that is searched before anything is downloaded
``COURSE_SEED``        seed of everything random (default: 0)
=====================  ==========================================================================================

Others belong to one module each: ``COURSE_RUNS`` and ``COURSE_TENSORBOARD`` to :mod:`course_utils.engine.run_log`,
``COURSE_ACTIVATIONS`` to :mod:`course_utils.engine.activation_cache`, ``COURSE_QUIZ`` to
:mod:`course_tools.study.quiz_progress`.

The command imports this module before anything is installed: only the standard library at the top.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from course_utils.common.errors import CourseError

WEIGHTS = ("mini", "lite", "imagenet")
DATASETS = ("pets", "hymenoptera")

# Day 20 works with the basic model, day 21 compares one of each family.
BASIC_MODEL = {"mini": "resnet18_mini", "lite": "efficientnet_lite0", "imagenet": "resnet18"}
MODELS = {
    "mini": {
        "vgg": "vgg11_mini",
        "resnet": "resnet18_mini",
        "efficientnet": "efficientnet_b0_mini",
        "mobilenet": "mobilenet_v3_small_mini",
    },
    "imagenet": {
        "vgg": "vgg16",
        "resnet": "resnet50",
        "efficientnet": "efficientnet_b0",
        "mobilenet": "mobilenet_v3_small",
    },
}
# One network has real weights without a download. Day 21 shows what the size of a network is worth: the small ones
# beside it.
MODELS["lite"] = {"efficientnet_lite": "efficientnet_lite0", **MODELS["mini"]}
BASIC_FAMILY = {"mini": "resnet", "lite": "efficientnet_lite", "imagenet": "resnet"}

# What a lesson spends, so that each day stays within ten minutes on two cores. To train all of EfficientNet-Lite0 on
# one picture takes a core 0.1 s at its own 224 pixels, 0.04 s at 160 and 0.03 s at 128 (resnet18_mini: 0.01 s).
# Logistic regression on frozen features, penalty 10, on hymenoptera (195 pictures to train), right of 153 for test and
# 49 for validation: 145 and 44 at 224 pixels, 144 and 45 at 160, 142 and 43 at 128. What 160 pixels cost is finer
# detail and heat maps of 5 × 5 positions instead of 7 × 7. Two seeds instead of three save a third of the time and show
# the spread less surely.
ENTRY = {"lite": "IMAGENET1K_V1_AT_160"}
SEEDS = {"mini": 3, "lite": 2, "imagenet": 3}


@dataclass(frozen=True)
class Settings:
    """Weights, data, device (``"cuda"``, ``"mps"`` or ``"cpu"``) and seed of a notebook; see :func:`load_settings`."""

    weights: str
    dataset: str
    device: str
    cache: Path
    mirror: Path | None
    seed: int = 0

    @property
    def model(self) -> str:
        """Name of the network that a lesson works with when one is enough."""
        return BASIC_MODEL[self.weights]

    @property
    def models(self) -> dict[str, str]:
        """Family (``"vgg"``, ``"resnet"``, ``"efficientnet"``, ``"mobilenet"``, …) → name of its network."""
        return dict(MODELS[self.weights])

    @property
    def family(self) -> str:
        """Family of :attr:`model`, ``"resnet"`` or ``"efficientnet_lite"``."""
        return BASIC_FAMILY[self.weights]

    @property
    def entry(self) -> str:
        """Name of the weights entry by which a lesson prepares pictures for :attr:`model`.

        ``"DEFAULT"`` is the size that the weights ask for; ``lite`` has an entry for smaller pictures, see ``ENTRY``.
        """
        return ENTRY.get(self.weights, "DEFAULT")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that a lesson compares: ``(0, 1, 2)``, with ``lite`` ``(0, 1)``; see ``SEEDS``."""
        return tuple(range(SEEDS[self.weights]))

    @property
    def is_default(self) -> bool:
        """True for the run whose outputs are stored: mini weights on the drawn pets, seed 0."""
        return self.weights == "mini" and self.dataset == "pets" and self.seed == 0

    def claim(self, text: str, holds: bool) -> None:
        """Print a statement of the lesson, and if it ``holds`` for the numbers at hand.

        Raises
        ------
        AssertionError
            If it does not hold on the default data: then the lesson is wrong. On other data that is a finding.
        """
        if self.is_default and not holds:
            raise AssertionError(f"The lesson claims: {text}. The numbers of this run do not bear it out.")
        print(f"{'Holds' if holds else 'Does not hold on this data'}: {text}.")

    def __str__(self) -> str:
        # The last name alone: a stored output must not show where somebody keeps their photos.
        path = Path(self.dataset)
        kind = "list" if path.suffix.lower() == ".csv" and not path.is_dir() else "folder"
        data = self.dataset if self.dataset in DATASETS else f"the {kind} {path.name!r}"
        model = self.model if self.entry == "DEFAULT" else f"{self.model}, {self.entry}"
        return f"weights: {self.weights} ({model})   data: {data}   device: {self.device}   seed: {self.seed}"


def default_weights(data: str | None = None) -> str:
    """Return the weights of a command that is told no others, by its data; None for no data.

    They are ``"lite"``, real ImageNet weights for real photographs; for the drawn pets ``"mini"``, as in the lessons.
    """
    return "mini" if data == "pets" else "lite"


def load_settings(environ: Mapping[str, str] | None = None, weights: str = "mini") -> Settings:
    """Return the settings of the environment; `weights` are those without ``COURSE_WEIGHTS``.

    Raises
    ------
    CourseError
        If ``COURSE_WEIGHTS`` is not a known choice, ``COURSE_DATASET`` neither a known name nor a folder or list that
        exists, or ``COURSE_SEED`` no whole number.
    """
    environ = os.environ if environ is None else environ
    weights = environ.get("COURSE_WEIGHTS") or weights
    if weights not in WEIGHTS:
        raise CourseError(f"COURSE_WEIGHTS={weights!r} is unknown: set it to one of {', '.join(WEIGHTS)}, or unset it.")
    seed = environ.get("COURSE_SEED") or "0"
    if not seed.isdecimal():
        raise CourseError(f"COURSE_SEED={seed!r} is not a whole number from 0 upwards.")
    mirror = environ.get("COURSE_DATA_MIRROR")
    return Settings(
        weights=weights,
        dataset=check_dataset(environ.get("COURSE_DATASET") or "pets"),
        device=best_device(),
        cache=cache_folder(environ),
        mirror=Path(mirror).expanduser() if mirror else None,
        seed=int(seed),
    )


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder for everything that the course keeps: ``$COURSE_CACHE``, or a folder in the user's cache."""
    import pooch

    environ = os.environ if environ is None else environ
    return Path(environ.get("COURSE_CACHE") or pooch.os_cache("transfer-learning-course")).expanduser()


def check_dataset(name_or_path: str) -> str:
    """Return the name, or the folder or list as an absolute path; raise :class:`CourseError` if it is none of them.

    Parameters
    ----------
    name_or_path
        One of ``DATASETS``, a folder with one sub-folder per class, or a ``.csv`` file of files and labels. Pictures
        are not checked here.
    """
    if name_or_path in DATASETS:
        return name_or_path
    path = Path(os.path.expanduser(name_or_path))  # unlike Path's, it leaves ~nobody alone
    if path.is_dir():
        return str(path.resolve())
    if path.suffix.lower() == ".csv" and path.is_file():
        return str(path.absolute())  # unresolved: the names in a list start from where the list is seen
    raise CourseError(
        f"COURSE_DATASET={name_or_path!r} is neither one of {', '.join(DATASETS)} nor a folder or .csv file that "
        "exists. A folder of photos has one sub-folder per class; a .csv file has the columns file and label."
    )


def best_device() -> str:
    """Return ``"cuda"`` with an NVIDIA or AMD GPU, ``"mps"`` on Apple silicon, else ``"cpu"``."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
