"""The options of ``fit``, and the check that a call can work."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from course_utils.common.errors import CourseError
from course_utils.engine.inputs import CacheOptions, cache_options
from course_utils.engine.run_log import LEVELS
from course_utils.engine.sampling import seeded_draws
from course_utils.pretrained_models import last_layer

CHOOSE_BY = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class FitOptions:
    """Options of :func:`course_utils.training.fit`; the same names may be given to it as keyword arguments.

    Parameters
    ----------
    epochs
        At least 1.
    batch_size
        Pictures per step over all processes together, at least 1.
    seed
        Seed of shuffling, augmentation and dropout. The same seed on the same machine gives bit-identical weights.
    choose_by
        Score on the validation split that chooses the best epoch: ``"accuracy"``, or ``"macro_f1"``, to which a rare
        class counts as much as a frequent one.
    patience
        At least 1: stop after so many epochs without a better one; None trains to the end.
    label_smoothing
        In [0, 1): share of the target that is spread over all classes (Szegedy et al. 2016).
    class_weights
        One weight per class for the loss, for unbalanced data; None weighs all alike.
    oversample
        True for epochs that draw pictures with replacement, every class equally often on average
        (:class:`~course_utils.engine.sampling.BalancedOrder`). The data set needs ``labels``. Together with class
        weights the rare classes count twice.
    num_workers
        Number of processes that load pictures, 0 for small sets and data in memory; ``"auto"`` goes by a rule
        (:mod:`course_utils.engine.loading`). The weights that come out do not depend on it.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best there is. On CUDA: mixed precision (bfloat16, or
        float16 where that is missing), channels_last, pinned memory and copies that do not block.
    log
        Level of the record in a folder of its own (:mod:`course_utils.engine.run_log`): ``"full"``; ``"light"``,
        without weights, report and figures, for comparisons of many runs; ``"off"``, nothing. A folder that cannot be
        written is a warning, no error.
    resume
        True keeps a checkpoint after every epoch (:mod:`course_utils.engine.checkpoints`) and begins by looking for
        one: the same call, after a Stop or a killed kernel, continues there and gives the weights and the history of
        the unbroken run, bit by bit. After a finished run the same call is a new run. The name or folder of a run
        (``course runs``) continues that one.
    cache
        ``"auto"``: the frozen stages run once and their activations come from disk in every epoch, where the border
        stays the same, nothing is augmented at random, and the data are of the course
        (:mod:`course_utils.engine.inputs`); ``"on"``: an error where it cannot be; ``"off"`` or None: never;
        :class:`~course_utils.engine.inputs.CacheOptions` for augmented views, half precision or another folder.
        Losses are the same to about 1e-6.

    Raises
    ------
    CourseError
        If a value is out of its range.
    """

    epochs: int = 10
    batch_size: int = 32
    seed: int = 0
    choose_by: str = "accuracy"
    patience: int | None = None
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    oversample: bool = False
    num_workers: int | str = 0
    device: str | None = None
    log: str = "full"
    resume: bool | str | Path = False
    cache: str | CacheOptions | None = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CourseError(f"{name}={value}: it must be at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise CourseError(
                f"label_smoothing={self.label_smoothing}: it is a share, from 0 up to below 1; 0.1 is usual."
            )
        if self.choose_by not in CHOOSE_BY:
            raise CourseError(f"choose_by={self.choose_by!r} is unknown: give one of {', '.join(CHOOSE_BY)}.")
        if self.log not in LEVELS:
            raise CourseError(f"log={self.log!r} is unknown: give one of {', '.join(LEVELS)}.")
        if not isinstance(self.resume, bool | str | Path) or self.resume == "":
            raise CourseError(
                f"resume={self.resume!r}: give True, False, or the name or folder of a run (`course runs`)."
            )
        if self.resume and self.log == "off":
            raise CourseError(
                "resume keeps its checkpoint in the run's folder, and with log='off' there is none. Use log='light'."
            )
        if self.num_workers != "auto" and (not isinstance(self.num_workers, int) or self.num_workers < 0):
            raise CourseError(f"num_workers={self.num_workers!r}: give a number from 0 upwards, or 'auto'.")
        cache_options(self.cache)

    @classmethod
    def of(cls, options: FitOptions | None, keywords: dict[str, Any]) -> FitOptions:
        """Return the options with some of them replaced by keyword arguments; TypeError for an unknown name."""
        names = [field.name for field in fields(cls)]
        for name in keywords:
            if name not in names:
                raise TypeError(f"fit() has no option {name!r}; it has {', '.join(names)}.")
        return replace(options or cls(), **keywords)

    def as_settings(self) -> dict[str, Any]:
        """Return the options as plain values for the log of a run; the cache is described by the inputs."""
        settings = asdict(self)
        del settings["cache"]
        if self.class_weights is not None:
            settings["class_weights"] = [float(weight) for weight in self.class_weights]
        return settings | {"resume": self.resume if isinstance(self.resume, bool) else str(self.resume)}


def check_call(model: nn.Module, train: Sized, val: Sized, options: FitOptions) -> None:
    """Raise a :class:`CourseError` for data that this model cannot be trained on, before anything is spent."""
    classes = last_layer(model).out_features
    for name, dataset in (("train", train), ("val", val)):
        if len(dataset) == 0:
            raise CourseError(
                f"The {name} split is empty: there is nothing to {'learn from' if name == 'train' else 'choose by'}."
            )
        image, label = seeded_draws(dataset)[0]  # a look that moves no generator
        if not isinstance(image, Tensor):
            raise CourseError(
                f"The {name} split gives a {type(image).__name__} instead of a tensor: it has no transform. "
                "Use dataset.with_transform(eval_transform(weights)), or splits.with_transforms(...)."
            )
        labels = [int(label) for label in getattr(dataset, "labels", [label])]
        low, top = min(labels), max(labels)
        if low < 0:
            raise CourseError(f"The {name} split has a label {low}: labels count from 0.")
        if top >= classes:
            raise CourseError(
                f"The {name} split has labels up to {top}, the model's head has {classes} outputs (0 to "
                f"{classes - 1}). Build the model with num_classes={top + 1}."
            )
    weights = options.class_weights
    if weights is not None and len(weights) != classes:
        raise CourseError(f"class_weights has {len(weights)} entries, the head has {classes} outputs.")
