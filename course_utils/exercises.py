"""Checkers for the exercises: each says whether an answer is right, and if not, what about it is not.

A checker never gives the answer away. It works on what the reader built, so every right solution passes.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.state import generators_put_back
from course_utils.feature_extraction import FrozenMoved, freeze, frozen_proof, learning_stages
from course_utils.fine_tuning import Strategy
from course_utils.pretrained_models import cam_layer, load_pretrained, stages


@dataclass(frozen=True)
class Verdict:
    """The judgement on an answer: right or not, and why, or what to look at."""

    right: bool
    why: str

    def __str__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.why}"


def _no(hint: str) -> Verdict:
    return Verdict(False, hint)


def _unanswered(*answers: object) -> Verdict | None:
    missing = any(answer is None or answer is ... for answer in answers)
    return _no("replace the three dots by your answer.") if missing else None


def _judge_table(
    answers: Mapping[str, object],
    expected: Mapping[str, tuple[object, str]],
    allowed: tuple[object, ...],
    words: str,
    praise: str,
    read: Callable[[object], object] = lambda given: given,
) -> Verdict:
    """Return the verdict on the first question that is not answered right, or the praise.

    `expected` has the right answer to each question and the hint for a wrong one, `words` names the `allowed` answers
    in a hint, and `read` maps what the reader wrote to one of them.
    """
    for question, (right, hint) in expected.items():
        given = answers.get(question)
        if _unanswered(given):
            return _no(f"{question!r} has no answer yet.")
        if read(given) not in allowed:
            return _no(f"{question!r}: answer with {words}, not {given!r}.")
        if read(given) != right:
            return _no(f"{question!r}: {hint}")
    return Verdict(True, praise)


# --- day 20 ------------------------------------------------------------------------------------------------------


def check_frozen_up_to(model: nn.Module, first_learning: str) -> Verdict:
    """Day 20, exercise 1: exactly the stages from `first_learning` on learn, and frozen ones are in eval mode."""
    if missing := _unanswered(model):
        return missing
    row = stages(model)
    names = list(row)
    border = names.index(first_learning)
    learning = learning_stages(model)
    partly = [name for name, stage in row.items() if len({p.requires_grad for p in stage.parameters()}) > 1]
    if partly:
        return _no(f"{partly[0]} is half frozen: some of its parameters learn and some do not.")
    if too_many := [name for name in learning if names.index(name) < border]:
        return _no(f"{', '.join(too_many)} can still learn, and should not.")
    if too_few := [name for name in names[border:] if name not in learning]:
        return _no(f"{', '.join(too_few)} should learn, and does not.")
    if any(module.training for name in names[:border] for module in row[name].modules()):
        wrong = "the right parameters are frozen, but something in a frozen stage is in training mode."
        return _no(f"{wrong} What would BatchNorm do there?")
    return Verdict(True, f"{', '.join(learning)} learn, and nothing else can move.")


def check_head_size(answer: int, features: int, classes: int) -> Verdict:
    """Day 20, exercise 2: number of parameters of a new head."""
    if missing := _unanswered(answer):
        return missing
    weights = features * classes
    if answer == weights + classes:
        return Verdict(True, f"{weights:,} weights and {classes} biases.")
    if answer == weights:
        return _no("these are the weights. What else does a linear layer add to each output?")
    return _no(f"{answer:,} is not it. Each of {classes} outputs looks at every one of {features} features.")


def check_two_step_strategy(strategy: Strategy) -> Verdict:
    """Day 20, exercise 3: head from the start, one more stage from the third epoch, at a tenth of the head's rate."""
    if missing := _unanswered(strategy):
        return missing
    head, block, *deeper = reversed(strategy.plan(load_pretrained("resnet18_mini", 2, weights=None)).rows)
    if head.start != 0:
        return _no(f"the head starts in epoch {head.start}; it should learn from the first one, which is 0.")
    if block.start != 2:
        return _no(f"{block.stage} starts at {block.start}. Epochs count from 0: which number has the third?")
    if any(row.start is not None for row in deeper):
        return _no("stages further in front learn too. The last entry of `starts` holds for all of them.")
    if abs(block.rate * 10 / head.rate - 1) > 1e-6:
        return _no(f"{block.stage} has the rate {block.rate:g}, the head {head.rate:g}: that is not a tenth.")
    return Verdict(True, "the head settles first, then the block in front of it follows slowly.")


def check_scenarios(answers: Mapping[str, str]) -> Verdict:
    """Day 20, exercise 4: scenario A, B or C for four described data sets."""
    scenarios = {"two cats": "A", "factory parts": "B", "street scenes": "C", "tiny satellite set": "A"}
    hint = "think again about how many pictures there are for how many parameters."
    expected = {name: (scenario, hint) for name, scenario in scenarios.items()}
    praise = "the amount of data decides how much of the network you can afford to move."
    return _judge_table(answers, expected, ("A", "B", "C"), "A, B or C", praise, lambda given: str(given).upper())


def check_repaired_step(step: Callable[[nn.Module, Tensor, Tensor], None]) -> Verdict:
    """Day 20, exercise 5: a training step that changes the head and nothing else, tried on a small network."""
    if missing := _unanswered(step):
        return missing
    with generators_put_back(seed=0):
        model = freeze(load_pretrained("resnet18_mini", 2, weights=None))
        model.train()  # as somebody else's code may have left it
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
        try:
            with frozen_proof(model):
                step(model, images, labels)
        except FrozenMoved as moved:
            return _no(str(moved))
    return Verdict(True, "the head moved, and every frozen number is the same to the last bit.")


# --- day 21 ------------------------------------------------------------------------------------------------------


def check_stack(answer: tuple[int, int], kernels: Sequence[int], channels: int) -> Verdict:
    """Day 21, exercise 1: receptive field and weights (without biases) of a stack of convolutions of stride 1."""
    if missing := _unanswered(answer) or _unanswered(*answer):
        return missing
    field, weights = answer
    right_field, right_weights = 1 + sum(k - 1 for k in kernels), sum(k * k for k in kernels) * channels**2
    if field != right_field:
        return _no(f"a receptive field of {field} is not it: what does each layer add to the one before?")
    if weights == right_weights // channels:
        return _no("each of the output channels has a kernel for each of the input channels.")
    if weights != right_weights:
        return _no(f"{weights:,} weights are not it: count one layer, then how many layers there are.")
    single = field**2 * channels**2
    return Verdict(True, f"{field} × {field} pixels for {weights:,} weights; one large kernel would need {single:,}.")


def check_residual(block: Callable[[Tensor, nn.Module, nn.Module | None], Tensor]) -> Verdict:
    """Day 21, exercise 2: ``block(x, transform, shortcut)`` is a residual block, with and without a projection."""
    if missing := _unanswered(block):
        return missing
    with generators_put_back(seed=0), torch.no_grad():
        x, same, wider = torch.randn(2, 4, 5, 5), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        projection = nn.Conv2d(4, 6, 1, stride=2)
        before = x.clone()
        out = block(x, same, None)
        if _unanswered(out):
            return _no("the function returns nothing yet.")
        if not torch.equal(x, before):
            return _no("the input was changed in place: the shortcut would see the changed one.")
        if torch.allclose(out, x + same(x)):
            return _no("the sum is right. What comes after it, before the next block?")
        if not torch.allclose(out, torch.relu(x + same(x)), atol=1e-6):
            return _no("without a shortcut module, the result should be built from x and transform(x).")
        try:
            out = block(x, wider, projection)
        except RuntimeError:
            return _no("where transform changes the shape, x has to go through `shortcut` to be added.")
        if not torch.allclose(out, torch.relu(projection(x) + wider(x)), atol=1e-6):
            return _no("with a shortcut module, the sum takes shortcut(x) in the place of x.")
    return Verdict(True, "identity plus residual, and a projection where the shapes differ.")


def check_dataset_class(dataset_class: type[Dataset]) -> Verdict:
    """Day 21, exercise 3: ``dataset_class(folder, rows, transform)`` with rows of (file name, label)."""
    if missing := _unanswered(dataset_class):
        return missing
    with tempfile.TemporaryDirectory() as scratch:
        rows = [("grey.png", 1), ("red.png", 0), ("blue.png", 2)]
        for (name, _), mode, color in zip(rows, ("L", "RGB", "RGB"), (128, "red", "blue"), strict=True):
            Image.new(mode, (6, 4), color).save(Path(scratch) / name)
        data = dataset_class(scratch, rows, lambda image: str(image.size))
        plain_data = dataset_class(scratch, rows, None)
        try:
            if len(data) != len(rows):
                return _no(f"it says that it has {len(data)} samples, the table has {len(rows)} rows.")
            samples, plain = [data[i] for i in range(3)], [plain_data[i] for i in range(3)]
        except (TypeError, NotImplementedError) as error:
            return _no(f"a Dataset needs __len__ and __getitem__: {error}.")
        except FileNotFoundError:
            return _no("a file was not found. The table has names; they are inside `folder`.")
    if not all(isinstance(sample, tuple) and len(sample) == 2 for sample in samples):
        return _no("each sample should be a pair: the picture, and its label.")
    if [label for _, label in samples] != [1, 0, 2]:
        return _no("the labels do not follow the rows of the table.")
    if any(not isinstance(picture, Image.Image) for picture, _ in plain):
        return _no("with transform=None, hand out the picture itself.")
    if any(picture.mode != "RGB" for picture, _ in plain):
        return _no("one picture is grey and stays so; a network wants three channels of every one.")
    if any(picture != "(6, 4)" for picture, _ in samples):
        return _no("the transform was not applied to the picture.")
    return Verdict(True, "three pictures, three labels, every one RGB.")


def check_label_keeping(answers: Mapping[str, str]) -> Verdict:
    """Day 21, exercise 4: an augmentation ``"keeps"`` or ``"breaks"`` the label, in five tasks."""
    verdicts = {
        "ants or bees, mirrored": "keeps",
        "digits 0 to 9, turned upside down": "breaks",
        "red or green traffic light, hue changed": "breaks",
        "crops seen from an aeroplane, turned upside down": "keeps",
        "heart on the left or on the right, mirrored": "breaks",
    }
    hint = "imagine the changed picture. What would a careful person write on it?"
    expected = {task: (verdict, hint) for task, verdict in verdicts.items()}
    praise = "an augmentation is a statement about the task: this change does not matter."
    return _judge_table(answers, expected, ("keeps", "breaks"), "'keeps' or 'breaks'", praise)


def check_macro_f1(function: Callable[[np.ndarray], float]) -> Verdict:
    """Day 21, exercise 5: macro F1 from a confusion matrix, rows true and columns predicted."""
    if missing := _unanswered(function):
        return missing
    easy, skewed = np.array([[8, 2], [4, 6]]), np.array([[90, 10, 0], [5, 5, 0], [2, 0, 3]])
    never = np.array([[5, 0, 0], [2, 3, 0], [4, 0, 0]])  # the third class is never predicted

    def macro(matrix: np.ndarray) -> float:
        return float(np.mean(2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))))

    if _unanswered(function(easy)):
        return _no("the function returns nothing yet.")
    for matrix in (skewed, easy):
        given = float(function(matrix))
        if math.isclose(given, np.trace(matrix) / matrix.sum()):
            return _no("this is the accuracy. F1 is computed for each class, then averaged over classes.")
        if math.isclose(given, np.mean(np.diag(matrix) / matrix.sum(1))):
            return _no("this is the mean recall. Where do wrong alarms for a class come in?")
        if not math.isclose(given, macro(matrix), abs_tol=1e-9):
            return _no(f"{given:.3f} is not it. For one class: 2 · right / (predicted + present).")
    given = float(function(never))
    if math.isnan(given):
        return _no("a class that is never predicted gives 0/0 for its precision; its F1 should be 0.")
    if not math.isclose(given, macro(never), abs_tol=1e-9):
        return _no("a class that is never predicted has an F1 of 0, and counts in the mean.")
    return Verdict(True, "every class counts the same, however rare it is.")


# --- day 22 ------------------------------------------------------------------------------------------------------


def check_cam(function: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Day 22, exercise 1: maps and gradients ``(N, K, h, w)`` to the Grad-CAM ``(N, h, w)``."""
    if missing := _unanswered(function):
        return missing
    generator = torch.Generator().manual_seed(0)
    maps, gradients = (torch.randn(2, 5, 3, 4, generator=generator) for _ in range(2))
    maps = maps.relu()
    before = maps.clone(), gradients.clone()
    given = function(maps, gradients)
    if missing := _unanswered(given):
        return missing
    if not (torch.equal(maps, before[0]) and torch.equal(gradients, before[1])):
        return _no("an input was changed in place; the network may still need it.")
    if tuple(given.shape) != (2, 3, 4):
        return _no(f"for maps of (2, 5, 3, 4) the result has the shape {tuple(given.shape)}: one value each.")
    means, sums = gradients.mean((2, 3), keepdim=True), gradients.sum((2, 3), keepdim=True)
    signed = (means * maps).sum(1)
    if torch.allclose(given, signed, atol=1e-6):
        return _no("the sum is right, and has negative values. What is done with these?")
    if torch.allclose(given, (gradients * maps).sum(1).relu(), atol=1e-6):
        return _no("this multiplies position by position, which is HiResCAM. What does a channel get as weight?")
    if torch.allclose(given, (means * maps).relu().sum(1), atol=1e-6):
        return _no("a channel that speaks against the class has to count too. When is the ReLU applied?")
    if torch.allclose(given, (sums * maps).sum(1).relu(), atol=1e-6):
        return _no("right up to a factor: look at what stands in front of the sum over positions.")
    if not torch.allclose(given, signed.relu(), atol=1e-6):
        return _no("the values are others. First one weight per channel, then a weighted sum of the maps.")
    return Verdict(True, "one weight per channel, a weighted sum, and only what speaks for the class.")


def check_frozen_gradient(function: Callable[[nn.Module, nn.Module, Tensor, int], Tensor]) -> Verdict:
    """Day 22, exercise 2: ``function(model, layer, images, target)`` is the gradient at a layer of a frozen network."""
    if missing := _unanswered(function):
        return missing
    with generators_put_back(seed=0):
        model = freeze(load_pretrained("resnet18_mini", 2, weights=None), before=None).eval()
        images = torch.randn(2, 3, 64, 64)
    layer = cam_layer(model)
    try:
        given = function(model, layer, images, 1)
    except RuntimeError as error:
        return _no(f"on a frozen network it raises: {str(error).splitlines()[0]}")
    if missing := _unanswered(given):
        return missing
    if any(parameter.requires_grad for parameter in model.parameters()):
        return _no("it works, and the network is not frozen any more. What else can ask for a gradient?")
    if layer._forward_hooks:  # torch has no public way to list them
        return _no("the gradient is there, and so is the hook: every later call would go on collecting maps.")
    if images.requires_grad:
        return _no("the caller's pictures were changed: they ask for gradients now. Use a copy.")
    # The last layer is linear behind an average, so the gradient is known without a backward pass.
    positions = given.shape[-1] * given.shape[-2]
    expected = (model.fc.weight[1] / positions)[None, :, None, None].expand(2, -1, given.shape[-2], given.shape[-1])
    if given.shape != expected.shape or not torch.allclose(given, expected, atol=1e-6):
        return _no("this is not the gradient of the target's logit with respect to the output of `layer`.")
    return Verdict(True, "the pictures ask for the gradient, the network stays frozen, and no hook is left.")


def check_energy(function: Callable[[np.ndarray, np.ndarray], float]) -> Verdict:
    """Day 22, exercise 3: the share of one map ``(H, W)`` that lies on the mask."""
    if missing := _unanswered(function):
        return missing
    heat, mask = np.zeros((4, 6)), np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True  # a quarter of the picture
    heat[1, 2:4], heat[0, 0], heat[3, 5] = 1.0, 2.0, 5.0
    given = function(heat, mask)
    if missing := _unanswered(given):
        return missing
    inside = float(heat[mask].sum())
    for wrong, hint in (
        (inside, "this is how much of the map lies on the mask. Which share of the whole map is it?"),
        (float(heat[mask].mean()), "this is the mean on the mask: a larger animal would get a smaller number."),
        (float((heat[mask] > 0).mean()), "this counts pixels; a hot pixel should count more than a lukewarm one."),
        (float((heat > 0)[mask].sum() / (heat > 0).sum()), "this counts pixels; hot ones should count more."),
        (float(mask.mean()), "this is the share of the picture that the mask takes. Where does the map come in?"),
    ):
        if math.isclose(given, wrong):
            return _no(hint)
    if not math.isclose(given, inside / heat.sum(), rel_tol=1e-6):
        return _no(f"{given:.3f} is not it. Divide what lies on the mask by all there is.")
    if not math.isclose(function(100 * heat, mask), given, rel_tol=1e-6):
        return _no("a map that is a hundred times as strong should get the same share.")
    with np.errstate(invalid="ignore", divide="ignore"):
        empty = float(function(np.zeros_like(heat), mask))
    if math.isnan(empty):
        return _no("a map that is 0 everywhere gives 0/0. What would a map get that knows nothing?")
    if not math.isclose(empty, float(mask.mean())):
        return _no(f"a map that is 0 everywhere gets {empty:g}. A map without any preference: which share?")
    return Verdict(True, "a share of the map, and an empty map gets what chance gives.")


def check_statements(answers: Mapping[str, bool]) -> Verdict:
    """Day 22, exercise 4: true or false, five statements on what a map shows."""
    expected = {
        "the map lies on the animal, so the answer is right": (
            False,
            "think of the mistakes in section 7: where were their maps?",
        ),
        "98 % on a test set with the same watermark show that the network does not cheat": (
            False,
            "what did the first line of the table in section 8 look like?",
        ),
        "a map that stays alike under random weights shows the picture, not the network": (
            True,
            "what is left in a network whose weights are random?",
        ),
        "a map drawn with 224 × 224 pixels can point out single pixels": (
            False,
            "how many positions did the map have before it was enlarged?",
        ),
        "for a wrong answer, the map for the true class is worth a look too": (
            True,
            "an animal can be overlooked, or seen and misread. How would you tell?",
        ),
    }
    praise = "a map is evidence to be tested, not a verdict."
    return _judge_table(answers, expected, (True, False), "True or False", praise)


def check_no_hint(function: Callable[[Sequence[int], Sequence[bool]], Sequence[int]]) -> Verdict:
    """Day 22, exercise 5: ``function(labels, marked)`` are indices among which the mark tells nothing of the class."""
    if missing := _unanswered(function):
        return missing
    for counts in (
        {(0, True): 9, (0, False): 3, (1, True): 4, (1, False): 8, (2, True): 5, (2, False): 7},
        {(0, True): 2, (0, False): 10, (1, True): 6, (1, False): 6},
    ):
        pictures = list(Counter(counts).elements())
        pictures = pictures[::2] + pictures[1::2]  # the groups do not lie side by side
        given = function([label for label, _ in pictures], [mark for _, mark in pictures])
        if missing := _unanswered(given):
            return missing
        indices = [int(i) for i in given]
        if len(set(indices)) != len(indices):
            return _no("a picture is in it twice: that makes the set larger, not richer.")
        if any(not 0 <= i < len(pictures) for i in indices):
            return _no(f"an index lies outside of 0 to {len(pictures) - 1}.")
        groups = Counter(pictures[i] for i in indices)
        if any(groups[label, True] != groups[label, False] for label, _ in counts):
            return _no("in at least one class the marked pictures are not as many as the unmarked ones.")
        if len({groups[group] for group in counts}) > 1:
            return _no("the mark says nothing any more, but the classes are not equally large.")
        if groups.total() < min(counts.values()) * len(counts):
            return _no(f"right, but only {len(indices)} pictures: more can be kept. Which group is the smallest?")
    return Verdict(True, "whoever looks at the mark learns nothing from it.")
