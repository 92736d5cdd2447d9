"""Load pre-trained networks, see them as stages, and give them a new head.

A **stage** is a named piece of a network, made of the model's own modules. The stages, run one after another, compute
exactly what the model computes.

>>> model = load_pretrained("resnet18_mini", num_classes=3)
>>> list(stages(model))
['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']

``FAMILIES`` is the only place that knows how an architecture is built. :func:`register_family` adds a row to it.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models import WeightsEnum

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating, generators_put_back
from course_utils.common.tables import text_table
from course_utils.common.weight_files import check_fit, fetch_weights, listed, own_part, read_state_dict
from course_utils.mini import networks

# --- one row per family ------------------------------------------------------------------------------------------


def _resnet_stages(m: models.ResNet) -> dict[str, list[nn.Module]]:
    row = {"stem": [m.conv1, m.bn1, m.relu, m.maxpool]}
    row |= {name: [getattr(m, name)] for name in ("layer1", "layer2", "layer3", "layer4")}
    return row | {"head": [m.avgpool, nn.Flatten(), m.fc]}


def _vgg_stages(m: models.VGG) -> dict[str, list[nn.Module]]:
    blocks: list[list[nn.Module]] = [[]]
    for module in m.features:  # a block ends with its pooling
        blocks[-1].append(module)
        if isinstance(module, nn.MaxPool2d):
            blocks.append([])
    row = {f"block{i}": block for i, block in enumerate(blocks[:-1], 1)}
    return row | _classifier_stages(m)


def _efficientnet_stages(m: models.EfficientNet) -> dict[str, list[nn.Module]]:
    stem, *middle, top = m.features
    row = {"stem": [stem]} | {f"stage{i}": [stage] for i, stage in enumerate(middle, 1)} | {"top": [top]}
    return row | {"head": [m.avgpool, nn.Flatten(), *_layers(m.classifier)]}


def _mobilenet_v2_stages(m: models.MobileNetV2) -> dict[str, list[nn.Module]]:
    # torchvision's forward pools with a function; this pool has no parameters and computes the same.
    return _mobile_blocks(m.features) | {"head": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_layers(m.classifier)]}


def _mobilenet_v3_stages(m: models.MobileNetV3) -> dict[str, list[nn.Module]]:
    return _mobile_blocks(m.features) | _classifier_stages(m)


def _mobile_blocks(features: nn.Sequential) -> dict[str, list[nn.Module]]:
    """Neighbouring blocks with equally many output channels make one stage, as in the papers' tables."""
    stem, *middle, top = features
    groups = [list(group) for _, group in itertools.groupby(middle, key=lambda block: block.out_channels)]
    return {"stem": [stem]} | {f"stage{i}": group for i, group in enumerate(groups, 1)} | {"top": [top]}


def _layers(classifier: nn.Module) -> list[nn.Module]:
    return list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]  # or a reader's single layer


def _classifier_stages(m: nn.Module) -> dict[str, list[nn.Module]]:
    # VGG and MobileNetV3 have pre-trained hidden layers between the map and the last layer. They are a stage of
    # their own, because "train only the new head" must not train VGG-16's 120 million weights in them, and neither
    # must "train the last block" (see LAST_BLOCK). Dropout in front of the last layer belongs to the head, as in the
    # other families: it is on where the head learns.
    *hidden, last = _layers(m.classifier)
    head = [last]
    while hidden and isinstance(hidden[-1], nn.Dropout):
        head.insert(0, hidden.pop())
    return {"hidden": [m.avgpool, nn.Flatten(), *hidden], "head": head}


@dataclass(frozen=True)
class Family:
    """One row of ``FAMILIES``; the fields are the parameters of :func:`register_family`."""

    name: str
    model_class: type[nn.Module]
    prefixes: tuple[str, ...]
    split: Callable[[nn.Module], dict[str, list[nn.Module]]]
    last_layer: str | Callable[[nn.Module], str]
    cam_stage: str


def _end(m: nn.Module) -> str:
    return f"classifier.{len(m.classifier) - 1}" if isinstance(m.classifier, nn.Sequential) else "classifier"


FAMILIES = {  # from old to new
    row.name: row
    for row in (
        Family("resnet", models.ResNet, ("resnet", "resnext", "wide_resnet"), _resnet_stages, "fc", "layer4"),
        Family("vgg", models.VGG, ("vgg",), _vgg_stages, _end, "block5"),
        Family("efficientnet", models.EfficientNet, ("efficientnet",), _efficientnet_stages, _end, "top"),
        Family("mobilenet_v2", models.MobileNetV2, ("mobilenet_v2",), _mobilenet_v2_stages, _end, "top"),
        Family("mobilenet_v3", models.MobileNetV3, ("mobilenet_v3",), _mobilenet_v3_stages, _end, "top"),
    )
}
COURSE_FAMILIES = frozenset(FAMILIES)


def register_family(
    name: str,
    model_class: type[nn.Module],
    prefixes: Sequence[str],
    split: Callable[[nn.Module], dict[str, list[nn.Module]]],
    last_layer: str | Callable[[nn.Module], str],
    cam_stage: str,
) -> None:
    """Add a family of networks, so that everything in the course works with it.

    Parameters
    ----------
    name
        Letters, digits, ``_`` and ``-``. A row that was registered under this name is replaced.
    model_class
        Class of the models. A row for a subclass goes before a row for its parent; of two rows for the same class the
        newer one counts.
    prefixes
        Beginnings of the names that torchvision has for it, for :func:`load_pretrained`; ``()`` if it has none.
    split
        Function from a model to its stages, from pixels to logits: name → modules in order. Run one after another they
        have to compute what the model computes. Modules without parameters may be new, all others are the model's own.
        The last stage holds the last layer, and dropout directly in front of it; call it ``"head"``.
    last_layer
        Path of the linear layer that gives the logits, ``"fc"`` or ``"classifier.6"``; or a function that gives it.
    cam_stage
        Name of the last stage whose output is a map ``(N, C, h, w)``, for Grad-CAM and the strategy LAST_BLOCK.

    Raises
    ------
    CourseError
        If an argument is of another kind, or the name is that of a row of the course. :func:`stages` checks that the
        row fits a model.

    Examples
    --------
    >>> def densenet_stages(m):
    ...     f = m.features
    ...     row = {"stem": [f.conv0, f.norm0, f.relu0, f.pool0]}
    ...     row |= {f"block{i}": [getattr(f, f"denseblock{i}"), getattr(f, f"transition{i}")] for i in (1, 2, 3)}
    ...     row["block4"] = [f.denseblock4, f.norm5]
    ...     return row | {"head": [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), m.classifier]}
    >>> register_family("densenet", models.DenseNet, ["densenet"], densenet_stages, "classifier", "block4")
    >>> model, x = load_pretrained("densenet121", weights=None).eval(), torch.rand(1, 3, 64, 64)
    >>> list(stages(model))
    ['stem', 'block1', 'block2', 'block3', 'block4', 'head']
    >>> torch.equal(nn.Sequential(*stages(model).values())(x), model(x))
    True
    """
    row = Family(name, model_class, prefixes, split, last_layer, cam_stage)
    valid_name = isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name) and name not in COURSE_FAMILIES
    is_model = isinstance(model_class, type) and issubclass(model_class, nn.Module)
    names = models.list_models()
    known = isinstance(prefixes, (tuple, list)) and all(
        isinstance(prefix, str) and prefix and any(name.startswith(prefix) for name in names) for prefix in prefixes
    )
    for argument, fits, allowed in (
        ("name", valid_name, f"letters, digits, '_' and '-', but not one of {', '.join(sorted(COURSE_FAMILIES))}"),
        ("model_class", is_model, "a subclass of nn.Module"),
        ("prefixes", known, "a tuple of beginnings of names in torchvision.models.list_models(), or ()"),
        ("split", callable(split), "a function from a model to {name of the stage: [modules]}"),
        ("last_layer", isinstance(last_layer, str) or callable(last_layer), "a path such as 'fc', or a function"),
        ("cam_stage", isinstance(cam_stage, str), "the name of a stage"),
    ):
        if not fits:
            raise CourseError(f"register_family cannot use {argument}={getattr(row, argument)!r}. Give {allowed}.")
    FAMILIES.pop(name, None)
    FAMILIES[name] = replace(row, prefixes=tuple(prefixes))


def family_of(model: nn.Module) -> Family:
    """Return the row of ``FAMILIES`` that a model belongs to; :class:`CourseError` when there is none."""
    for ancestor in type(model).__mro__:  # the most specific class first
        for family in reversed(FAMILIES.values()):
            if family.model_class is ancestor:
                return family
    known = ", ".join(family.model_class.__name__ for family in FAMILIES.values())
    raise CourseError(
        f"{type(model).__name__} belongs to no known family ({known}). Give the bare model, not a wrapper around it; "
        "build it again if its class was defined anew since; or add a row with "
        "course_utils.pretrained_models.register_family."
    )


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
            "its own: course_utils.pretrained_models.register_family."
        )
    row = {name: nn.Sequential(*modules) for name, modules in row.items()}
    own = set(model.modules())
    for stage in row.values():
        # A new container (or Flatten) has training=True, whatever the model's own modules have.
        stage.training = any(module.training for module in stage if module in own)
    return row


def _misfit(model: nn.Module, family: Family, row: dict[str, list[nn.Module]]) -> str:
    """Return the reason why stages do not fit a model, without running it; ``""`` if they fit."""
    parts = row.values() if isinstance(row, Mapping) else [None]
    if not all(isinstance(part, (list, tuple)) and all(isinstance(m, nn.Module) for m in part) for part in parts):
        return f"split gave {row!r:.200} instead of {{name: [modules]}}"
    if family.cam_stage not in row:
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


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: ``fc`` in a ResNet, the end of ``classifier`` elsewhere.

    In the place of either there may be a head of one's own that ends in it: ``nn.Sequential(Dropout, Linear)``.
    """
    path = last_layer_name(model)
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Linear):
        return layer
    raise CourseError(
        f"The last layer of this {type(model).__name__} has to be an nn.Linear at {path!r}, there is a "
        f"{type(layer).__name__}. Give this class a row of its own: course_utils.pretrained_models.register_family."
    )


def last_layer_name(model: nn.Module) -> str:
    """Return the path of the last layer: ``"fc"`` or ``"classifier.6"``, say; ``"fc.1"`` in a head of one's own."""
    path = _head_place(model)
    with contextlib.suppress(AttributeError):  # there is no such layer: last_layer says so
        while isinstance(layer := model.get_submodule(path), nn.Sequential) and len(layer):
            path = f"{path}.{len(layer) - 1}"
    return path


def _head_place(model: nn.Module) -> str:
    path = family_of(model).last_layer
    return path if isinstance(path, str) else path(model)


def head_dropout(model: nn.Module) -> list[float]:
    """Return the rates of the dropout that a head of one's own, ``Sequential(Dropout, …, Linear)``, has at its front.

    The list is empty for a head that is a linear layer alone.
    """
    head = model.get_submodule(_head_place(model))
    layers = itertools.takewhile(lambda layer: type(layer) is nn.Dropout, _layers(head))
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
    return last_layer(model).in_features


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a new linear layer with `num_classes` outputs, at least 1, in the place of the last one; return the model.

    The new layer has torch's default initialisation, drawn from the global random generator, and learns
    (``requires_grad=True``) even where the rest is frozen.
    """
    _check_classes(num_classes)
    old = last_layer(model)
    parent, _, attribute = last_layer_name(model).rpartition(".")
    new = nn.Linear(old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype)
    setattr(model.get_submodule(parent), attribute, new)
    return model


def map_stages(model: nn.Module) -> list[str]:
    """Return the names of the stages whose output is a map ``(N, C, h, w)``; Grad-CAM looks at the last of them."""
    names = list(stages(model))
    return names[: names.index(family_of(model).cam_stage) + 1]


def hidden_stages(model: nn.Module) -> list[str]:
    """Return the names of the stages between the last map and the last stage: ``["hidden"]`` in VGG and MobileNetV3."""
    return list(stages(model))[len(map_stages(model)) : -1]


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
    row, allowed = stages(model), map_stages(model)
    name = allowed[-1] if stage is None else stage
    if name not in allowed:
        problem = f"There is no stage {name!r} in this model"
        if name in row:
            problem = f"The stage {name!r} gives no map (it lies behind the pooling)"
        raise CourseError(f"{problem}. Stages with a map, from fine to coarse: {', '.join(allowed)}.")
    own = set(model.modules())  # a module that the split made anew is not run by the model itself
    return [module for module in row[name] if module in own and not isinstance(module, nn.MaxPool2d)][-1]


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
    """Return the names that :func:`load_pretrained` takes: torchvision's, and the embedded ``…_mini`` ones."""
    prefixes = tuple(prefix for family in FAMILIES.values() for prefix in family.prefixes)
    return [name for name in models.list_models() if name.startswith(prefixes)]


def weights_entry(name: str, weights: str | WeightsEnum | None = "DEFAULT") -> WeightsEnum | None:
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
    weights: str | WeightsEnum | None = "DEFAULT",
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Return a network filled with pre-trained weights.

    Parameters
    ----------
    name
        One of :func:`available_models`: a name of torchvision (``"resnet50"``, ``"vgg16"``, ``"efficientnet_b0"``, …),
        or an embedded network (``"resnet18_mini"``).
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
        return models.get_model(name, weights=None, num_classes=num_classes or _default_classes(name))
    if entry.meta["categories"] is None:  # VGG16_Weights.IMAGENET1K_FEATURES: its classifier holds NaN
        raise CourseError(f"{entry} has no classifier: it only fills the convolutions. Take another entry of {name}.")
    model = _pretrained(name, entry)
    return model if num_classes is None else replace_head(model, num_classes)


def _check_name(name: str) -> None:
    known = available_models()
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4) or known[:3]
        raise CourseError(
            f"There is no model {name!r}. The nearest names are {', '.join(near)}; "
            "course_utils.pretrained_models.available_models() lists all."
        )


def _check_classes(num_classes: int | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise CourseError(f"num_classes={num_classes}: a head needs at least one output.")


def _default_classes(name: str) -> int:
    return 200 if name in networks.BUILDERS else 1000


def _pretrained(name: str, entry: WeightsEnum) -> nn.Module:
    mini = isinstance(entry, networks.MiniWeightsEnum)
    state = entry.get_state_dict() if mini else torch.load(fetch_weights(entry), map_location="cpu", weights_only=True)
    try:
        return _filled(_without_memory(name, len(entry.meta["categories"])), state)
    except RuntimeError:  # torchvision's builders of old networks, such as DenseNet, rename the tensors of their files
        with generators_put_back():
            return models.get_model(name, weights=entry)


def _without_memory(name: str, classes: int) -> nn.Module:
    with torch.device("meta"):  # nothing is allocated, and nothing is drawn from the random generator
        return models.get_model(name, weights=None, num_classes=classes)


def _filled(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def _from_checkpoint(name: str, num_classes: int | None, path: Path) -> nn.Module:
    model = _without_memory(name, _default_classes(name))
    state = own_part(read_state_dict(path), model.state_dict())
    weight = state.get(f"{last_layer_name(model)}.weight")
    if weight is not None:
        replace_head(model, len(weight))
    check_fit(name, path, model.state_dict(), state)
    model = _filled(model, {key: t.float() if t.is_floating_point() else t for key, t in state.items()})
    if num_classes in (None, len(weight)):
        return model
    warnings.warn(
        f"{path.name}: its head has {len(weight)} classes, {num_classes} were asked for. The head is skipped and "
        "starts at random; everything else is loaded.",
        stacklevel=3,
    )
    return replace_head(model, num_classes)
