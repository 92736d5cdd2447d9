"""The inputs of ``fit``: pictures for the whole network, or cached activations for the part behind the border.

:func:`inputs_for` decides. A cache is used where it changes nothing but the time:

* some stages never learn in the run (feature extraction, last block): the border is behind them;
* nothing is augmented at random, or augmented views are asked for;
* the network is its stages one after another: no hook, no ``forward`` of its own, nothing that cannot be read off;
* with ``"auto"``, only for more than one epoch, and for data whose fingerprint can be read off: the course's own data
  sets with torchvision's transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError, warn
from course_utils.engine.activation_cache import CachedActivations, cache_activations, cut
from course_utils.engine.fingerprints import CannotFingerprint, is_random, key_of_data, key_of_front
from course_utils.engine.processes import all_processes_agree
from course_utils.fine_tuning import Plan

MODES = ("auto", "on", "off")
LARGEST_AUTO = 4_000_000_000  # largest cache in bytes with the mode "auto"


@dataclass(frozen=True)
class CacheOptions:
    """Options of the activation cache.

    Parameters
    ----------
    mode
        ``"auto"``: where it changes nothing but the time. ``"on"``: an error where it cannot be. ``"off"``: never.
    views
        Number of augmented views of each training picture; epoch e learns from view e modulo `views`. 1 for training
        without augmentation.
    dtype, folder
        Same as in :func:`~course_utils.engine.activation_cache.cache_activations`.
    """

    mode: str = "auto"
    views: int = 1
    dtype: str = "float32"
    folder: str | Path | None = None


@dataclass(frozen=True)
class Inputs:
    """Data sets of pictures, or of activations in front of the stage `border`; `reason` says why there is no cache."""

    train: Dataset
    val: Dataset
    border: str | None = None
    reason: str = ""

    def learner(self, model: nn.Module) -> nn.Module:
        """Return the model, or its part behind the border, which is made of the model's own modules."""
        return model if self.border is None else cut(model, self.border)[1]

    def facts(self, asked: CacheOptions) -> dict[str, Any]:
        """Return plain values for the log of the run."""
        if self.border is None:
            return {"asked": asked.mode, "used": False, "reason": self.reason}
        return {
            "asked": asked.mode,
            "used": True,
            "reused": self.train.reused and self.val.reused,
            "border": self.border,
            "views": self.train.views,
            "dtype": self.train.dtype,
            "train": self.train.name,
            "val": self.val.name,
        }


def cache_options(cache: str | CacheOptions | None) -> CacheOptions:
    """Return the options that the argument of ``fit`` stands for (None is ``"off"``); CourseError for another word."""
    options = cache if isinstance(cache, CacheOptions) else CacheOptions("off" if cache is None else cache)
    if options.mode not in MODES:
        raise CourseError(f"cache={options.mode!r} is unknown: give one of {', '.join(MODES)}, or CacheOptions(...).")
    return options


def inputs_for(
    options: CacheOptions,
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    plan: Plan,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    precision: str = "no",
) -> Inputs:
    """Return the inputs of a run, with or without a cache, in all of its processes alike.

    `options` are from :func:`cache_options`. The model goes to `device` if a cache is made, and computes there with the
    `precision` of the run (``"no"``, ``"bf16"`` or ``"fp16"``).

    Raises
    ------
    CourseError
        With the mode ``"on"``, if there cannot be a cache. For data sets that are caches already, if they were made
        of another network or border.
    """
    given = [isinstance(dataset, CachedActivations) for dataset in (train, val)]
    if any(given):
        return _given(model, train, val, plan, epochs, all(given))
    if options.mode == "off":
        return Inputs(train, val, reason="off")
    try:
        border = _border(plan, epochs)
        keys = _keys(options, model, train, val, border, epochs)
        _require_nothing_drawn(options, train, val)
        model.to(device)
        limit = LARGEST_AUTO if options.mode == "auto" else None
        shared = {"dtype": options.dtype, "folder": options.folder, "limit": limit, "precision": precision}
        kept = cache_activations(model, train, border, views=options.views, seed=seed, keys=keys[0], **shared)
        inputs = Inputs(kept, cache_activations(model, val, border, keys=keys[1], **shared), border)
    except _NoCache as reason:
        if options.mode == "on":
            raise CourseError(f"cache='on' cannot be: {reason}. Use cache='auto' or 'off'.") from None
        inputs = Inputs(train, val, reason=str(reason))
    except CourseError as error:
        if options.mode == "on":
            raise
        warn(f"Training goes on without cached activations. {error}")
        inputs = Inputs(train, val, reason=str(error))
    # Half a network in one process and a whole one in another would never meet.
    agreed = all_processes_agree(inputs.border is not None)
    return inputs if agreed else Inputs(train, val, reason=inputs.reason or "another process has no cache")


class _NoCache(Exception):
    """The reason why a run uses no cache."""


def _border(plan: Plan, epochs: int) -> str:
    """Return the first stage that ever learns in a run, if it is not the first stage of all.

    Stages behind it that are still frozen in an epoch are run in eval mode, as ever.
    """
    (first, *_) = plan.learning_at(epochs - 1)  # a stage that learns goes on learning
    if first == plan.rows[0].stage:
        raise _NoCache(f"with {plan.strategy.name!r} the first stage learns, so nothing in front of it is frozen")
    return first


def _keys(
    options: CacheOptions, model: nn.Module, train: Dataset, val: Dataset, border: str, epochs: int
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return the keys of the frozen part and of each data set; with "auto" nothing is read from one of the reader's."""
    if options.mode == "auto" and epochs == 1:
        raise _NoCache("a single epoch passes through the frozen stages once, with a cache or without")
    try:
        front = key_of_front(model, *cut(model, border))
    except CannotFingerprint as reason:
        raise _NoCache(str(reason)) from None
    if options.mode == "on":
        return [(front, None), (front, None)]
    try:
        return [(front, key_of_data(dataset)) for dataset in (train, val)]
    except CannotFingerprint as reason:
        raise _NoCache(f"{reason}; cache='on' reads every sample once to know it") from None


def _require_nothing_drawn(options: CacheOptions, train: Dataset, val: Dataset) -> None:
    if is_random(val):
        raise _NoCache("the validation split is augmented at random")
    if options.views == 1 and is_random(train):
        raise _NoCache(
            "the training split is augmented at random, and a cache would show the same view in every epoch; "
            "CacheOptions(views=4), say, keeps four views of each picture"
        )


def _given(model: nn.Module, train: Dataset, val: Dataset, plan: Plan, epochs: int, both: bool) -> Inputs:
    """Return inputs of data sets that are caches, after a check that they belong to this network and strategy."""
    if not both:
        raise CourseError("Cached activations can be trained on only if they are chosen by too: cache both splits.")
    try:
        border = _border(plan, epochs)
    except _NoCache as reason:
        raise CourseError(f"Cached activations do not fit this strategy: {reason}.") from None
    front = key_of_front(model, *cut(model, border))
    for name, dataset in (("train", train), ("val", val)):
        if dataset.border != border:
            raise CourseError(
                f"The {name} activations end in front of {dataset.border}, {plan.strategy.name!r} learns from {border} "
                f"on. Use cache_activations(model, dataset, {border!r})."
            )
        if dataset.content["key"]["front"] != front:
            raise CourseError(f"The {name} activations are of other frozen weights than this model has: cache anew.")
    return Inputs(train, val, border)
