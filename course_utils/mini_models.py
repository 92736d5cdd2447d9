"""The embedded default: torchvision's architectures at a fraction of their width.

A ResNet-18 has 11.7 million parameters and its weights are a 45 MB download. At about a quarter of the width it
has 0.86 million, fits into the package as a 2 MB file, and still learned to tell 200 classes of photographs apart.
Every class here is torchvision's own, so ``conv1 … layer4, avgpool, fc`` are where the big model has them, and each
builder is registered with torchvision: ``torchvision.models.get_model("resnet18_mini", weights="DEFAULT")`` works
after ``import course_utils.mini_models``.

The weights were made by :mod:`course_utils.pretraining`; what they reached is in the JSON file beside each of them
and in ``weights.meta``.
"""

# No "from __future__ import annotations" here: torchvision finds the weights of a builder by looking at the
# annotation of its `weights` argument, and a postponed annotation is a string to it.
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models._api import Weights, WeightsEnum, register_model
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms._presets import ImageClassification

from course_utils.errors import CourseError

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

RESNET18_MINI_WIDTHS = (16, 32, 64, 144)
MINI_IMAGE_SIZE = 128


class NarrowResNet(ResNet):
    """A torchvision ResNet with stages of chosen width and no max-pooling after the stem.

    Parameters
    ----------
    widths
        Channels of ``layer1`` to ``layer4``; torchvision's ResNet-18 has ``(64, 128, 256, 512)``.
    layers
        Blocks per stage, ``(2, 2, 2, 2)`` for a ResNet-18.
    num_classes
        Outputs of ``fc``.

    Notes
    -----
    Input is ``(N, 3, H, W)``. The stem halves the size once (a full ResNet does so twice), so 128 × 128 pixels end
    as an 8 × 8 map: small pictures keep enough of a map for Grad-CAM to be worth looking at.

    He, K. et al. (2016). Deep Residual Learning for Image Recognition. https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self, widths: tuple[int, ...], layers: tuple[int, ...] = (2, 2, 2, 2), num_classes: int = 1000
    ) -> None:
        # The parent builds the 11-million-parameter original. On the meta device that allocates nothing and draws
        # nothing from the random generator, so a seed gives the same narrow network whatever the parent does.
        with torch.device("meta"):
            super().__init__(BasicBlock, list(layers), num_classes=num_classes)
        self.inplanes = widths[0]
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.Identity()
        self.layer1 = self._make_layer(BasicBlock, widths[0], layers[0])
        self.layer2 = self._make_layer(BasicBlock, widths[1], layers[1], stride=2)
        self.layer3 = self._make_layer(BasicBlock, widths[2], layers[2], stride=2)
        self.layer4 = self._make_layer(BasicBlock, widths[3], layers[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)


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


class MiniWeightsEnum(WeightsEnum):
    """A torchvision weights entry whose file lies in this package instead of on a server."""

    @property
    def path(self) -> Path:
        """Where the safetensors file is."""
        return WEIGHTS_FOLDER / f"{self.meta['file']}"

    def get_state_dict(self, *_args: Any, check_hash: bool = True, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Read the tensors, as float32 on the CPU.

        Raises
        ------
        CourseError
            If the file is missing, or is not the one whose accuracy ``meta`` states (another SHA-256).
        """
        from safetensors.torch import load

        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise CourseError(
                f"The embedded weights {self.path.name} cannot be read ({error.strerror}). Restore them (git checkout "
                f"course_utils/weights), or make them with `course pretrain {self.path.stem}`."
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if check_hash and found != self.meta["sha256"]:
            raise CourseError(
                f"{self.path.name} has SHA-256 {found}, its entry says {self.meta['sha256']}: the file is damaged or "
                f"was replaced. Restore it (git checkout course_utils/weights), or make both anew with "
                f"`course pretrain {self.path.stem}`."
            )
        # Stored as float16 to halve the package; computing wants float32 again.
        return {name: t.float() if t.is_floating_point() else t for name, t in load(data).items()}


BUILDERS = {"resnet18_mini": partial(NarrowResNet, RESNET18_MINI_WIDTHS)}
PREPROCESSING = partial(ImageClassification, crop_size=MINI_IMAGE_SIZE, resize_size=MINI_IMAGE_SIZE)


def _entry(model: str) -> Weights:
    card = WEIGHTS_FOLDER / f"{model}.json"
    meta = {"file": f"{model}.safetensors", "categories": [], "sha256": ""}
    if card.exists():  # not there yet while a new model is being pre-trained for the first time
        meta = json.loads(card.read_text(encoding="utf-8"))
    return Weights(url=(WEIGHTS_FOLDER / meta["file"]).as_uri(), transforms=PREPROCESSING, meta=meta)


class ResNet18_Mini_Weights(MiniWeightsEnum):
    """Weights of :func:`resnet18_mini`: Tiny ImageNet, 200 classes; accuracy and origin are in ``meta``."""

    TINY_IMAGENET = _entry("resnet18_mini")
    DEFAULT = TINY_IMAGENET


@register_model()
def resnet18_mini(
    *, weights: ResNet18_Mini_Weights | None = None, progress: bool = True, **kwargs: Any
) -> NarrowResNet:
    """ResNet-18 at about a quarter of its width: 0.86 million parameters, input ``(N, 3, 128, 128)``.

    Parameters
    ----------
    weights
        ``ResNet18_Mini_Weights.TINY_IMAGENET``, its name, ``"DEFAULT"``, or None for random weights.
    progress
        Accepted because torchvision's builders take it; nothing is downloaded.
    **kwargs
        ``num_classes``, for instance.
    """
    return _build(BUILDERS["resnet18_mini"], ResNet18_Mini_Weights.verify(weights), kwargs)


def _build(builder: Any, weights: MiniWeightsEnum | None, kwargs: dict[str, Any]) -> nn.Module:
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


def preprocessing() -> ImageClassification:
    """The transform of every mini entry: shorter side to 128, centre crop of 128, ImageNet mean and sd."""
    return PREPROCESSING()
