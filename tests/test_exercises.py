"""Every checker: the solution passes, the usual mistakes do not, and no answer is given away."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import generators_untouched, mini
from PIL import Image
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import Dataset

from course_utils import exercises
from course_utils.experiments import cam_checks
from course_utils.feature_extraction import freeze, train_mode
from course_utils.fine_tuning import FULL, Strategy

UNANSWERED = [
    (exercises.check_frozen_up_to, ("layer4",)),
    (exercises.check_head_size, (2048, 37)),
    (exercises.check_two_step_strategy, ()),
    (exercises.check_repaired_step, ()),
    (exercises.check_stack, ((3, 3), 8)),
    (exercises.check_residual, ()),
    (exercises.check_dataset_class, ()),
    (exercises.check_macro_f1, ()),
    (exercises.check_cam, ()),
    (exercises.check_frozen_gradient, ()),
    (exercises.check_energy, ()),
    (exercises.check_no_hint, ()),
]


@pytest.mark.parametrize(("checker", "rest"), UNANSWERED)
def test_three_dots_are_no_answer(checker, rest):
    verdict = checker(..., *rest)
    assert not verdict.right
    assert str(verdict).startswith("Not yet")


def test_frozen_up_to_accepts_freeze_and_a_loop_by_hand():
    assert exercises.check_frozen_up_to(freeze(mini(), before="layer4"), "layer4").right
    by_hand = mini()
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad = name.startswith(("layer4", "fc"))
    by_hand.eval()
    assert exercises.check_frozen_up_to(by_hand, "layer4").right


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda m: freeze(m, before="layer3"), "layer3 can still learn"),
        (lambda m: freeze(m, before="head"), "layer4 should learn"),
        (lambda m: freeze(m, before="layer4").train(), "BatchNorm"),
        (lambda m: freeze(m, before="layer4").layer4[0].requires_grad_(False), "half frozen"),
    ],
)
def test_frozen_up_to_says_what_is_wrong(spoil, hint):
    model = mini()
    spoil(model)
    verdict = exercises.check_frozen_up_to(model, "layer4")
    assert not verdict.right
    assert hint in verdict.why


@pytest.mark.parametrize(("answer", "right"), [(2049 * 37, True), (2048 * 37, False), (2048, False)])
def test_head_size(answer, right):
    assert exercises.check_head_size(answer, 2048, 37).right is right


def test_head_size_does_not_give_the_answer_away():
    assert f"{2049 * 37:,}" not in str(exercises.check_head_size(5, 2048, 37))


def test_two_step_strategy():
    good = Strategy("two steps", starts=(0, 2, None), rates=(1e-2, 1e-3))
    assert exercises.check_two_step_strategy(good).right
    for wrong in (
        dataclasses.replace(good, starts=(0, 3, None)),
        dataclasses.replace(good, starts=(0, None)),
        dataclasses.replace(good, starts=(0, 2)),
        dataclasses.replace(good, starts=(1, 0, None)),
        dataclasses.replace(good, rates=(1e-2,)),
        FULL,
    ):
        assert not exercises.check_two_step_strategy(wrong).right, wrong


def test_scenarios():
    good = {"two cats": "A", "factory parts": "B", "street scenes": "C", "tiny satellite set": "a"}
    assert exercises.check_scenarios(good).right
    for name in good:
        assert not exercises.check_scenarios({**good, name: "B" if good[name] != "B" else "A"}).right
        assert not exercises.check_scenarios({**good, name: ...}).right
        assert not exercises.check_scenarios({**good, name: "D"}).right


def step_with(repair):
    def step(network, images, targets):
        repair(network)
        nn.functional.cross_entropy(network(images), targets).backward()
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()

    return step


def test_repaired_step():
    assert exercises.check_repaired_step(step_with(train_mode)).right
    assert exercises.check_repaired_step(step_with(nn.Module.eval)).right


def test_a_step_that_moves_batchnorm_or_nothing_is_not_repaired():
    assert "running_mean" in exercises.check_repaired_step(step_with(lambda network: None)).why
    assert "head" in exercises.check_repaired_step(lambda network, images, targets: None).why


# --- day 21 ------------------------------------------------------------------------------------------------------


def test_stack():
    assert exercises.check_stack((7, 3 * 9 * 64**2), (3, 3, 3), 64).right
    for answer in ((9, 3 * 9 * 64**2), (7, 3 * 9 * 64), (7, 9 * 64**2), (..., ...), (7, ...)):
        verdict = exercises.check_stack(answer, (3, 3, 3), 64)
        assert not verdict.right
        assert f"{3 * 9 * 64**2:,}" not in verdict.why


def residual(x, transform, shortcut):
    return torch.relu(transform(x) + (x if shortcut is None else shortcut(x)))


def test_residual():
    assert exercises.check_residual(residual).right


@pytest.mark.parametrize(
    ("block", "hint"),
    [
        (lambda x, f, s: None, "returns nothing"),
        (lambda x, f, s: f(x), "built from x and transform"),
        (lambda x, f, s: x + f(x), "What comes after"),
        (lambda x, f, s: torch.relu(x.relu_() + f(x)), "changed in place"),
        (lambda x, f, s: torch.relu(x + f(x)), "changes the shape"),
        (lambda x, f, s: torch.relu(x + f(x)) if s is None else s(x) + f(x), "takes shortcut"),
    ],
)
def test_residual_says_what_is_wrong(block, hint):
    verdict = exercises.check_residual(block)
    assert not verdict.right and hint in verdict.why


class Pictures(Dataset):
    mode = "RGB"

    def __init__(self, folder, rows, transform=None):
        self.folder, self.rows, self.transform = Path(folder), rows, transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        name, label = self.rows[index]
        image = Image.open(self.folder / name)
        image = image.convert(self.mode) if self.mode else image
        return (self.transform(image) if self.transform else image), label


def test_dataset_class():
    assert exercises.check_dataset_class(Pictures).right


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"__len__": lambda self: 7}, "has 7 samples"),
        ({"__getitem__": Dataset.__getitem__}, "__getitem__"),
        ({"__getitem__": lambda self, i: Pictures.__getitem__(self, i)[0]}, "a pair"),
        ({"__getitem__": lambda self, i: (Pictures.__getitem__(self, i)[0], 0)}, "follow the rows"),
        ({"__getitem__": lambda self, i: (Image.open(self.rows[i][0]), 0)}, "inside `folder`"),
        ({"__getitem__": lambda self, i: (self.transform, self.rows[i][1])}, "the picture itself"),
        ({"mode": None}, "grey"),
        (
            {"__init__": lambda self, folder, rows, transform: Pictures.__init__(self, folder, rows, None)},
            "transform was not applied",
        ),
    ],
)
def test_dataset_class_says_what_is_wrong(changes, hint):
    verdict = exercises.check_dataset_class(type("Wrong", (Pictures,), changes))
    assert not verdict.right and hint in verdict.why


def test_label_keeping():
    good = {
        "ants or bees, mirrored": "keeps",
        "digits 0 to 9, turned upside down": "breaks",
        "red or green traffic light, hue changed": "breaks",
        "crops seen from an aeroplane, turned upside down": "keeps",
        "heart on the left or on the right, mirrored": "breaks",
    }
    assert exercises.check_label_keeping(good).right
    for task, answer in good.items():
        other = {"keeps": "breaks", "breaks": "keeps"}[answer]
        for wrong in (other, ..., "perhaps"):
            verdict = exercises.check_label_keeping({**good, task: wrong})
            assert not verdict.right and task in verdict.why


def macro_f1(matrix):
    return float(np.mean(2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))))


def test_macro_f1_agrees_with_scikit_learn_and_is_accepted():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    matrix = np.bincount(3 * true + predicted, minlength=9).reshape(3, 3)
    assert macro_f1(matrix) == pytest.approx(f1_score(true, predicted, average="macro"))
    assert exercises.check_macro_f1(macro_f1).right


def by_precision_and_recall(matrix):
    right = np.diag(matrix)
    with np.errstate(invalid="ignore"):
        precision, recall = right / matrix.sum(0), right / matrix.sum(1)
        return np.mean(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda m: None, "returns nothing"),
        (lambda m: np.trace(m) / m.sum(), "the accuracy"),
        (lambda m: np.mean(np.diag(m) / m.sum(1)), "mean recall"),
        (lambda m: np.mean(np.diag(m) / m.sum(0)), "is not it"),
        (by_precision_and_recall, "0/0"),
        (lambda m: macro_f1(m[:2, :2]) if m[:, -1].sum() == 0 else macro_f1(m), "counts in the mean"),
    ],
)
def test_macro_f1_says_what_is_wrong(function, hint):
    verdict = exercises.check_macro_f1(function)
    assert not verdict.right and hint in verdict.why


# --- day 22 ------------------------------------------------------------------------------------------------------


def cam(maps, gradients):
    return (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu()


def test_cam():
    assert exercises.check_cam(cam).right
    assert exercises.check_cam(lambda a, g: torch.einsum("nk,nkhw->nhw", g.mean((2, 3)), a).clamp(min=0)).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda a, g: None, "three dots"),
        (lambda a, g: cam(a, g)[:, None], "(2, 1, 3, 4)"),
        (lambda a, g: cam(a, g.mul_(2)), "in place"),
        (lambda a, g: (g.mean((2, 3), keepdim=True) * a).sum(1), "negative"),
        (lambda a, g: (g * a).sum(1).relu(), "HiResCAM"),
        (lambda a, g: (g.mean((2, 3), keepdim=True) * a).relu().sum(1), "When is the ReLU"),
        (lambda a, g: (g.sum((2, 3), keepdim=True) * a).sum(1).relu(), "factor"),
        (lambda a, g: cam(a, g.relu()), "values are others"),
    ],
)
def test_cam_says_what_is_wrong(function, hint):
    verdict = exercises.check_cam(function)
    assert not verdict.right and hint in verdict.why


def gradient_at(model, layer, images, target, asks=True, releases=True, thaws=False, copies=True):
    caught = []
    handle = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    if thaws:
        model.requires_grad_(True)
    if asks:
        images = (images.clone() if copies else images).requires_grad_(True)
    logits = model(images)
    if releases:
        handle.remove()
    return torch.autograd.grad(logits[:, target].sum(), caught[0])[0]


def test_frozen_gradient():
    with generators_untouched():
        assert exercises.check_frozen_gradient(gradient_at).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda *given: None, "three dots"),
        (lambda *given: gradient_at(*given, asks=False), "does not require grad"),
        (lambda *given: gradient_at(*given, asks=False, thaws=True), "not frozen any more"),
        (lambda *given: gradient_at(*given, releases=False), "so is the hook"),
        (lambda *given: gradient_at(*given, copies=False), "caller's pictures"),
        (lambda model, layer, images, target: gradient_at(model, layer, images, 0), "not the gradient"),
        (lambda *given: gradient_at(*given).mean((2, 3)), "not the gradient"),
    ],
)
def test_frozen_gradient_says_what_is_wrong(function, hint):
    verdict = exercises.check_frozen_gradient(function)
    assert not verdict.right and hint in verdict.why


def energy(heat, mask):
    return heat[mask].sum() / heat.sum() if heat.sum() > 0 else mask.mean()


def test_energy():
    assert exercises.check_energy(energy).right
    assert exercises.check_energy(lambda heat, mask: cam_checks.energy_inside(heat[None], mask)[0]).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda heat, mask: None, "three dots"),
        (lambda heat, mask: heat[mask].sum(), "share of the whole map"),
        (lambda heat, mask: heat[mask].mean(), "larger animal"),
        (lambda heat, mask: (heat > 0)[mask].sum() / (heat > 0).sum(), "count"),
        (lambda heat, mask: mask.mean(), "Where does the map come in"),
        (lambda heat, mask: heat[~mask].sum() / heat.sum(), "is not it"),
        (lambda heat, mask: heat[mask].sum() / 9, "a hundred times"),
        (lambda heat, mask: heat[mask].sum() / heat.sum(), "0/0"),
        (lambda heat, mask: heat[mask].sum() / max(heat.sum(), 1e-9), "gets 0"),
    ],
)
def test_energy_says_what_is_wrong(function, hint):
    verdict = exercises.check_energy(function)
    assert not verdict.right and hint in verdict.why
    assert "0.25" not in verdict.why


STATEMENTS = {
    "the map lies on the animal, so the answer is right": False,
    "98 % on a test set with the same watermark show that the network does not cheat": False,
    "a map that stays alike under random weights shows the picture, not the network": True,
    "a map drawn with 224 × 224 pixels can point out single pixels": False,
    "for a wrong answer, the map for the true class is worth a look too": True,
}


def test_statements():
    assert exercises.check_statements(STATEMENTS).right
    for statement, truth in STATEMENTS.items():
        for wrong, hint in ((not truth, "?"), (..., "no answer yet"), ("perhaps", "True or False")):
            verdict = exercises.check_statements({**STATEMENTS, statement: wrong})
            assert not verdict.right and statement in verdict.why and hint in verdict.why


def no_hint(labels, marked, size=None):
    groups = {}
    for i, group in enumerate(zip(labels, marked, strict=True)):
        groups.setdefault(group, []).append(i)
    size = min(map(len, groups.values())) if size is None else size
    return [i for group in groups.values() for i in group[:size]]


def evenly_in_each_class(labels, marked):
    """As many marked as unmarked, but not the same number in every class."""
    chosen = []
    for label in set(labels):
        own = [i for i, other in enumerate(labels) if other == label]
        chosen += [own[j] for j in no_hint([0] * len(own), [marked[i] for i in own])]
    return chosen


def test_no_hint():
    assert exercises.check_no_hint(no_hint).right
    assert exercises.check_no_hint(lambda labels, marked: np.array(no_hint(labels, marked))[::-1]).right


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda labels, marked: None, "three dots"),
        (lambda labels, marked: range(len(labels)), "not as many"),
        (lambda labels, marked: [i for i, mark in enumerate(marked) if not mark], "not as many"),
        (lambda labels, marked: 2 * no_hint(labels, marked), "twice"),
        (lambda labels, marked: [len(labels)], "outside"),
        (evenly_in_each_class, "not equally large"),
        (lambda labels, marked: no_hint(labels, marked, size=1), "more can be kept"),
        (lambda labels, marked: [], "more can be kept"),
    ],
)
def test_no_hint_says_what_is_wrong(function, hint):
    verdict = exercises.check_no_hint(function)
    assert not verdict.right and hint in verdict.why
