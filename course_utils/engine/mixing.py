"""Batches of mixed pictures with mixed labels: MixUp and CutMix.

Zhang, H. et al. (2018). mixup: Beyond Empirical Risk Minimization. https://arxiv.org/abs/1710.09412
Yun, S. et al. (2019). CutMix. https://arxiv.org/abs/1905.04899
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from course_utils.data.samples import NO_LABEL

MIXES = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
ALPHA = 1.0  # of the Beta distribution of the shares: all shares are equally likely


def mixing(name: str | None, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function from a batch, images ``(n, 3, H, W)`` and labels ``(n,)``, to what the network learns from.

    With ``"mixup"`` or ``"cutmix"`` that are mixed images and the share of each class in them ``(n, classes)``; with
    None the same batch. The shares of a picture without a label are 0. What is mixed is drawn from torch's global
    generator.
    """
    if name is None:
        return lambda images, labels: (images, labels)
    mix = MIXES[name](alpha=ALPHA, num_classes=classes + 1)  # one more for those without a label

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) == 0:  # a shard of several processes
            return images, labels
        images, shares = mix(images, labels.where(labels != NO_LABEL, classes))
        return images, shares[:, :classes]

    return mixed
