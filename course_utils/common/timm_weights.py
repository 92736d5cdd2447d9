"""Networks and weights of timm (https://huggingface.co/docs/timm), by the same few words as torchvision's.

timm is imported inside of the functions: it takes a second, and most of the course does not need it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of

PREFIX = "timm/"
WEIGHTS_FILE = "model.safetensors"  # not the pickle beside it


@dataclass(frozen=True)
class TimmWeights:
    """A weights entry of timm with the words of torchvision's: ``transforms()``, ``meta``, ``url``.

    Parameters
    ----------
    name
        Name of the network with its weights, ``"convnext_tiny.in12k_ft_in1k"``.
    repository
        Where its file is on the Hugging Face hub, ``"timm/convnext_tiny.in12k_ft_in1k"``.
    transforms
        Function that gives the transform: PIL RGB → ``(3, H, W)``.
    meta
        ``categories`` and ``licence``.
    """

    name: str
    repository: str
    transforms: partial
    meta: dict[str, Any] = field(hash=False)

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{WEIGHTS_FILE}"

    def __str__(self) -> str:
        return self.name


def timm_entry(name: str) -> TimmWeights:
    """Return the entry of timm's default weights for a network.

    Parameters
    ----------
    name
        As timm's ``create_model`` takes it, with or without the weights: ``"convnext_tiny"``,
        ``"vit_small_patch14_dinov2.lvd142m"``.

    Raises
    ------
    CourseError
        If timm has no such network, or no weights for it.
    """
    from timm.models import get_pretrained_cfg, is_model

    architecture = name.partition(".")[0]
    cfg = get_pretrained_cfg(name) if is_model(architecture) else None
    if cfg is None or not cfg.hf_hub_id:
        problem = f"no weights for {name!r}" if is_model(architecture) else f"no network {name!r}"
        raise CourseError(f"timm has {problem}. timm.list_models('{architecture[:6]}*', pretrained=True) lists some.")
    side = cfg.input_size[1]
    transforms = partial(
        ImageClassification,
        crop_size=side,
        resize_size=int(side / cfg.crop_pct),
        mean=cfg.mean,
        std=cfg.std,
        interpolation=InterpolationMode(cfg.interpolation),
    )
    imagenet = ResNet18_Weights.DEFAULT.meta["categories"]
    # Other labels, such as the 21,843 of the full ImageNet, have no names here; a network without labels has none.
    names = imagenet if cfg.num_classes == len(imagenet) else [f"class {i}" for i in range(cfg.num_classes)]
    tag = f".{cfg.tag}" if cfg.tag else ""
    hub = cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{architecture}{tag}"
    return TimmWeights(f"{architecture}{tag}", hub, transforms, {"categories": names, "licence": cfg.license})


def build_timm(name: str, num_classes: int | None = None) -> nn.Module:
    """Return a network of timm with random weights; `num_classes` None for those that its weights know, at least 1."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        timm_entry(name)  # says so
    return timm.create_model(architecture, num_classes=num_classes or len(timm_entry(name).meta["categories"]) or 1)


def load_timm(entry: TimmWeights) -> nn.Module:
    """Return a network of timm with its weights; errors as in :func:`fetch_timm_weights`."""
    import timm

    path = fetch_timm_weights(entry)
    classes = len(entry.meta["categories"]) or 1  # a head for what has none, to be replaced
    return timm.create_model(
        entry.name, pretrained=True, num_classes=classes, pretrained_cfg_overlay={"file": str(path)}
    )


def fetch_timm_weights(entry: TimmWeights) -> Path:
    """Return the path of an entry's file; download it if it is not there.

    A file of safetensors holds numbers and no code. A downloaded one is compared with its full SHA-256, which the hub
    tells, whenever it is used.

    Raises
    ------
    CourseError
        Without a network, or when the check fails.
    """
    by_hand = Path(torch.hub.get_dir()) / "checkpoints" / f"{entry.name}.safetensors"
    if by_hand.exists():
        return by_hand
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(entry.repository, WEIGHTS_FILE))
    except Exception as error:  # no network, no such file, no right to it: a dozen kinds of error
        raise CourseError(
            f"The weights {entry} are not on this machine and could not be downloaded ({type(error).__name__}). Fetch "
            f"{entry.url} with another machine and save it as {by_hand}, or set COURSE_WEIGHTS=lite to work with "
            "ImageNet weights that are installed with the course."
        ) from error
    wanted = path.resolve().name  # the hub's cache names a file by its SHA-256
    if len(wanted) == 64 and (found := sha256_of(path)) != wanted:
        raise CourseError(
            f"{path} has SHA-256 {found}, it has to be {wanted}: the file is damaged. Delete it and run again."
        )
    return path
