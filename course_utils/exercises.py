"""Checkers for the exercises: each says whether an answer is right, and if not, what about it is not.

A checker never gives the answer away. It works on what the reader built, so every right solution passes, not only
the one that the course has in mind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from course_utils.fine_tuning import Strategy


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why, or what to look at."""

    right: bool
    why: str

    def __str__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.why}"


def _unanswered(answer: object) -> Verdict | None:
    return Verdict(False, "replace the three dots by your answer.") if answer is None or answer is ... else None


# --- day 20 ------------------------------------------------------------------------------------------------------


def check_frozen_up_to(model: nn.Module, first_learning: str) -> Verdict:
    """Day 20, exercise 1: exactly the stages from `first_learning` on learn, and frozen ones are in eval mode."""
    if missing := _unanswered(model):
        return missing
    from course_utils.feature_extraction import learning_stages
    from course_utils.pretrained_models import stages

    row = stages(model)
    names = list(row)
    border = names.index(first_learning)
    learning = learning_stages(model)
    partly = [name for name, stage in row.items() if len({p.requires_grad for p in stage.parameters()}) > 1]
    if partly:
        return Verdict(False, f"{partly[0]} is half frozen: some of its parameters learn and some do not.")
    if too_many := [name for name in learning if names.index(name) < border]:
        return Verdict(False, f"{', '.join(too_many)} can still learn, and should not.")
    if too_few := [name for name in names[border:] if name not in learning]:
        return Verdict(False, f"{', '.join(too_few)} should learn, and does not.")
    if any(module.training for name in names[:border] for module in row[name].modules()):
        return Verdict(
            False,
            "the right parameters are frozen, but something in a frozen stage is in training mode. "
            "What would BatchNorm do there?",
        )
    return Verdict(True, f"{', '.join(learning)} learn, and nothing else can move.")


def check_head_size(answer: int, features: int, classes: int) -> Verdict:
    """Day 20, exercise 2: how many numbers a new head has."""
    if missing := _unanswered(answer):
        return missing
    weights = features * classes
    if answer == weights + classes:
        return Verdict(True, f"{weights:,} weights and {classes} biases.")
    if answer == weights:
        return Verdict(False, "these are the weights. What else does a linear layer add to each output?")
    return Verdict(False, f"{answer:,} is not it. Each of {classes} outputs looks at every one of {features} features.")


def check_two_step_strategy(strategy: Strategy) -> Verdict:
    """Day 20, exercise 3: head from the start, one more stage from the third epoch, at a tenth of the head's rate."""
    if missing := _unanswered(strategy):
        return missing
    from course_utils.pretrained_models import load_pretrained

    head, block, *deeper = reversed(strategy.plan(load_pretrained("resnet18_mini", 2, weights=None)).rows)
    if head.start != 0:
        return Verdict(False, f"the head starts in epoch {head.start}; it should learn from the first one, which is 0.")
    if block.start is None or block.start != 2:
        return Verdict(
            False, f"{block.stage} starts at {block.start}. Epochs count from 0: which number has the third?"
        )
    if any(row.start is not None for row in deeper):
        return Verdict(False, "stages further in front learn too. The last entry of `starts` holds for all of them.")
    if abs(block.rate * 10 / head.rate - 1) > 1e-6:
        return Verdict(
            False, f"{block.stage} has the rate {block.rate:g}, the head {head.rate:g}: that is not a tenth."
        )
    return Verdict(True, "the head settles first, then the block in front of it follows slowly.")


def check_scenarios(answers: Mapping[str, str]) -> Verdict:
    """Day 20, exercise 4: scenario A, B or C for four described data sets."""
    expected = {"two cats": "A", "factory parts": "B", "street scenes": "C", "tiny satellite set": "A"}
    for name, scenario in expected.items():
        given = answers.get(name)
        if given is None or given is ...:
            return Verdict(False, f"{name!r} has no answer yet.")
        if str(given).upper() not in ("A", "B", "C"):
            return Verdict(False, f"{name!r}: answer with A, B or C, not {given!r}.")
        if str(given).upper() != scenario:
            return Verdict(False, f"{name!r}: think again about how many pictures there are for how many parameters.")
    return Verdict(True, "the amount of data decides how much of the network you can afford to move.")


def check_repaired_step(step: Callable[[nn.Module, Tensor, Tensor], None]) -> Verdict:
    """Day 20, exercise 5: a training step that changes the head and nothing else, tried on a small network."""
    if missing := _unanswered(step):
        return missing
    import torch

    from course_utils.feature_extraction import FrozenMoved, freeze, frozen_proof
    from course_utils.pretrained_models import load_pretrained

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = freeze(load_pretrained("resnet18_mini", 2, weights=None))
        model.train()  # as somebody else's code may have left it
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
        try:
            with frozen_proof(model):
                step(model, images, labels)
        except FrozenMoved as moved:
            return Verdict(False, str(moved))
    return Verdict(True, "the head moved, and every frozen number is the same to the last bit.")


# --- day 21 ------------------------------------------------------------------------------------------------------


def check_stack(answer: tuple[int, int], kernels: Sequence[int], channels: int) -> Verdict:
    """Day 21, exercise 1: receptive field and weights (without biases) of a stack of convolutions of stride 1."""
    if missing := _unanswered(answer) or next(filter(None, map(_unanswered, answer)), None):
        return missing
    field, weights = answer
    right_field, right_weights = 1 + sum(k - 1 for k in kernels), sum(k * k for k in kernels) * channels**2
    if field != right_field:
        return Verdict(False, f"a receptive field of {field} is not it: what does each layer add to the one before?")
    if weights == right_weights // channels:
        return Verdict(False, "each of the output channels has a kernel for each of the input channels.")
    if weights != right_weights:
        return Verdict(False, f"{weights:,} weights are not it: count one layer, then how many layers there are.")
    single = field**2 * channels**2
    return Verdict(True, f"{field} × {field} pixels for {weights:,} weights; one large kernel would need {single:,}.")


def check_residual(block: Callable[[Tensor, nn.Module, nn.Module | None], Tensor]) -> Verdict:
    """Day 21, exercise 2: ``block(x, transform, shortcut)`` is a residual block, with and without a projection."""
    if missing := _unanswered(block):
        return missing
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x, same, wider = torch.randn(2, 4, 5, 5), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        projection = nn.Conv2d(4, 6, 1, stride=2)
        before = x.clone()
        out = block(x, same, None)
        if out is None or out is ...:
            return Verdict(False, "the function returns nothing yet.")
        if not torch.equal(x, before):
            return Verdict(False, "the input was changed in place: the shortcut would see the changed one.")
        if torch.allclose(out, x + same(x)):
            return Verdict(False, "the sum is right. What comes after it, before the next block?")
        if not torch.allclose(out, torch.relu(x + same(x)), atol=1e-6):
            return Verdict(False, "without a shortcut module, the result should be built from x and transform(x).")
        try:
            out = block(x, wider, projection)
        except RuntimeError:
            return Verdict(False, "where transform changes the shape, x has to go through `shortcut` to be added.")
        if not torch.allclose(out, torch.relu(projection(x) + wider(x)), atol=1e-6):
            return Verdict(False, "with a shortcut module, the sum takes shortcut(x) in the place of x.")
    return Verdict(True, "identity plus residual, and a projection where the shapes differ.")


def check_dataset_class(dataset_class: type[Dataset]) -> Verdict:
    """Day 21, exercise 3: ``dataset_class(folder, rows, transform)`` with rows of (file name, label)."""
    if missing := _unanswered(dataset_class):
        return missing
    import tempfile
    from pathlib import Path

    from PIL import Image

    with tempfile.TemporaryDirectory() as scratch:
        rows = [("grey.png", 1), ("red.png", 0), ("blue.png", 2)]
        Image.new("L", (6, 4), 128).save(Path(scratch) / "grey.png")
        Image.new("RGB", (6, 4), "red").save(Path(scratch) / "red.png")
        Image.new("RGB", (6, 4), "blue").save(Path(scratch) / "blue.png")
        data, plain_data = (
            dataset_class(scratch, rows, lambda image: str(image.size)),
            dataset_class(scratch, rows, None),
        )
        try:
            if len(data) != len(rows):
                return Verdict(False, f"it says that it has {len(data)} samples, the table has {len(rows)} rows.")
            samples, plain = [data[i] for i in range(3)], [plain_data[i] for i in range(3)]
        except (TypeError, NotImplementedError) as error:
            return Verdict(False, f"a Dataset needs __len__ and __getitem__: {error}.")
        except FileNotFoundError:
            return Verdict(False, "a file was not found. The table has names; they are inside `folder`.")
    if not all(isinstance(sample, tuple) and len(sample) == 2 for sample in samples):
        return Verdict(False, "each sample should be a pair: the picture, and its label.")
    if [label for _, label in samples] != [1, 0, 2]:
        return Verdict(False, "the labels do not follow the rows of the table.")
    if any(not isinstance(picture, Image.Image) for picture, _ in plain):
        return Verdict(False, "with transform=None, hand out the picture itself.")
    if any(picture.mode != "RGB" for picture, _ in plain):
        return Verdict(False, "one picture is grey and stays so; a network wants three channels of every one.")
    if any(picture != "(6, 4)" for picture, _ in samples):
        return Verdict(False, "the transform was not applied to the picture.")
    return Verdict(True, "three pictures, three labels, every one RGB.")


def check_label_keeping(answers: Mapping[str, str]) -> Verdict:
    """Day 21, exercise 4: whether an augmentation ``"keeps"`` or ``"breaks"`` the label, in five tasks."""
    expected = {
        "ants or bees, mirrored": "keeps",
        "digits 0 to 9, turned upside down": "breaks",
        "red or green traffic light, hue changed": "breaks",
        "crops seen from an aeroplane, turned upside down": "keeps",
        "heart on the left or on the right, mirrored": "breaks",
    }
    for task, verdict in expected.items():
        given = answers.get(task)
        if given is None or given is ...:
            return Verdict(False, f"{task!r} has no answer yet.")
        if given not in ("keeps", "breaks"):
            return Verdict(False, f"{task!r}: answer with 'keeps' or 'breaks', not {given!r}.")
        if given != verdict:
            return Verdict(False, f"{task!r}: imagine the changed picture. What would a careful person write on it?")
    return Verdict(True, "an augmentation is a statement about the task: this change does not matter.")


def check_macro_f1(function: Callable[[np.ndarray], float]) -> Verdict:
    """Day 21, exercise 5: macro F1 from a confusion matrix, rows true and columns predicted."""
    if missing := _unanswered(function):
        return missing
    import math

    import numpy as np

    easy, skewed = np.array([[8, 2], [4, 6]]), np.array([[90, 10, 0], [5, 5, 0], [2, 0, 3]])
    never = np.array([[5, 0, 0], [2, 3, 0], [4, 0, 0]])  # the third class is never predicted

    def macro(matrix: np.ndarray) -> float:
        return float(np.mean(2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))))

    given = function(easy)
    if given is None or given is ...:
        return Verdict(False, "the function returns nothing yet.")
    for matrix in (skewed, easy):
        given = float(function(matrix))
        if math.isclose(given, np.trace(matrix) / matrix.sum()):
            return Verdict(False, "this is the accuracy. F1 is computed for each class, then averaged over classes.")
        if math.isclose(given, np.mean(np.diag(matrix) / matrix.sum(1))):
            return Verdict(False, "this is the mean recall. Where do wrong alarms for a class come in?")
        if not math.isclose(given, macro(matrix), abs_tol=1e-9):
            return Verdict(False, f"{given:.3f} is not it. For one class: 2 · right / (predicted + present).")
    if math.isnan(float(function(never))):
        return Verdict(False, "a class that is never predicted gives 0/0 for its precision; its F1 should be 0.")
    if not math.isclose(float(function(never)), macro(never), abs_tol=1e-9):
        return Verdict(False, "a class that is never predicted has an F1 of 0, and counts in the mean.")
    return Verdict(True, "every class counts the same, however rare it is.")
