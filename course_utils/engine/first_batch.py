"""A look at the first batch, before anything is spent, to see if this network can be trained on these data."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.data.samples import Collate, check_labels, check_same_classes, classes_of, labels_of
from course_utils.engine.activation_cache import CachedActivations
from course_utils.engine.memory import is_out_of_memory
from course_utils.engine.options import FitOptions
from course_utils.engine.sampling import seeded_draws
from course_utils.families import Body
from course_utils.pretrained_models import count_classes, stages


def check_call(model: nn.Module, train: Dataset, val: Dataset, options: FitOptions) -> None:
    """Raise a :class:`CourseError` for data that this model cannot be trained on.

    Two samples of each split are read, and one picture goes through the network in eval mode: no generator and no
    statistic of BatchNorm moves. What is wrong with other samples is noticed when they are read
    (:class:`~course_utils.data.samples.Collate`).
    """
    classes = count_classes(model)
    tried: set[Any] = set()
    for name, dataset in (("train split", train), ("val split", val)):
        _check_kind(name, dataset)
        images, _ = _first_batch(name, dataset, classes)
        labels = labels_of(dataset)
        if labels is not None:
            check_labels(labels, classes, name)
        form = (images.shape[1:], images.dtype)
        if not isinstance(dataset, CachedActivations) and form not in tried:
            _check_network(name, model, images[:1], classes)
            tried.add(form)
    check_same_classes({"train split": classes_of(train), "val split": classes_of(val)})
    weights = options.class_weights
    if weights is not None and len(weights) != classes:
        raise CourseError(f"class_weights has {len(weights)} entries, the head has {classes} outputs.")


def _check_kind(name: str, dataset: Any) -> None:
    if isinstance(dataset, DataLoader):
        raise CourseError(
            f"The {name} is a DataLoader: give its data set, loader.dataset. fit makes the batches itself, with "
            "batch_size=… and num_workers=…."
        )
    by_index = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not by_index or isinstance(dataset, IterableDataset | dict | str):
        raise CourseError(
            f"The {name} is a {type(dataset).__name__}: fit needs a data set with a length whose samples have a "
            "number, dataset[0]. Of a stream that fits into memory, list(stream) is one."
        )
    if len(dataset) == 0:
        purpose = "learn from" if name.startswith("train") else "choose by"
        raise CourseError(f"The {name} is empty: there is nothing to {purpose}.")


def _first_batch(name: str, dataset: Dataset, classes: int) -> list[Tensor]:
    """Return the first and the last sample as a batch; of pictures in order of class they are the most different."""
    draws = seeded_draws(dataset)  # a look that moves no generator
    return Collate(name, classes)([draws[index] for index in sorted({0, len(dataset) - 1})])


def _check_network(name: str, model: nn.Module, images: Tensor, classes: int) -> None:
    """Raise a CourseError if the network does not make logits ``(1, classes)`` of a picture ``(1, C, H, W)``."""
    weight = next(model.parameters())
    if images.dtype != weight.dtype:
        raise CourseError(
            f"The {name} gives pictures of {images.dtype}, the network computes in {weight.dtype}. Use "
            f"eval_transform(weights), or end your transform with v2.ToDtype({weight.dtype}, scale=True)."
        )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if images.ndim == 4 and first is not None and images.shape[1] != first.in_channels:
        raise CourseError(
            f"The {name} gives pictures of {' × '.join(map(str, images.shape[1:]))}, the network takes "
            f"{first.in_channels} channels. Open them as RGB: picture.convert('RGB'), or v2.RGB() in the transform."
        )
    shape, problem = tuple(images.shape[1:]), ""
    try:
        with evaluating(model):
            logits = model(images.to(weight.device))
        if getattr(logits, "shape", None) != (1, classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            problem = f"it gives {found} instead of logits {(1, classes)}"
    except Exception as error:  # torch has many kinds of errors for this
        if is_out_of_memory(error):  # said better when it happens in training
            return
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if problem:
        raise CourseError(
            f"The network cannot answer a picture of the {name}, {shape}: {problem}. Use the transform of its weights, "
            "eval_transform(weights), or try model(image[None]) yourself."
        )
    (body, *_), *_ = stages(model).values()
    if isinstance(body, Body):  # a class of no known family: is its last linear layer what gives the answers?
        with evaluating(model):
            body(images.to(weight.device))
