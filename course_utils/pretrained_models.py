"""Load pre-trained networks, see them as stages, and give them a new head.

A **stage** is a named piece of a network. The stages of a model, run one after another, compute exactly what the
model computes, and they are made of the model's own modules: freezing a stage freezes that part of the model.

>>> model = load_pretrained("resnet18_mini", num_classes=3)
>>> list(stages(model))
['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']

``FAMILIES`` is the only place that knows how an architecture is built. A new family is one new row.
"""

from __future__ import annotations

import difflib
import itertools
import os
import urllib.error
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models._api import WeightsEnum

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of
from course_utils.common.state import evaluating
from course_utils.common.tables import text_table
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
    return row | _hidden_layers(m) | {"head": [m.classifier[-1]]}


def _efficientnet_stages(m: models.EfficientNet) -> dict[str, list[nn.Module]]:
    stem, *middle, top = m.features
    row = {"stem": [stem]} | {f"stage{i}": [stage] for i, stage in enumerate(middle, 1)} | {"top": [top]}
    return row | {"head": [m.avgpool, nn.Flatten(), *m.classifier]}


def _mobilenet_v2_stages(m: models.MobileNetV2) -> dict[str, list[nn.Module]]:
    # torchvision's forward pools with a function; this pool has no parameters and computes the same.
    return _mobile_blocks(m.features) | {"head": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *m.classifier]}


def _mobilenet_v3_stages(m: models.MobileNetV3) -> dict[str, list[nn.Module]]:
    return _mobile_blocks(m.features) | _hidden_layers(m) | {"head": [m.classifier[-1]]}


def _mobile_blocks(features: nn.Sequential) -> dict[str, list[nn.Module]]:
    """Neighbouring blocks with equally many output channels make one stage, as in the papers' tables."""
    stem, *middle, top = features
    groups = [list(group) for _, group in itertools.groupby(middle, key=lambda block: block.out_channels)]
    return {"stem": [stem]} | {f"stage{i}": group for i, group in enumerate(groups, 1)} | {"top": [top]}


def _hidden_layers(m: nn.Module) -> dict[str, list[nn.Module]]:
    # VGG and MobileNetV3 have pre-trained hidden layers between the map and the last layer. They are a stage of
    # their own, because "train only the new head" must not train VGG-16's 120 million weights in them.
    return {"hidden": [m.avgpool, nn.Flatten(), *list(m.classifier)[:-1]]}


@dataclass(frozen=True)
class Family:
    """How one family of architectures is built.

    Parameters
    ----------
    name
        ``"resnet"``, say.
    model_class
        torchvision's class.
    prefixes
        Beginnings of the names that torchvision has for it.
    split
        From a model to its stages: name → modules in order.
    last_layer
        From a model to the path of its last linear layer, ``"fc"`` or ``"classifier.6"``.
    cam_stage
        The last stage whose output is a map ``(N, C, h, w)``: where Grad-CAM looks, see :func:`cam_layer`.
    """

    name: str
    model_class: type[nn.Module]
    prefixes: tuple[str, ...]
    split: Callable[[nn.Module], dict[str, list[nn.Module]]]
    last_layer: Callable[[nn.Module], str]
    cam_stage: str


def _end_of_classifier(m: nn.Module) -> str:
    return f"classifier.{len(m.classifier) - 1}"


FAMILIES = (
    Family("resnet", models.ResNet, ("resnet", "resnext", "wide_resnet"), _resnet_stages, lambda m: "fc", "layer4"),
    Family("vgg", models.VGG, ("vgg",), _vgg_stages, _end_of_classifier, "block5"),
    Family("efficientnet", models.EfficientNet, ("efficientnet",), _efficientnet_stages, _end_of_classifier, "top"),
    Family("mobilenet_v2", models.MobileNetV2, ("mobilenet_v2",), _mobilenet_v2_stages, _end_of_classifier, "top"),
    Family("mobilenet_v3", models.MobileNetV3, ("mobilenet_v3",), _mobilenet_v3_stages, _end_of_classifier, "top"),
)


def family_of(model: nn.Module) -> Family:
    """The row of ``FAMILIES`` that a model belongs to; :class:`CourseError` when there is none."""
    for family in FAMILIES:
        if isinstance(model, family.model_class):
            return family
    known = ", ".join(family.model_class.__name__ for family in FAMILIES)
    raise CourseError(
        f"{type(model).__name__} belongs to no known family ({known}). Give the bare model, not a wrapper around it, "
        "or add a row to FAMILIES in course_utils/pretrained_models.py."
    )


# --- stages and heads --------------------------------------------------------------------------------------------


def stages(model: nn.Module) -> dict[str, nn.Sequential]:
    """A model as an ordered row of named stages, from pixels to logits.

    Parameters
    ----------
    model
        A network of one of the families.

    Returns
    -------
    dict
        Name → module, in order. Each maps ``(N, …)`` to the next one's input; the first takes ``(N, 3, H, W)``, the
        last gives logits ``(N, classes)``. The modules are the model's own: nothing is copied.

    Raises
    ------
    CourseError
        If the model is of no known family.
    """
    row = {name: nn.Sequential(*modules) for name, modules in family_of(model).split(model).items()}
    own = set(model.modules())
    for stage in row.values():
        # A new container (or Flatten) says "training" whatever the model's own modules say; keep the flag truthful.
        stage.training = any(module.training for module in stage if module in own)
    return row


def stage_of_parameters(model: nn.Module) -> dict[str, str]:
    """Name of every parameter and buffer → name of its stage."""
    owner = {id(t): name for name, stage in stages(model).items() for t in (*stage.parameters(), *stage.buffers())}
    return {name: owner[id(t)] for name, t in (*model.named_parameters(), *model.named_buffers())}


def last_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the logits: ``fc`` in a ResNet, the end of ``classifier`` elsewhere."""
    return model.get_submodule(family_of(model).last_layer(model))


def last_layer_name(model: nn.Module) -> str:
    """Where the last layer sits: ``"fc"`` or ``"classifier.6"``, say."""
    return family_of(model).last_layer(model)


def feature_dim(model: nn.Module) -> int:
    """How many numbers the last layer sees for each picture: 512 in a ResNet-18, 4096 in a VGG-16."""
    return last_layer(model).in_features


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a fresh linear layer with `num_classes` outputs in the place of the last one.

    Parameters
    ----------
    model
        Changed in place; everything but its last layer stays as it is.
    num_classes
        At least 1. The new layer has torch's default initialisation, drawn from the global random generator, and
        learns (``requires_grad=True``) even where the rest is frozen.

    Returns
    -------
    nn.Module
        The same model.
    """
    _check_classes(num_classes)
    path = last_layer_name(model)
    parent, _, attribute = path.rpartition(".")
    old = model.get_submodule(path)
    new = nn.Linear(old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype)
    setattr(model.get_submodule(parent), attribute, new)
    return model


def map_stages(model: nn.Module) -> list[str]:
    """Names of the stages whose output is a map ``(N, C, h, w)``, in order; the last is where Grad-CAM looks."""
    names = list(stages(model))
    return names[: names.index(family_of(model).cam_stage) + 1]


def cam_layer(model: nn.Module, stage: str | None = None) -> nn.Module:
    """The module whose output Grad-CAM explains: the last map of a stage, before a pooling makes it smaller.

    Parameters
    ----------
    model
        A network of one of the families.
    stage
        One of :func:`map_stages`; None for the last of them. For a VGG that is the last convolution's activation in
        front of the final max-pooling, as in the paper (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391):
        14 × 14 positions instead of 7 × 7 in a VGG-16, 8 × 8 instead of 4 × 4 in the mini one.

    Raises
    ------
    CourseError
        If the model is of no known family, has no such stage, or the stage has no map.
    """
    name = family_of(model).cam_stage if stage is None else stage
    if name not in map_stages(model):
        known, allowed = list(stages(model)), ", ".join(map_stages(model))
        what = (
            f"The stage {name!r} gives no map (it lies behind the pooling)"
            if name in known
            else (f"There is no stage {name!r} in this model")
        )
        raise CourseError(f"{what}. Stages with a map, from fine to coarse: {allowed}.")
    return [module for module in stages(model)[name] if not isinstance(module, nn.MaxPool2d)][-1]


def summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 128, 128)) -> str:
    """A table of stages: output shape for one picture, parameters, how many of them learn.

    Parameters
    ----------
    model
        A network of one of the families.
    input_size
        ``(channels, height, width)`` of the picture.
    """
    rows = []
    x = torch.zeros(1, *input_size, device=next(model.parameters()).device)
    for name, stage in stages(model).items():
        with evaluating(stage):
            x = stage(x)
        total = sum(p.numel() for p in stage.parameters())
        learning = sum(p.numel() for p in stage.parameters() if p.requires_grad)
        rows.append([name, " × ".join(map(str, x.shape[1:])), total, learning])
    rows.append(["total", "", sum(row[2] for row in rows), sum(row[3] for row in rows)])
    return text_table(["stage", "output", "parameters", "learning"], rows)


@dataclass(frozen=True)
class StageCost:
    """What one stage costs: its parameters, and its multiply-adds for one picture."""

    stage: str
    parameters: int
    multiply_adds: int


def stage_costs(model: nn.Module, size: int) -> list[StageCost]:
    """Parameters and multiply-adds of every stage, for one picture of `size` × `size` pixels.

    Multiplications (each with an addition) are counted by ``torch.utils.flop_counter`` while zeros go through
    convolutions and linear layers; norms and activations are left out, as papers do. Works on the meta device, where
    nothing is computed. (torch counts a multiply-add as two operations, papers as one.)
    """
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    costs = []
    for name, stage in stages(model).items():
        with FlopCounterMode(display=False) as counter, evaluating(stage):
            x = stage(x)
        parameters = sum(p.numel() for p in stage.parameters())
        costs.append(StageCost(name, parameters, counter.get_total_flops() // 2))
    return costs


def multiply_adds(model: nn.Module, size: int) -> int:
    """The multiply-adds of a whole network for one picture; see :func:`stage_costs`."""
    return sum(cost.multiply_adds for cost in stage_costs(model, size))


# --- loading -----------------------------------------------------------------------------------------------------


def available_models() -> list[str]:
    """Names that :func:`load_pretrained` takes: torchvision's, and the embedded ``…_mini`` ones."""
    prefixes = tuple(prefix for family in FAMILIES for prefix in family.prefixes)
    return [name for name in models.list_models() if name.startswith(prefixes)]


def weights_entry(name: str, weights: str | WeightsEnum | None = "DEFAULT") -> WeightsEnum | None:
    """The record that holds a file's address, the transforms that belong to it, and what is known about it.

    Parameters
    ----------
    name
        Of a model.
    weights
        ``"DEFAULT"``, the name of an entry, an entry, or None (which gives None: random weights).

    Raises
    ------
    CourseError
        For an unknown model or entry; the message lists the near or allowed names.
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
    """Build a network and fill it with pre-trained weights.

    Parameters
    ----------
    name
        As torchvision writes it (``"resnet50"``, ``"vgg16"``, ``"efficientnet_b0"``, ``"mobilenet_v3_small"``, …), or
        an embedded one (``"resnet18_mini"``).
    num_classes
        Outputs of a new head, drawn at random; None keeps the head that was trained with the rest.
    weights
        As torchvision takes them: ``"DEFAULT"``, the name of an entry, an entry, or None for random weights.
        Looked for in torch's cache folder first and downloaded otherwise.
    checkpoint
        A file of your own instead of `weights`; see :func:`read_checkpoint`. When its head has another number of
        classes than `num_classes`, the head is left out and a warning says so.

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
    if num_classes is not None:
        _check_classes(num_classes)
    if checkpoint is not None:
        return _from_checkpoint(name, num_classes, Path(checkpoint))
    entry = weights_entry(name, weights)
    if entry is None:
        return models.get_model(name, weights=None, num_classes=num_classes or _default_classes(name))
    if entry.meta["categories"] is None:  # VGG16_Weights.IMAGENET1K_FEATURES: its classifier holds NaN
        raise CourseError(f"{entry} has no classifier: it only fills the convolutions. Take another entry of {name}.")
    model = _filled(name, len(entry.meta["categories"]), _state_dict_of(entry))
    return model if num_classes is None else replace_head(model, num_classes)


def _check_name(name: str) -> None:
    known = available_models()
    if name in known:
        return
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4) or known[:3]
    raise CourseError(
        f"There is no model {name!r}. The nearest names are {', '.join(near)}; "
        "course_utils.pretrained_models.available_models() lists all."
    )


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise CourseError(f"num_classes={num_classes}: a head needs at least one output.")


def _default_classes(name: str) -> int:
    return 200 if name in networks.BUILDERS else 1000


def _filled(name: str, classes: int, state: dict[str, Tensor]) -> nn.Module:
    # On the meta device nothing is allocated or drawn: no second is lost on random weights that are overwritten at
    # once, and the random generator stays where the caller left it.
    with torch.device("meta"):
        model = models.get_model(name, weights=None, num_classes=classes)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def _state_dict_of(entry: WeightsEnum) -> dict[str, Tensor]:
    if isinstance(entry, networks.MiniWeightsEnum):
        return entry.get_state_dict()
    return torch.load(fetch_weights(entry), map_location="cpu", weights_only=True)


def weights_path(entry: WeightsEnum) -> Path:
    """Where torchvision keeps (or would keep) the file of an entry."""
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]


def fetch_weights(entry: WeightsEnum) -> Path:
    """Download the file of a torchvision entry unless it is there, and check it.

    torchvision writes the first eight digits of a file's SHA-256 into its name. They are compared whenever the file
    is used, not only after a download as ``torch.hub`` does.

    Raises
    ------
    CourseError
        Without a network, naming the file, its address and where to put it; or when the check fails.
    """
    path = weights_path(entry)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), progress=False)
        except (urllib.error.URLError, OSError) as error:
            raise CourseError(
                f"The weights {entry} are not on this machine and could not be downloaded ({error}). Fetch "
                f"{entry.url} with another machine and save it as {path}, or set COURSE_WEIGHTS=mini to work with "
                "the weights that are part of the course."
            ) from error
    _check_file(path)
    return path


def _check_file(path: Path) -> None:
    if os.environ.get("COURSE_UNVERIFIED_WEIGHTS") == "1":
        return
    wanted = path.stem.rpartition("-")[2]
    found = sha256_of(path)
    if not found.startswith(wanted):
        raise CourseError(
            f"{path} has SHA-256 {found}, its name says that it begins with {wanted}: the file is damaged or another "
            "one. Delete it and run again to download it anew. (COURSE_UNVERIFIED_WEIGHTS=1 uses it all the same.)"
        )


# --- a reader's own checkpoint -----------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of your own.

    Parameters
    ----------
    path
        ``.safetensors``, or whatever ``torch.save`` wrote: a state dict, or one nested under ``state_dict`` or
        ``model``. Prefixes that DataParallel, DDP (``module.``) and torch.compile (``_orig_mod.``) leave are removed.

    Raises
    ------
    CourseError
        If there is no such file, it is damaged, holds Python objects beside tensors (they are never unpickled: code
        could hide in them), or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"There is no checkpoint {path}. Give the path of a .safetensors or .pt file.")
    content = _read_tensors(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {_plain(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CourseError(f"{path} holds no tensors by name; found: {', '.join(map(str, content)) or 'nothing'}.")
    return tensors


def _read_tensors(path: Path) -> dict:
    import pickle

    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CourseError(
            f"{path} is no checkpoint, or holds more than tensors. Unpickling foreign objects can run foreign code, so "
            "it is not loaded. On the machine that wrote it: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a text file makes torch.load raise KeyError, a flipped byte a dozen other errors
        raise CourseError(f"{path} cannot be read: it is damaged or incomplete ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise CourseError(f"{path} holds a {type(content).__name__}, a state dict (name → tensor) is needed.")
    return content


def _plain(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _from_checkpoint(name: str, num_classes: int | None, path: Path) -> nn.Module:
    state = read_checkpoint(path)
    head = _head_keys(name)
    classes_found = len(state[head[1]]) if head[1] in state else None
    with torch.device("meta"):
        wanted = models.get_model(name, weights=None, num_classes=classes_found or _default_classes(name)).state_dict()
    _check_fit(name, path, wanted, state)
    model = _filled(name, classes_found, {key: t.float() if t.is_floating_point() else t for key, t in state.items()})
    if num_classes in (None, classes_found):
        return model
    warnings.warn(
        f"{path.name}: its head has {classes_found} classes, {num_classes} were asked for. The head is skipped and "
        "starts at random; everything else is loaded.",
        stacklevel=3,
    )
    return replace_head(model, num_classes)


def _head_keys(name: str) -> tuple[str, str]:
    with torch.device("meta"):
        path = last_layer_name(models.get_model(name, weights=None))
    return f"{path}.weight", f"{path}.bias"


def _check_fit(name: str, path: Path, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    problems = []
    # Old checkpoints do not count batches; torch fills that in.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    for title, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if items:
            more = f", … and {len(items) - 8} more" if len(items) > 8 else ""
            problems.append(f"{title}: {', '.join(items[:8])}{more}")
    if problems:
        raise CourseError(
            f"{path} does not fit {name}. " + "; ".join(problems) + ". Was it saved from another architecture?"
        )
