"""common/timm_weights.py: networks of timm under names with timm/ in front, and their files."""

from __future__ import annotations

import hashlib

import huggingface_hub
import pytest
import torch
from helpers import cheap_model, copy_of, generators_untouched, moved
from safetensors.torch import save_file

from course_utils.common.errors import CourseError
from course_utils.common.timm_weights import fetch_timm_weights, timm_entry
from course_utils.pretrained_models import last_layer, load_pretrained, weights_entry

NAME = "timm/convnext_atto"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch cache on a machine without network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def refuse(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    return tmp_path


def saved(path, name=NAME):
    """Weights of a network in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = cheap_model(name)
    save_file(model.state_dict(), path)
    return model


def test_an_entry_has_what_an_entry_of_torchvision_has():
    entry = weights_entry(NAME)
    assert entry.name == timm_entry("convnext_atto").name and entry.name.startswith("convnext_atto.")
    assert entry.url == f"https://huggingface.co/{entry.repository}/resolve/main/model.safetensors"
    assert len(entry.meta["categories"]) == 1000 and entry.meta["categories"][0] == "tench" and entry.meta["licence"]
    assert entry.transforms()(torch.zeros(3, 300, 300, dtype=torch.uint8)).shape == (3, 224, 224)
    assert weights_entry(NAME, entry) is entry and weights_entry(NAME, None) is None


def test_no_file_and_no_network(hub):
    entry = weights_entry(NAME)
    with pytest.raises(CourseError) as caught:
        load_pretrained(NAME)
    place = hub / "hub" / "checkpoints" / f"{entry.name}.safetensors"
    for part in (str(entry), entry.url, str(place), "COURSE_WEIGHTS=lite", "LocalEntryNotFoundError"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_file_that_was_placed_by_hand_is_used(hub, num_classes):
    model = saved(hub / "hub" / "checkpoints" / f"{weights_entry(NAME).name}.safetensors")
    if num_classes is None:
        with generators_untouched():
            found = load_pretrained(NAME)
        assert not moved(copy_of(model), copy_of(found))
    else:
        found = load_pretrained(NAME, num_classes)
        body = {key for key in model.state_dict() if not key.startswith("head.fc")}
        before, after = copy_of(model), copy_of(found)
        assert not moved({key: before[key] for key in body}, {key: after[key] for key in body})
        assert last_layer(found).out_features == 3
    assert all(p.requires_grad and p.is_leaf for p in found.parameters()) and found.training


def test_a_file_of_the_hub_is_compared_with_its_name(hub, tmp_path, monkeypatch):
    saved(tmp_path / "blob")
    data = (tmp_path / "blob").read_bytes()
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    (link := tmp_path / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(link))
    assert fetch_timm_weights(weights_entry(NAME)) == link
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CourseError, match=r"has SHA-256 .* damaged\. Delete it") as caught:
        load_pretrained(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [("timm/convnext_ato", "timm has no network 'convnext_ato'"), ("timm/test_vit_x", "timm has no network")],
)
def test_a_name_that_timm_does_not_know(name, told):
    for weights in ("DEFAULT", None):
        with pytest.raises(CourseError, match=told):
            load_pretrained(name, 3, weights=weights)


def test_a_network_that_was_trained_without_labels_needs_a_number_of_classes():
    with pytest.raises(CourseError, match="give num_classes"):
        load_pretrained("timm/vit_small_patch14_dinov2")
