"""(g) What people would pick instead, on the same network, photographs and splits: accuracy, seconds, lines to write.

The network is EfficientNet-Lite0 with its ImageNet weights at 224 pixels; the photographs are ants and bees. Compared:
fastai's ``fine_tune`` with its defaults, scikit-learn's logistic regression on timm's features, the loop of PyTorch's
transfer-learning tutorial (frozen and fine-tuned, 25 epochs as there, or fewer), and ours: ``fit`` with a ready-made
strategy. Every way learns from the training pictures, may look at the validation pictures, and is asked once about the
test pictures. Seconds are from files to a network that can be used; nothing is cached before.

    python benchmarks/alternatives.py [--quick]

fastai is measured where it is installed (``pip install fastai``), best in an environment of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from common import make_entry, make_parser, report, timed
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader

from course_utils.datasets import Splits, few_per_class, in_memory, open_dataset
from course_utils.evaluation import evaluate, interval_text
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, LAST_BLOCK
from course_utils.mini.lite import EfficientNet_Lite0_Weights
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.settings import load_settings
from course_utils.training import fit
from course_utils.transforms import eval_transform, train_transform

MODEL, ARCHITECTURE = "efficientnet_lite0", "tf_efficientnet_lite0"
TUTORIAL_EPOCHS, OUR_EPOCHS = 25, 3
Answer = Callable[[], int]  # asks the test pictures, and returns how many are answered right


def timm_model(classes: int) -> nn.Module:
    """Return timm's network with ImageNet weights from the installed package and a new head."""
    model = timm.create_model(ARCHITECTURE)
    model.load_state_dict(EfficientNet_Lite0_Weights.DEFAULT.get_state_dict())
    model.reset_classifier(classes)
    return model


def fastai_fine_tune(splits: Splits, epochs: int) -> Answer:
    """``vision_learner(dls, model).fine_tune(epochs)``: one frozen epoch, then all layers, with fastai's rates."""
    from fastai.vision import all as fastai

    labels = {
        path: splits.classes[label]
        for part in (splits.train, splits.val)
        for path, label in zip(part.paths, part.labels, strict=True)
    }
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_y=labels.get,
        splitter=fastai.FuncSplitter(set(splits.val.paths).__contains__),
        item_tfms=fastai.Resize(224),
        batch_tfms=fastai.aug_transforms(),
    )
    loaders = block.dataloaders(list(labels), bs=16, num_workers=0)
    body = EfficientNet_Lite0_Weights.DEFAULT.get_state_dict()
    learner = fastai.vision_learner(loaders, ARCHITECTURE, pretrained=False, metrics=fastai.accuracy)
    missing = learner.model[0].model.load_state_dict(body, strict=False)
    assert not missing.missing_keys, missing
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)

    def answer() -> int:
        test = loaders.test_dl([str(path) for path in splits.test.paths])
        predicted = learner.get_preds(dl=test)[0].argmax(1)
        names = [loaders.vocab[i] for i in predicted.tolist()]
        return sum(name == splits.classes[label] for name, label in zip(names, splits.test.labels, strict=True))

    return answer


def sklearn_probe(splits: Splits) -> Answer:
    """Logistic regression on timm's pooled features, its penalty chosen by cross-validation."""
    prepare = eval_transform(weights_entry(MODEL))
    body = timm_model(0).eval()

    @torch.inference_mode()
    def features(part: str) -> np.ndarray:
        loader = DataLoader(getattr(splits, part).with_transform(prepare), 32)
        return torch.cat([body(images) for images, _ in loader]).numpy()

    labels = [*splits.train.labels, *splits.val.labels]
    probe = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=10, cv=5, max_iter=2000, use_legacy_attributes=False)
    )
    probe.fit(np.concatenate([features("train"), features("val")]), labels)
    return lambda: int((probe.predict(features("test")) == np.array(splits.test.labels)).sum())


def tutorial_loop(splits: Splits, epochs: int, frozen: bool) -> Answer:
    """The tutorial's loop: SGD 0.001, momentum 0.9, a tenth every 7 epochs, random crops, the best epoch is kept."""
    entry = weights_entry(MODEL)
    model = timm_model(len(splits.classes))
    if frozen:
        for parameter in model.parameters():
            parameter.requires_grad = False
        model.reset_classifier(len(splits.classes))
    loaders = {
        "train": DataLoader(splits.train.with_transform(train_transform(entry, "strong")), 4, shuffle=True),
        "val": DataLoader(splits.val.with_transform(eval_transform(entry)), 4),
    }
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, best_right = copy.deepcopy(model.state_dict()), -1
    for _ in range(epochs):
        for phase in ("train", "val"):
            model.train(phase == "train")
            right = 0
            for images, labels in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(images)
                    loss = nn.functional.cross_entropy(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                right += int((outputs.argmax(1) == labels).sum())
        scheduler.step()
        if right > best_right:
            best, best_right = copy.deepcopy(model.state_dict()), right
    model.load_state_dict(best)
    test = splits.test.with_transform(eval_transform(entry))
    return lambda: evaluate(model, test).right


def ours(splits: Splits, strategy: object) -> Answer:
    """``fit`` with a ready-made strategy."""
    prepare = eval_transform(weights_entry(MODEL))
    data = splits.with_transforms(prepare, prepare)
    train, val = in_memory(data.train), in_memory(data.val)
    model = strategy.starting_model(MODEL, len(splits.classes), seed=0)
    fit(model, train, val, strategy, epochs=OUR_EPOCHS, batch_size=16, seed=0, log="off")
    return lambda: evaluate(model, data.test).right


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--tutorial-epochs", type=int, default=TUTORIAL_EPOCHS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of libraries among themselves
    settings = load_settings()
    splits = open_dataset("hymenoptera", seed=0, cache=settings.cache, mirror=settings.mirror)
    if options.quick:
        parts = {name: few_per_class(getattr(splits, name), 6) for name in ("train", "val", "test")}
        splits = dataclasses.replace(splits, **parts)
    tutorial = 1 if options.quick else options.tutorial_epochs
    load_pretrained(MODEL)  # imports timm, which is nobody's own time
    probe, loop, own = lines_of(sklearn_probe, timm_model), lines_of(tutorial_loop, timm_model), lines_of(ours)
    ways: dict[str, tuple[Callable[[], Answer], int]] = {
        "scikit-learn's probe on timm's features": (lambda: sklearn_probe(splits), probe),
        f"the tutorial's loop, frozen, {tutorial} epochs": (lambda: tutorial_loop(splits, tutorial, True), loop),
        f"the tutorial's loop, fine-tuned, {tutorial} epochs": (lambda: tutorial_loop(splits, tutorial, False), loop),
        "ours: feature extraction": (lambda: ours(splits, FEATURE_EXTRACTION), own),
        "ours: last block": (lambda: ours(splits, LAST_BLOCK), own),
        "ours: full fine-tuning": (lambda: ours(splits, FULL), own),
    }
    if importlib.util.find_spec("fastai"):
        fast = lines_of(fastai_fine_tune)
        ways = {f"fastai's fine_tune({OUR_EPOCHS})": (lambda: fastai_fine_tune(splits, OUR_EPOCHS), fast), **ways}
    rows, numbers = [], {}
    for name, (way, lines) in ways.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["COURSE_ACTIVATIONS"] = str(Path(folder) / "activations")  # nothing cached before
            seconds, answer = timed(way)
        right, n = answer(), len(splits.test)
        numbers[name] = {"seconds": seconds, "right": right, "n": n, "lines": lines}
        rows.append([name, f"{seconds:.1f}", interval_text(right, n), lines])
        print(rows[-1], flush=True)
    entry = make_entry(
        "EfficientNet-Lite0 on hymenoptera: fastai, scikit-learn, the tutorial's loop and ours",
        columns=["way", "seconds", "test accuracy", "lines to write"],
        rows=rows,
        findings=findings(numbers),
        limit="a forward pass over 244 pictures, which every way needs at least once.",
        notes=[
            "One seed, so differences below some points are not told apart. Lines are counted in this script's "
            "functions for each way, without docstrings and blank lines.",
            "Seconds are from the files to a finished network, without the import of libraries; nothing was cached.",
        ],
        numbers=numbers,
    )
    report("g", entry, options)
    return entry


def lines_of(*functions: Callable) -> int:
    """Return the number of lines in the bodies of functions, without docstrings and blank lines."""
    bodies = [inspect.getsource(function).split('"""')[2] for function in functions]
    return sum(bool(line.strip()) for body in bodies for line in body.splitlines())


def findings(numbers: dict[str, dict]) -> list[str]:
    """Return what the table says about ours and the others, in sentences."""
    own = {name: found for name, found in numbers.items() if name.startswith("ours")}
    best = max(own, key=lambda name: (own[name]["right"], -own[name]["seconds"]))
    lines = []
    for name, found in numbers.items():
        if name not in own:
            ratio, points = found["seconds"] / own[best]["seconds"], own[best]["right"] - found["right"]
            lines.append(f"{best} against {name}: {points:+d} of {found['n']} pictures, {ratio:.1f} times as fast.")
    return lines


if __name__ == "__main__":
    main()
