"""Load pre-trained networks, see them as stages, and give them a new head.

A **stage** is a named piece of a network, made of the model's own modules. The stages, run one after another, compute
exactly what the model computes.

>>> model = load_pretrained("resnet18_mini", num_classes=3)
>>> list(stages(model))
['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']

How an architecture is built is written in one place: the table of :mod:`course_utils.families`.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models import WeightsEnum

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating, generators_put_back
from course_utils.common.tables import text_table
from course_utils.common.timm_weights import PREFIX as TIMM
from course_utils.common.timm_weights import TimmWeights, build_timm, load_timm, timm_entry
from course_utils.common.weight_files import (
    WeightsInPackage,
    check_fit,
    fetch_weights,
    listed,
    own_part,
    read_state_dict,
)
from course_utils.families import FAMILIES, Family, family_of, layers_of
from course_utils.mini import lite, networks  # noqa: F401 - lite registers its builder with torchvision

# --- stages and heads --------------------------------------------------------------------------------------------


def stages(model: nn.Module) -> dict[str, nn.Sequential]:
    """Return a model as an ordered row of named stages, from pixels ``(N, 3, H, W)`` to logits ``(N, classes)``.

    Nothing is copied, and every parameter and buffer of the model is in exactly one stage.

    Raises
    ------
    CourseError
        If the model is of no known family, or the row of its family does not fit it: a tensor is in no stage or in
        two, a stage has no parameters, there is no such `cam_stage`, or the last layer is not in the last stage.
    """
    family, row, problem = family_of(model), {}, ""
    try:
        row = family.split(model)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # a layer is gone, or of another kind
        problem = f"they cannot be taken apart ({error})"
    if problem := problem or _misfit(model, family, row):
        raise CourseError(
            f"The stages of family {family.name!r} do not fit this {type(model).__name__}: {problem}. Every parameter "
            "and buffer has to be in one stage, or it would be neither trained nor frozen. Give this class a row of "
            "its own: course_utils.families.register_family."
        )
    row = {name: nn.Sequential(*modules) for name, modules in row.items()}
    own = set(model.modules())
    for stage in row.values():
        # A new container (or Flatten) has training=True, whatever the model's own modules have.
        stage.training = any(module.training for module in stage.modules() if module in own)
    return row


def _misfit(model: nn.Module, family: Family, row: dict[str, list[nn.Module]]) -> str:
    """Return the reason why stages do not fit a model, without running it; ``""`` if they fit."""
    parts = row.values() if isinstance(row, Mapping) else [None]
    if not all(isinstance(part, (list, tuple)) and all(isinstance(m, nn.Module) for m in part) for part in parts):
        return f"split gave {row!r:.200} instead of {{name: [modules]}}"
    if family.cam_stage and family.cam_stage not in row:
        return f"the cam_stage {family.cam_stage!r} is none of {', '.join(row)}"
    pieces = {name: nn.ModuleList(part) for name, part in row.items()}
    if last_layer(model) not in list(pieces.values())[-1].modules():
        return f"the last layer {last_layer_name(model)!r} is not in the last stage {list(row)[-1]!r}"
    for name, piece in pieces.items():
        if next(piece.parameters(), None) is None:
            return f"the stage {name!r} has no parameters, it belongs to the stage in front of it or behind it"
    own = _tensors(model)
    given = [(f"{stage}.{name}", t) for stage, piece in pieces.items() for name, t in _tensors(piece).items()]
    held, known = Counter(id(t) for _, t in given), {id(t) for t in own.values()}
    return listed(
        {
            "in no stage": [name for name, t in own.items() if not held[id(t)]],
            "in two stages": [name for name, t in own.items() if held[id(t)] > 1],
            "not the model's own": [name for name, t in given if id(t) not in known],
        }
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def stage_of_parameters(model: nn.Module) -> dict[str, str]:
    """Return the name of the stage of every parameter and buffer, by its name."""
    owner = {id(t): name for name, stage in stages(model).items() for t in (*stage.parameters(), *stage.buffers())}
    return {name: owner[id(t)] for name, t in _tensors(model).items()}


def last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the linear layer that gives the logits: ``fc`` in a ResNet, the end of ``classifier`` elsewhere.

    In the place of either there may be a head of one's own that ends in it: ``nn.Sequential(Dropout, Linear)``. The
    head that SqueezeNet was trained with is a 1 × 1 convolution; the mean of its map are the logits.
    """
    path = last_layer_name(model)
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
        return layer
    raise CourseError(
        f"The last layer of this {type(model).__name__} has to be an nn.Linear at {path!r}, there is a "
        f"{type(layer).__name__}. Give this class a row of its own: course_utils.families.register_family."
    )


def last_layer_name(model: nn.Module) -> str:
    """Return the path of the last layer: ``"fc"`` or ``"classifier.6"``, say; ``"fc.1"`` in a head of one's own."""
    path = _head_place(model)
    with contextlib.suppress(AttributeError):  # there is no such layer: last_layer says so
        while isinstance(layer := model.get_submodule(path), nn.Sequential) and len(layer):
            path = f"{path}.{list(layer._modules)[-1]}"  # its name, which need not be a number
    return path


def _head_place(model: nn.Module) -> str:
    path = family_of(model).last_layer
    return path if isinstance(path, str) else path(model)


def head_dropout(model: nn.Module) -> list[float]:
    """Return the rates of the dropout that a head of one's own, ``Sequential(Dropout, …, Linear)``, has at its front.

    The list is empty for a head that is a linear layer alone.
    """
    head = model.get_submodule(_head_place(model))
    layers = itertools.takewhile(lambda layer: type(layer) is nn.Dropout, layers_of(head))
    return [layer.p for layer in layers]


def add_head_dropout(model: nn.Module, rates: Sequence[float]) -> nn.Module:
    """Put dropout of these rates in front of the last layer, in one ``Sequential`` with it; return the model."""
    if rates:
        parent, _, attribute = _head_place(model).rpartition(".")
        head = nn.Sequential(*map(nn.Dropout, rates), last_layer(model))
        setattr(model.get_submodule(parent), attribute, head)
    return model


def feature_dim(model: nn.Module) -> int:
    """Return the number of inputs of the last layer: 512 in a ResNet-18, 4096 in a VGG-16."""
    layer = last_layer(model)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def count_classes(model: nn.Module) -> int:
    """Return the number of classes: of outputs of the last layer."""
    layer = last_layer(model)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a new linear layer with `num_classes` outputs, at least 1, in the place of the last one; return the model.

    The new layer has torch's default initialisation, drawn from the global random generator, and learns
    (``requires_grad=True``) even where the rest is frozen.
    """
    _check_classes(num_classes)
    old = last_layer(model)
    parent, _, attribute = last_layer_name(model).rpartition(".")
    new = nn.Linear(feature_dim(model), num_classes, device=old.weight.device, dtype=old.weight.dtype)
    if isinstance(old, nn.Conv2d):  # SqueezeNet: the map is averaged in front of a linear layer, not behind it
        dropout = (module for module in model.get_submodule(parent) if isinstance(module, nn.Dropout))
        model.set_submodule(parent, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropout, new))
    else:
        setattr(model.get_submodule(parent), attribute, new)
    if hasattr(model, "num_classes"):  # transformers write it down
        model.num_classes = num_classes
    return model


def map_stages(model: nn.Module) -> list[str]:
    """Return the names of the stages whose output is a map; Grad-CAM looks at the last of them.

    A map has a place for every part of the picture. It is ``(N, C, h, w)`` in a CNN; transformers give tokens, of which
    :func:`cam_map` makes one. The list is empty for a model of no known family.
    """
    names, last = list(stages(model)), family_of(model).cam_stage
    return names[: names.index(last) + 1] if last else []


def hidden_stages(model: nn.Module) -> list[str]:
    """Return the names of the stages between the last map and the last stage.

    ``["hidden"]`` in a VGG or MobileNetV3, ``["norm"]`` in a transformer or ConvNeXt, otherwise no stage.
    """
    maps = map_stages(model)
    return list(stages(model))[len(maps) : -1] if maps else []


def cam_layer(model: nn.Module, stage: str | None = None) -> nn.Module:
    """Return the module whose output Grad-CAM explains: the last map of a stage, before a pooling makes it smaller.

    Parameters
    ----------
    model
        A network of one of the families.
    stage
        One of :func:`map_stages`; None for the last of them. For a VGG-16 that is the last convolution's activation in
        front of the final max-pooling, 14 × 14 positions instead of 7 × 7, as in the paper (Selvaraju et al. 2017,
        https://arxiv.org/abs/1610.02391).

    Raises
    ------
    CourseError
        If the model has no such stage, or the stage has no map.
    """
    row, allowed, family = stages(model), map_stages(model), family_of(model)
    if not allowed:
        raise CourseError(
            f"Which layer of this {type(model).__name__} gives the last map is not known. Say it by a row for its "
            "class: course_utils.families.register_family."
        )
    name = allowed[-1] if stage is None else stage
    if name not in allowed:
        problem = f"There is no stage {name!r} in this model"
        if name in row:
            problem = f"The stage {name!r} gives no map (it lies behind the pooling)"
        raise CourseError(f"{problem}. Stages with a map, from fine to coarse: {', '.join(allowed)}.")
    if family.cam_module is not None and name != next(iter(row)):
        return family.cam_module(row[name][-1])
    # A module that the split made anew is not run by the model itself, but what it holds is.
    own = set(model.modules())
    run = (next((part for part in (module, *module.children()) if part in own), None) for module in row[name])
    return [module for module in run if module is not None and not isinstance(module, nn.MaxPool2d)][-1]


def cam_map(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from the output of :func:`cam_layer` to a map ``(N, C, h, w)``.

    It does nothing in a CNN. In a ViT it leaves out the class token and puts the others into their rows; in a Swin
    transformer it puts the channels first. The ``grad-cam`` package calls it ``reshape_transform``.
    """
    return family_of(model).to_map or (lambda output: output)


def summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 128, 128)) -> str:
    """Return a table of stages: output shape for one picture ``(3, H, W)``, parameters, and those that learn."""
    rows = []
    for name, stage, output in _stage_by_stage(model, input_size):
        learning = sum(p.numel() for p in stage.parameters() if p.requires_grad)
        rows.append([name, " × ".join(map(str, output.shape[1:])), _count(stage), learning])
    rows.append(["total", "", sum(row[2] for row in rows), sum(row[3] for row in rows)])
    return text_table(["stage", "output", "parameters", "learning"], rows)


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage: its parameters, and its multiply-adds for one picture."""

    stage: str
    parameters: int
    multiply_adds: int


def stage_costs(model: nn.Module, size: int) -> list[StageCost]:
    """Return parameters and multiply-adds of every stage, for one picture of `size` × `size` pixels.

    ``torch.utils.flop_counter`` counts those of convolutions and linear layers, as papers do. It counts a multiply-add
    as two operations, papers as one. Works on the meta device too.
    """
    costs, before = [], 0
    with FlopCounterMode(display=False) as counter:
        for name, stage, _ in _stage_by_stage(model, (3, size, size)):
            operations = counter.get_total_flops()
            costs.append(StageCost(name, _count(stage), (operations - before) // 2))
            before = operations
    return costs


def multiply_adds(model: nn.Module, size: int) -> int:
    """Return the multiply-adds of a whole network for one picture; see :func:`stage_costs`."""
    return sum(cost.multiply_adds for cost in stage_costs(model, size))


def _stage_by_stage(model: nn.Module, shape: tuple[int, int, int]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Send a black picture through a model; yield each stage with its name and its output."""
    x = torch.zeros(1, *shape, device=next(model.parameters()).device)
    for name, stage in stages(model).items():
        with evaluating(stage):
            x = stage(x)
        yield name, stage, x


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- loading -----------------------------------------------------------------------------------------------------


def available_models() -> list[str]:
    """Return the names that :func:`load_pretrained` takes: torchvision's, ``…_mini`` and ``efficientnet_lite0``.

    It takes those of timm too, with ``timm/`` in front of them.
    """
    prefixes = tuple(prefix for family in FAMILIES.values() for prefix in family.prefixes)
    return [name for name in models.list_models() if name.startswith(prefixes)]


def weights_entry(
    name: str, weights: str | WeightsEnum | TimmWeights | None = "DEFAULT"
) -> WeightsEnum | TimmWeights | None:
    """Return the record with a weights file's address, the transforms that belong to it, and its accuracy and origin.

    Parameters
    ----------
    name
        One of :func:`available_models`.
    weights
        ``"DEFAULT"``, the name of an entry, an entry, or None (which gives None: random weights).

    Raises
    ------
    CourseError
        For an unknown model or entry.
    """
    _check_name(name)
    if weights is None:
        return None
    if name.startswith(TIMM):
        if isinstance(weights, TimmWeights):
            return weights
        return timm_entry(name.removeprefix(TIMM) if weights == "DEFAULT" else str(weights))
    entries = models.get_model_weights(name)
    if isinstance(weights, entries):
        return weights
    prefix, _, member = weights.rpartition(".") if isinstance(weights, str) else ("", "", None)
    if member in entries.__members__ and prefix in ("", entries.__name__):
        return entries[member]
    allowed = ", ".join(["DEFAULT", *(entry.name for entry in entries)])
    raise CourseError(f"{name} has no weights {str(weights)!r}. Allowed: {allowed}, or None for random weights.")


def load_pretrained(
    name: str,
    num_classes: int | None = None,
    weights: str | WeightsEnum | TimmWeights | None = "DEFAULT",
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Return a network filled with pre-trained weights.

    Parameters
    ----------
    name
        One of :func:`available_models`: a name of torchvision (``"resnet50"``, ``"vit_b_16"``, …), an embedded network
        (``"resnet18_mini"``), or ``"efficientnet_lite0"``, whose ImageNet weights are installed with the course. Or a
        name of timm behind ``timm/``: ``"timm/convnext_tiny"``.
    num_classes
        Outputs of a new head, drawn at random; None keeps the head that was trained with the rest.
    weights
        ``"DEFAULT"``, an entry of torchvision or its name, or None for random weights. The file is downloaded if it
        is not in torch's cache folder.
    checkpoint
        A file of your own instead of `weights`, see :func:`~course_utils.common.weight_files.read_state_dict`; the
        network may be an attribute of what was saved, as in Lightning's files. If its head has another number of
        classes than `num_classes`, it is left out with a warning.

    Returns
    -------
    nn.Module
        On the CPU, float32, in training mode, everything learning: ready for ``freeze``.

    Raises
    ------
    CourseError
        For an unknown name or entry; weights neither on disk nor to be downloaded; a checkpoint that does not fit.
    """
    _check_name(name)
    _check_classes(num_classes)
    if checkpoint is not None:
        return _from_checkpoint(name, num_classes, Path(checkpoint))
    entry = weights_entry(name, weights)
    if entry is None:
        model = build_model(name, num_classes)
        has_own_head = num_classes is None or isinstance(last_layer(model), nn.Linear)
        return model if has_own_head else replace_head(model, num_classes)
    if entry.meta["categories"] is None:  # VGG16_Weights.IMAGENET1K_FEATURES: its classifier holds NaN
        raise CourseError(f"{entry} has no classifier: it only fills the convolutions. Take another entry of {name}.")
    if not entry.meta["categories"] and num_classes is None:  # DINOv2 learned without labels
        raise CourseError(f"{name} was trained without classes: give num_classes, so that it gets a head.")
    model = _pretrained(name, entry)
    return model if num_classes is None else replace_head(model, num_classes)


def _check_name(name: str) -> None:
    known = available_models()
    if name not in known and not str(name).startswith(TIMM):
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4) or known[:3]
        raise CourseError(
            f"There is no model {name!r}. The nearest names are {', '.join(near)}; "
            "course_utils.pretrained_models.available_models() lists all. Networks of timm have timm/ in front."
        )


def _check_classes(num_classes: int | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise CourseError(f"num_classes={num_classes}: a head needs at least one output.")


def build_model(name: str, num_classes: int | None = None) -> nn.Module:
    """Return a network with random weights; with `num_classes` None for as many classes as its weights know."""
    if name.startswith(TIMM):
        return build_timm(name.removeprefix(TIMM), num_classes)
    classes = num_classes or (200 if name in networks.BUILDERS else 1000)
    return models.get_model(name, weights=None, num_classes=classes, **_without_auxiliary(name, build=True))


def _without_auxiliary(name: str, build: bool) -> dict[str, bool]:
    """Return the arguments for networks of 2014 and 2015 that have heads for training alone, which nobody needs now.

    ``transform_input`` belongs to their weights: torchvision sets it where it loads them, and a network that is built
    to be filled from a file of one's own would compute something else without it.
    """
    if not name.startswith(("googlenet", "inception")):
        return {}
    return {"aux_logits": False} | ({"transform_input": True, "init_weights": True} if build else {})


def _pretrained(name: str, entry: WeightsEnum | TimmWeights) -> nn.Module:
    if isinstance(entry, TimmWeights):
        with generators_put_back():
            return load_timm(entry)
    if isinstance(entry, WeightsInPackage):
        state = entry.get_state_dict()
    else:
        state = torch.load(fetch_weights(entry), map_location="cpu", weights_only=True)
    try:
        return _filled(without_memory(name, len(entry.meta["categories"])), state)
    except RuntimeError:  # torchvision's builders of old networks, such as DenseNet, rename the tensors of their files
        with generators_put_back():
            return models.get_model(name, weights=entry, **_without_auxiliary(name, build=False))


def without_memory(name: str, num_classes: int | None = None) -> nn.Module:
    """Return a network on the meta device if that is possible; the random generators are left alone.

    RegNet computes its widths with tensors, which have no values there, so it is built on the CPU.
    """
    try:
        with torch.device("meta"):  # nothing is allocated, and nothing is drawn
            return build_model(name, num_classes)
    except NotImplementedError:
        with generators_put_back():
            return build_model(name, num_classes)


def _filled(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def _from_checkpoint(name: str, num_classes: int | None, path: Path) -> nn.Module:
    model, state = _fitting_head(name, read_state_dict(path))
    check_fit(name, path, model.state_dict(), state)
    model = _filled(model, {key: t.float() if t.is_floating_point() else t for key, t in state.items()})
    classes = count_classes(model)
    if num_classes in (None, classes):
        return model
    warnings.warn(
        f"{path.name}: its head has {classes} classes, {num_classes} were asked for. The head is skipped and "
        "starts at random; everything else is loaded.",
        stacklevel=3,
    )
    return replace_head(model, num_classes)


def _fitting_head(name: str, given: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a network without memory, with a head like the one in a file's tensors, and its part of them."""
    model = without_memory(name)
    state = own_part(given, model.state_dict())
    if isinstance(last_layer(model), nn.Conv2d) and f"{last_layer_name(model)}.weight" not in state:
        replace_head(model, 1)  # a SqueezeNet whose head was replaced before it was saved
        state = own_part(given, model.state_dict())
    weight = state.get(f"{last_layer_name(model)}.weight")
    if weight is not None and weight.ndim == 4:
        model = without_memory(name, len(weight))
    elif weight is not None:
        replace_head(model, len(weight))
    return model, state
