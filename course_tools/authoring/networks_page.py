"""The page docs/networks.md: what the course can do with each classification network of torchvision, measured.

``python -m course_tools.authoring.networks_page`` writes it. The networks are built without memory where that is
possible: stages, maps and what can be read off do not depend on weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision import models

from course_utils.engine.activation_cache import cut
from course_utils.engine.fingerprints import CannotFingerprint, describe_modules
from course_utils.families import family_of
from course_utils.pretrained_models import cam_layer, cam_map, map_stages, stages, without_memory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
COLUMNS = ("model", "family", "stages", "last stage with a map", "its map", "cached border", "Grad-CAM")
INTRODUCTION = """# The networks

`load_pretrained(name)` takes each classification network of torchvision, and those of timm's EfficientNet, ViT (DeiT
and DINOv2 too) and ConvNeXt with `timm/` in front of their names. A class of one's own gets a row by `register_family`
([package.md](package.md#other-networks)).

The table is made by `python -m course_tools.authoring.networks_page`. The map is channels × height × width for a
picture of 224 × 224 pixels (Inception: 299 × 299). "Cached border" says whether the activations in front of the head
can be cached.
"""


def networks_page() -> str:
    """Return the page, with a row for every classification network of torchvision."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row_of, models.list_models(module=models))]
    return INTRODUCTION + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def row_of(name: str) -> tuple[str, ...]:
    """Return the row of a network, one text for each of ``COLUMNS``."""
    model = without_memory(name).eval()
    shape = _map_with_gradient(model, 299 if name.startswith("inception") else 224)
    size = " × ".join(map(str, shape))
    cached, explained = _can_be_cached(model), len(shape) == 3 and shape[1] * shape[2] > 1
    answers = ("yes" if answer else "no" for answer in (cached, explained))
    return (f"`{name}`", family_of(model).name, str(len(stages(model))), map_stages(model)[-1], size, *answers)


def _map_with_gradient(model: nn.Module, side: int) -> torch.Size:
    """Return the shape of the map that Grad-CAM explains, without the batch; empty if no gradient comes to it."""
    caught: list[torch.Tensor] = []
    pictures = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    with cam_layer(model).register_forward_hook(lambda _module, _inputs, output: caught.append(output)):
        logits = model(pictures)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), caught, allow_unused=True)
    return torch.Size() if gradient is None else cam_map(model)(gradient).shape[1:]


def _can_be_cached(model: nn.Module) -> bool:
    front, _ = cut(model, list(stages(model))[-1])
    try:
        return bool(describe_modules(front, strict=True))
    except CannotFingerprint:
        return False


if __name__ == "__main__":
    PAGE.write_text(networks_page(), encoding="utf-8")
