"""How each family of networks is built: one row per family, and nothing else in the course knows.

A row says how a model of the family is taken apart into **stages**, where its last layer is, and at which stage
Grad-CAM looks. :func:`course_utils.pretrained_models.stages` gives the stages of a model; :func:`register_family` adds
a row.

Torchvision's and timm's classes are the field's two collections of pre-trained networks. Where a ``forward`` uses a
function instead of a module (a mean over the map, the class token), a module without parameters does the same here.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision import models

from course_utils.common.errors import CourseError, warn

Row = dict[str, list[nn.Module]]  # name of a stage → its modules, in order

# --- what is a function in a network's own forward ----------------------------------------------------------------


class ChannelScaling(nn.Module):
    """Pictures in ImageNet's normalisation → in that of GoogLeNet's and Inception's first weights, (x - 0.5) / 0.5."""

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures ``(N, 3, H, W)``."""
        if not self.wanted:
            return x
        channels = zip(range(3), (0.229, 0.224, 0.225), (0.485, 0.456, 0.406), strict=True)
        return torch.cat([x[:, i, None] * (std / 0.5) + (mean - 0.5) / 0.5 for i, std, mean in channels], 1)


class WithAuxiliary(nn.Module):
    """A module with the auxiliary heads behind it: they are frozen with it, and have no part in the logits."""

    def __init__(self, main: nn.Module, *auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.main, self.auxiliary = main, nn.ModuleList(head for head in auxiliary if head is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module itself gives."""
        return self.main(x)


class Tokens(nn.Module):
    """The stem of a ViT: pictures ``(N, 3, H, W)`` → tokens ``(N, prefix + h·w, D)`` with their positions.

    Dosovitskiy, A. et al. (2021). An Image is Worth 16x16 Words. https://arxiv.org/abs/2010.11929

    Parameters
    ----------
    patches
        Pictures → a map ``(N, D, h, w)`` or tokens ``(N, h·w, D)``: a convolution as large as its stride.
    prefix
        Tokens ``(1, k, D)`` that belong to no place in the picture: class token, registers.
    positions
        ``(1, prefix + h·w, D)``, or ``(1, h·w, D)`` if prefix tokens have none.
    behind
        What the tokens then go through, such as dropout.
    """

    def __init__(
        self, patches: nn.Module, prefix: Sequence[nn.Parameter], positions: nn.Parameter | None, *behind: nn.Module
    ) -> None:
        super().__init__()
        self.patches, self.prefix = patches, nn.ParameterList(prefix)
        self.positions, self.behind = positions, nn.Sequential(*behind)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        x = self.patches(x)
        x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x  # (N, D, h, w) → (N, h·w, D)
        prefix = [token.expand(len(x), -1, -1) for token in self.prefix]
        if self.positions is not None and self.positions.shape[1] == x.shape[1]:
            x = torch.cat([*prefix, x + self.positions], 1)
        else:
            x = torch.cat([*prefix, x], 1)
            x = x if self.positions is None else x + self.positions
        return self.behind(x)


class TokenPooling(nn.Module):
    """Tokens ``(N, prefix + h·w, D)`` → features ``(N, D)``: the class token, or the mean over all places."""

    def __init__(self, kind: str = "token", prefix: int = 1) -> None:
        super().__init__()
        if kind not in ("token", "avg"):
            raise TypeError(f"its tokens are pooled by {kind!r}")
        self.kind, self.prefix = kind, prefix

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return x[:, 0] if self.kind == "token" else x[:, self.prefix :].mean(1)


# --- torchvision, from old to new ---------------------------------------------------------------------------------


def layers_of(classifier: nn.Module) -> list[nn.Module]:
    """Return the layers of a ``Sequential``, or any other layer alone."""
    return list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]  # or a reader's single layer


def _pooled(*classifier: nn.Module) -> list[nn.Module]:
    """Return the head of a network that averages its map with a function."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier]


def _end(m: nn.Module) -> str:
    return f"classifier.{len(m.classifier) - 1}" if isinstance(m.classifier, nn.Sequential) else "classifier"


def _classifier_stages(m: nn.Module, *pooling: nn.Module) -> Row:
    # AlexNet, VGG, MobileNetV3 and MaxViT have pre-trained hidden layers between the map and the last layer. They are a
    # stage of their own, because "train only the new head" must not train VGG-16's 120 million weights in them, and
    # neither must "train the last block" (see LAST_BLOCK). Dropout in front of the last layer belongs to the head, as
    # in the other families: it is on where the head learns.
    *hidden, last = layers_of(m.classifier)
    head = [last]
    while hidden and isinstance(hidden[-1], nn.Dropout):
        head.insert(0, hidden.pop())
    return {"hidden": [*pooling, *hidden], "head": head}


def _between_poolings(features: nn.Sequential) -> list[list[nn.Module]]:
    """Return the modules in groups; each but the last one ends with its pooling."""
    groups: list[list[nn.Module]] = [[]]
    for module in features:
        groups[-1].append(module)
        if isinstance(module, nn.MaxPool2d):
            groups.append([])
    return groups


def _vgg_stages(m: models.VGG | models.AlexNet) -> Row:
    row = {f"block{i}": block for i, block in enumerate(_between_poolings(m.features)[:-1], 1)}
    return row | _classifier_stages(m, m.avgpool, nn.Flatten())


def _googlenet_stages(m: models.GoogLeNet) -> Row:
    four = [m.inception4a, m.inception4b, m.inception4c, m.inception4d, m.inception4e, m.maxpool4]
    if m.aux1 is not None or m.aux2 is not None:
        four[0], four[3] = WithAuxiliary(m.inception4a, m.aux1), WithAuxiliary(m.inception4d, m.aux2)
    return {
        "stem": [ChannelScaling(m.transform_input), m.conv1, m.maxpool1, m.conv2, m.conv3, m.maxpool2],
        "inception3": [m.inception3a, m.inception3b, m.maxpool3],
        "inception4": four,
        "inception5": [m.inception5a, m.inception5b],
        "head": [m.avgpool, nn.Flatten(), m.dropout, *layers_of(m.fc)],
    }


def _inception_stages(m: models.Inception3) -> Row:
    stem = [m.Conv2d_1a_3x3, m.Conv2d_2a_3x3, m.Conv2d_2b_3x3, m.maxpool1, m.Conv2d_3b_1x1, m.Conv2d_4a_3x3, m.maxpool2]
    last = m.Mixed_6e if m.AuxLogits is None else WithAuxiliary(m.Mixed_6e, m.AuxLogits)
    return {
        "stem": [ChannelScaling(m.transform_input), *stem],
        "mixed5": [m.Mixed_5b, m.Mixed_5c, m.Mixed_5d],
        "mixed6": [m.Mixed_6a, m.Mixed_6b, m.Mixed_6c, m.Mixed_6d, last],
        "mixed7": [m.Mixed_7a, m.Mixed_7b, m.Mixed_7c],
        "head": [m.avgpool, nn.Flatten(), m.dropout, *layers_of(m.fc)],
    }


def _resnet_stages(m: models.ResNet) -> Row:
    row = {"stem": [m.conv1, m.bn1, m.relu, m.maxpool]}
    row |= {name: [getattr(m, name)] for name in ("layer1", "layer2", "layer3", "layer4")}
    return row | {"head": [m.avgpool, nn.Flatten(), m.fc]}


def _squeezenet_stages(m: models.SqueezeNet) -> Row:
    stem, *groups = _between_poolings(m.features)
    row = {"stem": stem} | {f"stage{i}": group for i, group in enumerate(groups, 1)}
    return row | {"head": [*layers_of(m.classifier), nn.Flatten()]}


def _squeezenet_end(m: models.SqueezeNet) -> str:
    ends = [i for i, module in enumerate(m.classifier) if isinstance(module, nn.Conv2d | nn.Linear)]
    return f"classifier.{ends[-1]}"


def _densenet_stages(m: models.DenseNet) -> Row:
    f = m.features
    row = {"stem": [f.conv0, f.norm0, f.relu0, f.pool0]}
    row |= {f"block{i}": [getattr(f, f"denseblock{i}"), getattr(f, f"transition{i}")] for i in (1, 2, 3)}
    return row | {"block4": [f.denseblock4, f.norm5], "head": [nn.ReLU(), *_pooled(*layers_of(m.classifier))]}


def _mobile_blocks(features: nn.Sequential) -> Row:
    """Neighbouring blocks with equally many output channels make one stage, as in the papers' tables."""
    stem, *middle, top = features
    groups = [list(group) for _, group in itertools.groupby(middle, key=lambda block: block.out_channels)]
    return {"stem": [stem]} | {f"stage{i}": group for i, group in enumerate(groups, 1)} | {"top": [top]}


def _mobilenet_v2_stages(m: models.MobileNetV2) -> Row:
    return _mobile_blocks(m.features) | {"head": _pooled(*layers_of(m.classifier))}


def _mobilenet_v3_stages(m: models.MobileNetV3) -> Row:
    return _mobile_blocks(m.features) | _classifier_stages(m, m.avgpool, nn.Flatten())


def _shufflenet_stages(m: models.ShuffleNetV2) -> Row:
    row = {"stem": [m.conv1, m.maxpool]} | {name: [getattr(m, name)] for name in ("stage2", "stage3", "stage4")}
    return row | {"top": [m.conv5], "head": _pooled(*layers_of(m.fc))}


def _mnasnet_stages(m: models.MNASNet) -> Row:
    stem, middle, top = m.layers[:8], m.layers[8:14], m.layers[14:]
    row = {"stem": list(stem)} | {f"stage{i}": [stack] for i, stack in enumerate(middle, 1)}
    return row | {"top": list(top), "head": _pooled(*layers_of(m.classifier))}


def _efficientnet_stages(m: models.EfficientNet) -> Row:
    stem, *middle, top = m.features
    row = {"stem": [stem]} | {f"stage{i}": [stage] for i, stage in enumerate(middle, 1)} | {"top": [top]}
    return row | {"head": [m.avgpool, nn.Flatten(), *layers_of(m.classifier)]}


def _regnet_stages(m: models.RegNet) -> Row:
    blocks = {f"stage{i}": [block] for i, block in enumerate(m.trunk_output, 1)}
    return {"stem": [m.stem]} | blocks | {"head": [m.avgpool, nn.Flatten(), *layers_of(m.fc)]}


def _convnext_stages(m: models.ConvNeXt) -> Row:
    stem, first, *rest = m.features  # then a layer that halves the map and a row of blocks, in turns
    row = {"stem": [stem], "stage1": [first]}
    row |= {f"stage{i}": list(pair) for i, pair in enumerate(_pairs(rest), 2)}
    *norm, last = layers_of(m.classifier)
    return row | {"norm": [m.avgpool, *norm], "head": [last]}


def _pairs(modules: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
    return [modules[i : i + 2] for i in range(0, len(modules), 2)]


def _vit_stages(m: models.VisionTransformer) -> Row:
    stem = Tokens(m.conv_proj, [m.class_token], m.encoder.pos_embedding, m.encoder.dropout)
    *hidden, last = layers_of(m.heads)
    return (
        {"stem": [stem]}
        | _quarters(m.encoder.layers)
        | {"norm": [m.encoder.ln, TokenPooling(), *hidden], "head": [last]}
    )


def _vit_end(m: models.VisionTransformer) -> str:
    return f"heads.{list(m.heads._modules)[-1]}" if isinstance(m.heads, nn.Sequential) else "heads"


def _quarters(blocks: nn.Sequential) -> Row:
    """Four stages of equally many blocks: unlike a CNN's, the blocks of a ViT do not differ in size."""
    blocks, size = list(blocks), -(-len(blocks) // 4)
    return {f"blocks{i + 1}": blocks[i * size : (i + 1) * size] for i in range(4) if blocks[i * size :]}


def _swin_stages(m: models.SwinTransformer) -> Row:
    stem, first, *rest = m.features
    row = {"stem": [stem], "stage1": [first]} | {f"stage{i}": list(pair) for i, pair in enumerate(_pairs(rest), 2)}
    return row | {"norm": [m.norm, m.permute, m.avgpool, m.flatten], "head": layers_of(m.head)}


def _maxvit_stages(m: models.MaxVit) -> Row:
    row = {"stem": [m.stem]} | {f"stage{i}": [block] for i, block in enumerate(m.blocks, 1)}
    return row | _classifier_stages(m)


# --- timm ---------------------------------------------------------------------------------------------------------


def _timm_efficientnet_stages(m: nn.Module) -> Row:
    row = {"stem": [m.conv_stem, m.bn1]} | {f"stage{i}": [stage] for i, stage in enumerate(m.blocks, 1)}
    dropout = nn.Dropout(m.drop_rate).train(m.training)
    pooling = [m.global_pool.pool, m.global_pool.flatten]  # one by one, so that a cache can be behind them
    return row | {"top": [m.conv_head, m.bn2], "head": [*pooling, dropout, *layers_of(m.classifier)]}


def _timm_vit_stages(m: nn.Module) -> Row:
    """ViT, DeiT and DINOv2."""
    if m.attn_pool is not None or m.dynamic_img_size:
        raise TypeError("it pools by attention, or takes pictures of any size")
    prefix = [token for token in (m.cls_token, m.reg_token) if token is not None]
    stem = Tokens(m.patch_embed, prefix, m.pos_embed, m.pos_drop, m.patch_drop, m.norm_pre)
    pooling = TokenPooling(m.global_pool, m.num_prefix_tokens)
    norm = {"norm": [m.norm, pooling, m.fc_norm]}
    return {"stem": [stem]} | _quarters(m.blocks) | norm | {"head": [m.head_drop, *layers_of(m.head)]}


def _timm_convnext_stages(m: nn.Module) -> Row:
    row = {"stem": [m.stem]} | {f"stage{i}": [stage] for i, stage in enumerate(m.stages, 1)}
    head = m.head
    norm = [m.norm_pre, head.global_pool, *([head.norm] if hasattr(head, "norm") else []), head.flatten]
    norm += [head.pre_logits] if hasattr(head, "pre_logits") else []
    return row | {"norm": norm, "head": [head.drop, *layers_of(head.fc)]}


# --- from tokens back to a map ------------------------------------------------------------------------------------


def _vit_map(tokens: Tensor) -> Tensor:
    """Tokens ``(N, k + h·w, D)`` of a square picture → ``(N, D, h, w)``, without the k in front that have no place."""
    if tokens.ndim == 4:  # the stem's convolution
        return tokens
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


def _channels_first(x: Tensor) -> Tensor:
    """``(N, h, w, D)`` → ``(N, D, h, w)``."""
    return x.permute(0, 3, 1, 2)


def _first_norm(m: nn.Module) -> nn.Module:
    """Return the first norm of a ViT's block, at which Grad-CAM looks.

    Behind the last block only the class token is used, so that all other tokens there have no gradient. Inside of it
    they still have: the class token looks at them.
    """
    return getattr(m, "ln_1", None) or m.norm1


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How carefully the ready-made strategies of :mod:`course_utils.fine_tuning` train the networks of a family.

    A network that has seen a million photographs has more to lose than one that has seen little. The default was
    measured with EfficientNet-Lite0 on photographs, remedy by remedy (``results/remedies.md``); it is used for all
    families with weights from ImageNet. A class of networks may have another one in an attribute ``recipe``, as the
    embedded networks have.

    Parameters
    ----------
    body_rate
        Learning rate of the stages in front of the head, as a share of the strategy's own.
    head_epochs
        Number of epochs in which the head learns alone. A new head sends random gradients into the body (Kumar et al.
        2022, https://arxiv.org/abs/2202.10054).
    update_statistics
        False to keep the mean and deviation of every BatchNorm as they were learned in pre-training.
    """

    body_rate: float = 0.1
    head_epochs: int = 1
    update_statistics: bool = False


AS_WRITTEN = Recipe(body_rate=1.0, head_epochs=0, update_statistics=True)


@dataclass(frozen=True)
class Family:
    """One row of ``FAMILIES``; the fields are the parameters of :func:`register_family`."""

    name: str
    model_class: type[nn.Module] | str
    prefixes: tuple[str, ...]
    split: Callable[[nn.Module], Row]
    last_layer: str | Callable[[nn.Module], str]
    cam_stage: str
    to_map: Callable[[Tensor], Tensor] | None = None
    cam_module: Callable[[nn.Module], nn.Module] | None = None
    recipe: Recipe = Recipe()

    def describes(self, kind: type) -> bool:
        """Return True if this is the class of the row. timm's are given by path: importing timm takes a second."""
        return self.model_class in (kind, f"{kind.__module__}.{kind.__qualname__}")

    def class_in(self, model: nn.Module) -> type[nn.Module]:
        """Return the class of the row, among those that a model's class inherits from."""
        return next(kind for kind in type(model).__mro__ if self.describes(kind))


_TIMM = "timm.models."
_VIT = {"to_map": _vit_map, "cam_module": _first_norm}

FAMILIES = {  # from old to new
    row.name: row
    for row in (
        Family("alexnet", models.AlexNet, ("alexnet",), _vgg_stages, _end, "block3"),
        Family("vgg", models.VGG, ("vgg",), _vgg_stages, _end, "block5"),
        Family("googlenet", models.GoogLeNet, ("googlenet",), _googlenet_stages, "fc", "inception5"),
        Family("resnet", models.ResNet, ("resnet", "resnext", "wide_resnet"), _resnet_stages, "fc", "layer4"),
        Family("inception", models.Inception3, ("inception",), _inception_stages, "fc", "mixed7"),
        Family("squeezenet", models.SqueezeNet, ("squeezenet",), _squeezenet_stages, _squeezenet_end, "stage3"),
        Family("densenet", models.DenseNet, ("densenet",), _densenet_stages, "classifier", "block4"),
        Family("mobilenet_v2", models.MobileNetV2, ("mobilenet_v2",), _mobilenet_v2_stages, _end, "top"),
        Family("shufflenet", models.ShuffleNetV2, ("shufflenet",), _shufflenet_stages, "fc", "top"),
        Family("mnasnet", models.MNASNet, ("mnasnet",), _mnasnet_stages, _end, "top"),
        Family("mobilenet_v3", models.MobileNetV3, ("mobilenet_v3",), _mobilenet_v3_stages, _end, "top"),
        Family("efficientnet", models.EfficientNet, ("efficientnet",), _efficientnet_stages, _end, "top"),
        Family("regnet", models.RegNet, ("regnet",), _regnet_stages, "fc", "stage4"),
        Family("vit", models.VisionTransformer, ("vit",), _vit_stages, _vit_end, "blocks4", **_VIT),
        Family("swin", models.SwinTransformer, ("swin_",), _swin_stages, "head", "stage4", _channels_first),
        Family("convnext", models.ConvNeXt, ("convnext",), _convnext_stages, _end, "stage4"),
        Family("maxvit", models.MaxVit, ("maxvit",), _maxvit_stages, _end, "stage4"),
        Family(
            "timm_efficientnet",
            f"{_TIMM}efficientnet.EfficientNet",
            ("efficientnet_lite",),
            _timm_efficientnet_stages,
            "classifier",
            "top",
        ),
        Family(
            "timm_vit",
            f"{_TIMM}vision_transformer.VisionTransformer",
            (),
            _timm_vit_stages,
            "head",
            "blocks4",
            **_VIT,
        ),
        Family("timm_convnext", f"{_TIMM}convnext.ConvNeXt", (), _timm_convnext_stages, "head.fc", "stage4"),
    )
}
COURSE_FAMILIES = frozenset(FAMILIES)


def register_family(
    name: str,
    model_class: type[nn.Module],
    prefixes: Sequence[str],
    split: Callable[[nn.Module], Row],
    last_layer: str | Callable[[nn.Module], str],
    cam_stage: str,
    to_map: Callable[[Tensor], Tensor] | None = None,
    cam_module: Callable[[nn.Module], nn.Module] | None = None,
    recipe: Recipe = Recipe(),
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
        Beginnings of the names that torchvision has for it, for
        :func:`~course_utils.pretrained_models.load_pretrained`; ``()`` if it has none.
    split
        Function from a model to its stages, from pixels to logits: name → modules in order. Run one after another they
        have to compute what the model computes. Modules without parameters may be new, all others are the model's own.
        The last stage holds the last layer, and dropout directly in front of it; call it ``"head"``.
    last_layer
        Path of the linear layer that gives the logits, ``"fc"`` or ``"classifier.6"``; or a function that gives it.
    cam_stage
        Name of the last stage whose output is a map, for Grad-CAM and the strategy LAST_BLOCK.
    to_map
        Function from a stage's output to a map ``(N, C, h, w)``; None if it is one. Transformers need it: their stages
        give tokens.
    cam_module
        Function from the last module of a stage to the one inside of it whose output Grad-CAM explains; None for the
        module itself.
    recipe
        How carefully the ready-made strategies train it.

    Raises
    ------
    CourseError
        If an argument is of another kind, or the name is that of a row of the course.
        :func:`~course_utils.pretrained_models.stages` checks that the row fits a model.

    Examples
    --------
    A network of one's own, of which torchvision knows nothing:

    >>> class TwoBlocks(nn.Module):
    ...     def __init__(self, num_classes=1000):
    ...         super().__init__()
    ...         self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 16, 3, 2)
    ...         self.fc = nn.Linear(16, num_classes)
    ...     def forward(self, x):
    ...         return self.fc(self.two(self.one(x).relu()).relu().mean((2, 3)))
    >>> def two_stages(m):
    ...     head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), m.fc]
    ...     return {"one": [m.one, nn.ReLU()], "two": [m.two, nn.ReLU()], "head": head}
    >>> register_family("two-blocks", TwoBlocks, (), two_stages, "fc", "two")
    """
    row = Family(name, model_class, prefixes, split, last_layer, cam_stage, to_map, cam_module, recipe)
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
        ("to_map", to_map is None or callable(to_map), "a function from a stage's output to a map, or None"),
        ("cam_module", cam_module is None or callable(cam_module), "a function from a module to one in it, or None"),
        ("recipe", isinstance(recipe, Recipe), "a course_utils.families.Recipe"),
    ):
        if not fits:
            raise CourseError(f"register_family cannot use {argument}={getattr(row, argument)!r}. Give {allowed}.")
    FAMILIES.pop(name, None)
    FAMILIES[name] = replace(row, prefixes=tuple(prefixes))


def family_of(model: nn.Module) -> Family:
    """Return the row that a model belongs to; for a class without one, a row of two stages, `body` and `head`.

    Raises
    ------
    CourseError
        If the class has no row, and the model is a wrapper or has no last linear layer.
    """
    for ancestor in type(model).__mro__:  # the most specific class first
        for family in reversed(FAMILIES.values()):
            if family.describes(ancestor):
                return family
    return _body_and_head(model)


def recipe_of(model: nn.Module) -> Recipe:
    """Return the recipe of a model's class, or else that of its family."""
    return getattr(type(model), "recipe", None) or family_of(model).recipe


# --- a model of no known family -----------------------------------------------------------------------------------

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_told: set[type] = set()


class Body(nn.Module):
    """Everything in front of the last layer of a model whose structure is not known: it runs the model and listens."""

    def __init__(self, model: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_parts_without(model, last))
        self.holders = tuple(m for m in model.modules() if m is not last and last in m.modules())
        for i, holder in enumerate(self.holders):  # tensors of their own, such as a class token
            for name, parameter in holder.named_parameters(recurse=False):
                self.register_parameter(f"own{i}_{name}", parameter)
            for name, buffer in holder.named_buffers(recurse=False):
                self.register_buffer(f"own{i}_{name}", buffer)
        self.whole = (model, last)  # in a tuple, so that torch does not count the last layer to the body

    @property
    def training(self) -> bool:
        """The mode of the model itself: its own ``forward`` may use dropout as a function."""
        return any(holder.training for holder in self.__dict__.get("holders", ()))

    @training.setter
    def training(self, mode: bool) -> None:
        """Set the mode of the model itself, and of the containers that hold the last layer."""
        for holder in self.__dict__.get("holders", ()):
            holder.training = mode

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer is given; a CourseError if what it gives is not what the model gives."""
        (model, last), seen = self.whole, []
        with last.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))):
            logits = model(x)
        if len(seen) != 1 or seen[0][1] is not logits:
            raise CourseError(
                f"The last linear layer of this {type(model).__name__} does not give its answers. Give the class a "
                "row: course_utils.families.register_family."
            )
        return seen[0][0]


def _parts_without(module: nn.Module, last: nn.Module) -> list[nn.Module]:
    """Return the largest parts of a module that do not contain the last layer."""
    if last not in module.modules():
        return [module]
    return [part for child in module.children() if child is not last for part in _parts_without(child, last)]


def _body_and_head(model: nn.Module) -> Family:
    kind = type(model).__name__
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    compiled = hasattr(model, "_orig_mod")  # by torch.compile, whose class takes a second to import
    if isinstance(model, WRAPPERS) or compiled or not linear or not linear[-1]:
        known = ", ".join(family.name for family in FAMILIES.values())
        raise CourseError(
            f"{kind} belongs to no known family ({known}). Give the bare model, not a wrapper around it; "
            "build it again if its class was defined anew since; or add a row with "
            "course_utils.families.register_family."
        )
    last = linear[-1]
    if type(model) not in _told:
        _told.add(type(model))
        warn(
            f"{kind} belongs to no known family. It is used as two stages: the head is its last linear layer, {last}, "
            "and the body everything in front of it. For more stages and for Grad-CAM, add a row with "
            "course_utils.families.register_family."
        )

    def split(m: nn.Module) -> Row:
        layer = m.get_submodule(last)
        return {"body": [Body(m, layer)], "head": [layer]}

    return Family(kind, type(model), (), split, last, cam_stage="")
