"""Freeze part of a network, keep it frozen, prove it, and use it as a fixed function.

A stage stays as it is only if three things hold:

1. ``requires_grad=False``: there is no gradient for the optimizer. :func:`freeze` does that.
2. eval mode: in training mode BatchNorm changes its running mean and variance in every forward pass, gradient or not,
   and dropout makes the "fixed function" a random one. :func:`train_mode` does that.
3. ``grad=None``, not zero: with a gradient of zero, weight decay and momentum still move a weight.
   :func:`freeze` does that too.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.data.samples import loader_in_order
from course_utils.families import family_of
from course_utils.pretrained_models import last_layer, stage_of_parameters, stages


def freeze(model: nn.Module, before: str | None = "head") -> nn.Module:
    """Freeze every stage in front of `before`, let the others learn, and return the same model.

    Parameters
    ----------
    model
        The network, changed in place. Frozen stages lose ``requires_grad`` and ``grad``, and go to eval mode.
    before
        Name of the first stage that learns: ``"head"`` for feature extraction, the name of the first stage to freeze
        nothing. None freezes everything.

    Raises
    ------
    CourseError
        If there is no such stage.

    Examples
    --------
    >>> model = freeze(load_pretrained("resnet18_mini", num_classes=3), before="layer4")
    >>> learning_stages(model)
    ['layer4', 'head']
    """
    names = list(stages(model))
    if before is not None and before not in names:
        near = difflib.get_close_matches(before, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise CourseError(f"There is no stage {before!r} in this model; it has {', '.join(names)}.{hint}")
    border = len(names) if before is None else names.index(before)
    return set_learning(model, names[border:])


def set_learning(model: nn.Module, learning: list[str]) -> nn.Module:
    """Let exactly the named stages learn, freeze the others, and set the modes to match."""
    for name, stage in stages(model).items():
        for parameter in stage.parameters():
            parameter.requires_grad_(name in learning)
            if name not in learning:
                parameter.grad = None
    return train_mode(model)


def learning_stages(model: nn.Module) -> list[str]:
    """Return the names of the stages in which a parameter learns, in order."""
    return [name for name, stage in stages(model).items() if any(p.requires_grad for p in stage.parameters())]


def train_mode(model: nn.Module, update_statistics: bool = True) -> nn.Module:
    """Set stages that learn to training mode and frozen ones to eval mode; call it instead of ``model.train()``.

    Without `update_statistics` every BatchNorm in front of the last stage stays in eval mode, also where its scale and
    shift learn. In the last stage it is a new one, which has no statistics yet.
    """
    model.train()
    *body, head = stages(model).values()
    for stage in (*body, head):
        if not any(parameter.requires_grad for parameter in stage.parameters()):
            stage.eval()
    for module in () if update_statistics else (module for stage in body for module in stage.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


class FrozenMoved(AssertionError):
    """A tensor that should have stayed bit-identical changed, or one that should have learned did not."""


@contextlib.contextmanager
def frozen_proof(model: nn.Module) -> Iterator[None]:
    """Prove that the block changes all of the learning stages and nothing of those that are frozen when it begins.

    Raises
    ------
    FrozenMoved
        When the block ends and a parameter or buffer of a frozen stage is not bit-identical (the message names it),
        or when a stage that should learn still has every parameter as it was.

    Examples
    --------
    >>> with frozen_proof(model):
    ...     fit(model, train, val, FEATURE_EXTRACTION, epochs=1)
    """
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    owner = stage_of_parameters(model)
    learning = learning_stages(model)
    yield
    after = model.state_dict()
    moved = [name for name in before if name not in after or not same_bits(before[name], after[name])]
    wrong = [name for name in moved if owner.get(name) not in learning]
    # Statistics of BatchNorm move by themselves; only a parameter shows that the optimizer did something.
    learned = {owner[name] for name, _ in model.named_parameters() if name in moved and name in owner}
    asleep = [stage for stage in learning if stage not in learned]
    if wrong:
        hint = ""
        if any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in wrong):
            hint = " BatchNorm statistics move in training mode: call train_mode(model) instead of model.train()."
        raise FrozenMoved(f"{len(wrong)} frozen tensors moved: {', '.join(wrong[:6])}.{hint}")
    if asleep:
        raise FrozenMoved(
            f"These stages should have learned and did not move: {', '.join(asleep)}. Are their parameters in the "
            "optimizer, with a learning rate above 0, and was there a step?"
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors are the same to the last bit: a NaN equals itself, 0.0 differs from -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().contiguous(), b.detach().to(a.device).contiguous()
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def extract_features(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Return the inputs of the last layer for every picture: the frozen network as a function f(x).

    Parameters
    ----------
    model, batch_size
        Network, run in eval mode and left as it was, and pictures per forward pass.
    dataset
        Pairs ``(image, label)`` with images ``(3, H, W)``, already transformed.

    Returns
    -------
    features, labels
        Float32 ``(N, feature_dim)`` and int64 ``(N,)``, on the CPU, in the order of the data set.
    """
    features, labels, caught = [], [], []
    device = next(model.parameters()).device
    hook = last_layer(model).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with hook, evaluating(model):
        for images, targets in loader_in_order(dataset, batch_size):
            model(images.to(device))
            inputs = caught.pop().float()
            features.append(inputs.flatten(2).mean(2).cpu() if inputs.ndim == 4 else inputs.cpu())  # SqueezeNet's map
            labels.append(targets)
    if not features:
        raise CourseError("The data set is empty: there is nothing to extract features from.")
    return torch.cat(features).clone(), torch.cat(labels)


def first_filters(model: nn.Module) -> Tensor:
    """Return the weights of the first convolution, ``(out, 3, k, k)``, on the CPU."""
    convolution = next(m for m in next(iter(stages(model).values())).modules() if isinstance(m, nn.Conv2d))
    return convolution.weight.detach().cpu()


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters that learn, and of all."""
    family_of(model)
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total
