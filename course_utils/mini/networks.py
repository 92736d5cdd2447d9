"""The embedded networks: torchvision's architectures at a fraction of their width.

A ResNet-18 has 11.7 million parameters and its weights are a 45 MB download. At about a quarter of the width it has
0.86 million, is a 2 MB file in the package, and still learned 200 classes of photographs. VGG-11, EfficientNet-B0 and
MobileNetV3 are here in the same way. The classes are torchvision's, so the parts have the names of the big models, and
each builder is registered with torchvision: ``torchvision.models.get_model("resnet18_mini", weights="DEFAULT")`` works
after ``import course_utils.mini.networks``.

They saw small pictures of 200 classes. When they are fine-tuned they have to learn more than a network from ImageNet,
and lose less, so the ready-made strategies are used on them as they are written (``recipe``).

The weights were made by :mod:`course_tools.authoring.pretraining`; their accuracy is in the JSON file beside each of
them and in ``weights.meta``.
"""

# No "from __future__ import annotations" here: torchvision reads the annotation of a builder's `weights` argument.
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn
from torchvision.models import Weights
from torchvision.models._api import register_model  # torchvision has no public name for it, nor for ImageClassification
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers
from torchvision.transforms._presets import ImageClassification

from course_utils.common.errors import CourseError
from course_utils.common.weight_files import WeightsInPackage
from course_utils.families import AS_WRITTEN

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

# Side of the pictures that a network was measured on, and wants. It is about a sixth above the last size of its
# pre-training, because random crops make things look larger than they are at test time.
IMAGE_SIZES = {"resnet18_mini": 128, "vgg11_mini": 112, "efficientnet_b0_mini": 112, "mobilenet_v3_small_mini": 112}
RESNET18_MINI_WIDTHS = (16, 32, 64, 144)

# VGG-11's eight convolutions at a quarter of their width; "M" is a max-pooling that halves the map.
VGG11_MINI_PLAN = (16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M")
VGG11_MINI_HIDDEN = 256  # the full network has two hidden layers of 4096
VGG11_MINI_MAP = 4  # side of the map that enters them: 7 in the full network, which sees 224 pixels

# EfficientNet-B0's seven stages. Columns: expansion, kernel, stride, channels in, channels out, blocks. The full
# network halves the map once more, in stage 6; without that 112 pixels end as a 7 x 7 map, as 224 do in the full one.
EFFICIENTNET_B0_MINI_STAGES = (
    (1, 3, 1, 16, 16, 1),
    (4, 3, 2, 16, 16, 1),
    (4, 5, 2, 16, 32, 2),
    (4, 3, 2, 32, 64, 2),
    (4, 5, 1, 64, 64, 2),
    (6, 5, 1, 64, 96, 2),
    (6, 3, 1, 96, 160, 1),
)
EFFICIENTNET_B0_MINI_TOP = 640

# MobileNetV3-Small's eleven blocks. Columns: channels in, kernel, expanded channels, channels out,
# squeeze-and-excitation, activation (RE: ReLU, HS: hard swish), stride. Here too the last halving is left out.
MOBILENET_V3_SMALL_MINI_BLOCKS = (
    (16, 3, 16, 16, True, "RE", 2),
    (16, 3, 64, 32, False, "RE", 2),
    (32, 3, 96, 32, False, "RE", 1),
    (32, 5, 96, 48, True, "HS", 2),
    (48, 5, 192, 48, True, "HS", 1),
    (48, 5, 192, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 288, 96, True, "HS", 1),
    (96, 5, 480, 96, True, "HS", 1),
    (96, 5, 480, 96, True, "HS", 1),
)
MOBILENET_V3_SMALL_MINI_HIDDEN = 320


class NarrowResNet(ResNet):
    """A torchvision ResNet with stages of chosen width and no max-pooling after the stem.

    `widths` are the channels of ``layer1`` to ``layer4`` (``(64, 128, 256, 512)`` in a full ResNet-18), `layers` their
    numbers of blocks. The stem halves the size once (a full ResNet does so twice), so 128 × 128 pixels end as an 8 × 8
    map, which is enough for Grad-CAM.

    He, K. et al. (2016). Deep Residual Learning for Image Recognition. https://arxiv.org/abs/1512.03385
    """

    recipe = AS_WRITTEN

    def __init__(
        self, widths: tuple[int, ...], layers: tuple[int, ...] = (2, 2, 2, 2), num_classes: int = 1000
    ) -> None:
        with torch.device("meta"):  # allocates nothing for the parent's 11 million parameters, and draws nothing
            super().__init__(BasicBlock, list(layers), num_classes=num_classes)
        self.inplanes = widths[0]
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.Identity()
        for i, stride in enumerate((1, 2, 2, 2)):
            setattr(self, f"layer{i + 1}", self._make_layer(BasicBlock, widths[i], layers[i], stride))
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)


class NarrowVGG(VGG):
    """A torchvision VGG with BatchNorm, narrow convolutions and small hidden layers.

    `plan` has the channels of the 3 × 3 convolutions and ``"M"`` for each max-pooling; `map_size` is the side to which
    the last map is pooled; `hidden` is the width of the two hidden layers. The VGG of 2014 is older than BatchNorm.
    Without it, eight layers learn only at a small rate, in many more epochs than two cores have time for. ``vgg16``,
    the big model of the course, has none.

    Simonyan, K. & Zisserman, A. (2014). Very Deep Convolutional Networks for Large-Scale Image Recognition.
    https://arxiv.org/abs/1409.1556
    """

    recipe = AS_WRITTEN

    def __init__(
        self,
        plan: tuple[int | str, ...] = VGG11_MINI_PLAN,
        hidden: int = VGG11_MINI_HIDDEN,
        map_size: int = VGG11_MINI_MAP,
        num_classes: int = 1000,
        dropout: float = 0.2,
    ) -> None:
        with torch.device("meta"):  # the parent's hidden layers have 120 million parameters
            super().__init__(nn.Sequential(), init_weights=False)
        self.features = make_layers(list(plan), batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(map_size)
        channels = next(width for width in reversed(plan) if width != "M")
        self.classifier = nn.Sequential(
            nn.Linear(channels * map_size**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        initialise_convolutions(self)


class NarrowEfficientNet(EfficientNet):
    """An EfficientNet of torchvision with the stages of ``EFFICIENTNET_B0_MINI_STAGES``.

    Tan, M. & Le, Q. (2019). EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks.
    https://arxiv.org/abs/1905.11946
    """

    recipe = AS_WRITTEN

    def __init__(self, num_classes: int = 1000, dropout: float = 0.1) -> None:
        super().__init__(
            [MBConvConfig(*row) for row in EFFICIENTNET_B0_MINI_STAGES],
            dropout=dropout,
            stochastic_depth_prob=0.05,
            num_classes=num_classes,
            last_channel=EFFICIENTNET_B0_MINI_TOP,
        )


class NarrowMobileNet(MobileNetV3):
    """A MobileNetV3 of torchvision with the blocks of ``MOBILENET_V3_SMALL_MINI_BLOCKS``.

    Howard, A. et al. (2019). Searching for MobileNetV3. https://arxiv.org/abs/1905.02244
    """

    recipe = AS_WRITTEN

    def __init__(self, num_classes: int = 1000, dropout: float = 0.1) -> None:
        super().__init__(
            [InvertedResidualConfig(*row, dilation=1, width_mult=1.0) for row in MOBILENET_V3_SMALL_MINI_BLOCKS],
            last_channel=MOBILENET_V3_SMALL_MINI_HIDDEN,
            num_classes=num_classes,
            dropout=dropout,
        )


def initialise_convolutions(model: nn.Module) -> None:
    """Draw convolutions as He et al. (2015) do, with fan-out; BatchNorm starts as the identity.

    Source: https://arxiv.org/abs/1502.01852, and torchvision's ``ResNet.__init__``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class MiniWeightsEnum(WeightsInPackage):
    """A torchvision weights entry whose file lies in this package instead of on a server."""

    @property
    def path(self) -> Path:
        """Path of the safetensors file."""
        return WEIGHTS_FOLDER / self.meta["file"]

    @property
    def remedy(self) -> str:
        """What to do about a missing or damaged file."""
        return (
            "Restore it (git checkout course_utils/mini/weights), or make it and its entry anew with "
            f"`course pretrain {self.path.stem}`"
        )

    def get_state_dict(self, *_args: Any, check_hash: bool = True, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the tensors by name, float32 on the CPU; errors as in :meth:`read`."""
        # Stored as float16 to halve the package; computing wants float32 again.
        tensors = load(self.read(check_hash)).items()
        return {name: t.float() if t.is_floating_point() else t for name, t in tensors}


BUILDERS = {
    "resnet18_mini": partial(NarrowResNet, RESNET18_MINI_WIDTHS),
    "vgg11_mini": NarrowVGG,
    "efficientnet_b0_mini": NarrowEfficientNet,
    "mobilenet_v3_small_mini": NarrowMobileNet,
}
PREPROCESSING = {
    name: partial(ImageClassification, crop_size=size, resize_size=size) for name, size in IMAGE_SIZES.items()
}


def _entry(model: str) -> Weights:
    card = WEIGHTS_FOLDER / f"{model}.json"
    meta = {"file": f"{model}.safetensors", "categories": [], "sha256": ""}
    if card.exists():  # not there yet while a new model is being pre-trained for the first time
        meta = json.loads(card.read_text(encoding="utf-8"))
    return Weights(url=(WEIGHTS_FOLDER / meta["file"]).as_uri(), transforms=PREPROCESSING[model], meta=meta)


class ResNet18_Mini_Weights(MiniWeightsEnum):
    """Weights of :func:`resnet18_mini`: Tiny ImageNet, 200 classes; accuracy and origin are in ``meta``."""

    TINY_IMAGENET = _entry("resnet18_mini")
    DEFAULT = TINY_IMAGENET


@register_model()
def resnet18_mini(
    *, weights: ResNet18_Mini_Weights | None = None, progress: bool = True, **kwargs: Any
) -> NarrowResNet:
    """Return a ResNet-18 at about a quarter of its width: 0.86 million parameters, input ``(N, 3, 128, 128)``.

    Parameters
    ----------
    weights
        ``ResNet18_Mini_Weights.TINY_IMAGENET``, its name, ``"DEFAULT"``, or None for random weights.
    progress, **kwargs
        Not used, as nothing is downloaded; arguments of the network, such as ``num_classes``.
    """
    return _build("resnet18_mini", ResNet18_Mini_Weights.verify(weights), kwargs)


class VGG11_Mini_Weights(MiniWeightsEnum):
    """Weights of :func:`vgg11_mini`: Tiny ImageNet, 200 classes; accuracy and origin are in ``meta``."""

    TINY_IMAGENET = _entry("vgg11_mini")
    DEFAULT = TINY_IMAGENET


@register_model()
def vgg11_mini(*, weights: VGG11_Mini_Weights | None = None, progress: bool = True, **kwargs: Any) -> NarrowVGG:
    """Return a VGG-11 with BatchNorm at a quarter of its width: 1.2 million parameters; see :func:`resnet18_mini`."""
    return _build("vgg11_mini", VGG11_Mini_Weights.verify(weights), kwargs)


class EfficientNet_B0_Mini_Weights(MiniWeightsEnum):
    """Weights of :func:`efficientnet_b0_mini`: Tiny ImageNet, 200 classes; accuracy and origin are in ``meta``."""

    TINY_IMAGENET = _entry("efficientnet_b0_mini")
    DEFAULT = TINY_IMAGENET


@register_model()
def efficientnet_b0_mini(
    *, weights: EfficientNet_B0_Mini_Weights | None = None, progress: bool = True, **kwargs: Any
) -> EfficientNet:
    """Return an EfficientNet-B0 of small width: 0.84 million parameters; see :func:`resnet18_mini`."""
    return _build("efficientnet_b0_mini", EfficientNet_B0_Mini_Weights.verify(weights), kwargs)


class MobileNet_V3_Small_Mini_Weights(MiniWeightsEnum):
    """Weights of :func:`mobilenet_v3_small_mini`: Tiny ImageNet, 200 classes; accuracy and origin are in ``meta``."""

    TINY_IMAGENET = _entry("mobilenet_v3_small_mini")
    DEFAULT = TINY_IMAGENET


@register_model()
def mobilenet_v3_small_mini(
    *, weights: MobileNet_V3_Small_Mini_Weights | None = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """Return a MobileNetV3-Small of small width: 1.01 million parameters; see :func:`resnet18_mini`."""
    return _build("mobilenet_v3_small_mini", MobileNet_V3_Small_Mini_Weights.verify(weights), kwargs)


def _build(name: str, weights: MiniWeightsEnum | None, kwargs: dict[str, Any]) -> nn.Module:
    builder = BUILDERS[name]
    if weights is None:
        return builder(**kwargs)
    classes = len(weights.meta["categories"])
    if kwargs.setdefault("num_classes", classes) != classes:
        raise CourseError(
            f"{weights} has a head for {classes} classes, num_classes={kwargs['num_classes']} was asked for. "
            "Load it as it is, then replace the head: course_utils.pretrained_models.load_pretrained does both."
        )
    model = builder(**kwargs)
    model.load_state_dict(weights.get_state_dict())
    return model


def preprocessing(model: str) -> ImageClassification:
    """Return the transform of a mini entry: shorter side to its size, centre crop, mean and deviation of ImageNet."""
    return PREPROCESSING[model]()
