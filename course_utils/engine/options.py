"""The options of ``fit``."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from course_utils.common.errors import CourseError
from course_utils.engine.devices import PRECISIONS
from course_utils.engine.inputs import CacheOptions, cache_options
from course_utils.engine.mixing import MIXES
from course_utils.engine.run_log import LEVELS

CHOOSE_BY = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class FitOptions:
    """Options of :func:`course_utils.training.fit`; the same names may be given to it as keyword arguments.

    Parameters
    ----------
    epochs
        At least 1.
    batch_size
        Pictures per step over all processes together, at least 1. A last batch of a single picture joins the one
        before it (:func:`~course_utils.engine.sampling.batches_of`).
    seed
        At least 0: seed of shuffling, augmentation and dropout. On a CPU the same seed gives bit-identical weights, on
        the same machine with as many threads. A GPU draws the same numbers too, but some of its algorithms add in no
        fixed order, so the last bits differ from run to run.
    choose_by
        Score on the validation split that chooses the best epoch: ``"accuracy"``, or ``"macro_f1"``, to which a rare
        class counts as much as a frequent one.
    patience
        At least 1: stop after so many epochs without a better one; None trains to the end.
    label_smoothing
        In [0, 1): share of the target that is spread over all classes (Szegedy et al. 2016).
    class_weights
        One weight per class for the loss, above 0, for unbalanced data; None weighs all alike.
    oversample
        True for epochs that draw pictures with replacement, every class equally often on average
        (:class:`~course_utils.engine.sampling.BalancedOrder`). The data set has to say its labels
        (:func:`~course_utils.data.samples.labels_of`). Together with class weights the rare classes count twice.
    mix
        ``"mixup"`` or ``"cutmix"`` to learn from mixed pictures with mixed labels
        (:mod:`course_utils.engine.mixing`); None for pictures as they are. The training loss and accuracy of an epoch
        are then those of mixed pictures under their first label, and no activations are cached.
    ema
        Decay of an average of the weights over the last steps, in (0, 1); 0.99 remembers about a hundred. Validation
        and the weights that are kept are those of the average (:mod:`course_utils.engine.averaging`). None for none.
    num_workers
        Number of processes that load pictures, 0 for small sets and data in memory; ``"auto"`` goes by a rule
        (:mod:`course_utils.engine.loading`). The weights that come out do not depend on it.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best there is. On CUDA: mixed precision, channels_last,
        pinned memory and copies that do not block.
    precision
        ``"float32"``, or mixed: ``"bfloat16"`` (on a CPU or a GPU that computes in it), ``"float16"`` (on CUDA);
        ``"auto"`` is float32, on CUDA bfloat16 or, on GPUs without it, float16. Weights stay float32. In float16 the
        loss is scaled, and a step whose gradients are too large for it is left out; its batch counts in the schedule.
    log
        Level of the record in a folder of its own (:mod:`course_utils.engine.run_log`): ``"full"``; ``"light"``,
        without weights, report and figures, for comparisons of many runs; ``"off"``, nothing. A folder that cannot be
        written is a warning, no error.
    resume
        True keeps a checkpoint after every epoch (:mod:`course_utils.engine.checkpoints`) and begins by looking for
        one: the same call, after a Stop or a killed kernel, continues there and gives the weights and the history of
        the unbroken run (on a CPU bit by bit). After a finished run the same call is a new run. The name or folder of
        a run (``course runs``) continues that one.
    cache
        ``"auto"``: the stages that never learn run once and their activations come from disk in every epoch, where
        there are any, nothing is augmented at random, and the data are of the course
        (:mod:`course_utils.engine.inputs`); ``"on"``: an error where it cannot be; ``"off"`` or None: never;
        :class:`~course_utils.engine.inputs.CacheOptions` for augmented views, half precision or another folder.
        Losses are the same to about 1e-6, in mixed precision to its rounding.

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
    mix: str | None = None
    ema: float | None = None
    num_workers: int | str = 0
    device: str | None = None
    precision: str = "auto"
    log: str = "full"
    resume: bool | str | Path = False
    cache: str | CacheOptions | None = "auto"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0), ("num_workers", 0)):
            value = getattr(self, name)
            if not (value is None and name == "patience") and not (value == "auto" and name == "num_workers"):
                object.__setattr__(self, name, _whole_number(name, value, least))  # NumPy's too, which JSON lacks
        if not isinstance(self.label_smoothing, numbers.Real) or not 0 <= self.label_smoothing < 1:
            raise CourseError(
                f"label_smoothing={self.label_smoothing!r}: it is a share, from 0 up to below 1; 0.1 is usual."
            )
        object.__setattr__(self, "label_smoothing", float(self.label_smoothing))
        _check_weights(self.class_weights)
        if self.mix is not None and self.mix not in MIXES:
            raise CourseError(f"mix={self.mix!r} is unknown: give one of {', '.join(MIXES)}, or None.")
        if self.ema is not None and not (isinstance(self.ema, numbers.Real) and 0 < self.ema < 1):
            raise CourseError(f"ema={self.ema!r}: the decay is between 0 and 1, 0.99 for instance; or None.")
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
        if self.precision not in ("auto", *PRECISIONS):
            raise CourseError(
                f"precision={self.precision!r} is unknown: give 'auto' or one of {', '.join(PRECISIONS)}."
            )
        if cache_options(self.cache).mode == "on" and self.mix is not None:
            raise CourseError(
                "cache='on' cannot be with mix: pictures are mixed anew in every epoch. Use cache='auto'."
            )

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


def _whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral) or value < least:
        auto = ", or 'auto'" if name == "num_workers" else ""
        raise CourseError(f"{name}={value!r}: give a whole number, at least {least}{auto}.")
    return int(value)


def _check_weights(weights: Any) -> None:
    """Raise a CourseError for class weights that are not all finite and above 0."""
    if weights is None:
        return
    try:
        fine = all(0 < float(weight) < math.inf for weight in weights)
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise CourseError(
            f"class_weights={weights!r:.100}: give a list with a number above 0 for every class, 1 for the usual "
            "weight. To leave a class out, leave its pictures out."
        )
