"""Which of the usual remedies make fine-tuning hold on a real network: one training per remedy and seed.

python benchmarks/remedies.py                 hymenoptera, every remedy
python benchmarks/remedies.py --data breeds   nine breeds of dogs and cats from Tiny ImageNet, the ready-made strategies

The network is EfficientNet-Lite0 with its ImageNet weights. Each row changes what it says and nothing else. Every seed
draws another validation split and another head; the best epoch is chosen on validation, and the test pictures are asked
once at the end. Which remedies the ready-made strategies take was decided on the validation column. A row that is in
results/remedies.json already is not trained again, so that a stopped run goes on; results/remedies.md is made from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sklearn.linear_model import LogisticRegression

from course_tools.authoring.pretraining import find_tiny_imagenet
from course_utils.common.command_line import OneLineParser
from course_utils.common.files import write_text
from course_utils.common.measuring import hardware
from course_utils.common.tables import markdown_table
from course_utils.datasets import Splits, in_memory, open_dataset
from course_utils.engine.pixel_store import training_pictures
from course_utils.evaluation import evaluate
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import DISCRIMINATIVE, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.settings import Settings, load_settings
from course_utils.training import fit
from course_utils.transforms import eval_transform

MODEL = "efficientnet_lite0"
EPOCHS = 3
FROZEN = "frozen features, logistic regression"
# What their pages call them: Chihuahua, Yorkshire terrier, golden and Labrador retriever, German shepherd, standard
# poodle, tabby, Persian and Egyptian cat.
BREEDS = ("n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799")
BREEDS += ("n02123045", "n02123394", "n02124075")


def written(strategy: Strategy) -> Strategy:
    """Return a ready-made strategy as it is written, without the recipe of the family."""
    return replace(strategy, by_family=False)


def full(rates: tuple[float, ...], starts: tuple[int, ...] = (0,), statistics: bool = False) -> Strategy:
    """Return a strategy that trains everything."""
    return Strategy("full", starts, rates, update_statistics=statistics)


# Name of a row → strategy, and options of `fit` (`augment` is that of the pictures).
READY: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "last block, ready-made": (LAST_BLOCK, {}),
    "progressive, ready-made": (PROGRESSIVE, {}),
    "discriminative, ready-made": (DISCRIMINATIVE, {}),
    "full, ready-made": (FULL, {}),
}
REMEDIES: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "last block, as written": (written(LAST_BLOCK), {}),
    "progressive, as written": (written(PROGRESSIVE), {}),
    "discriminative, as written": (written(DISCRIMINATIVE), {}),
    "full, as written": (written(FULL), {}),
    "full, statistics kept": (full(FULL.rates), {}),
    "full, warm-up 0.3": (replace(written(FULL), warmup=0.3), {}),
    "full, body 1e-4": (full((1e-2, 1e-4), statistics=True), {}),
    "full, body 1e-4, head 3e-3": (full((3e-3, 1e-4), statistics=True), {}),
    "full, body 1e-4, head 3e-3, statistics kept": (full((3e-3, 1e-4)), {}),
    "full, layer-wise 3e-4 × 0.75, head 3e-3, statistics kept": (
        full((3e-3, *(3e-4 * 0.75**depth for depth in range(9)))),
        {},
    ),
    "full, head first, body 3e-5, statistics kept": (full((1e-2, 3e-5), (0, 1)), {}),
    **READY,
    "full, ready-made, EMA 0.99": (FULL, {"ema": 0.99}),
    "full, ready-made, light augmentation": (FULL, {"augment": "light"}),
    "full, ready-made, MixUp": (FULL, {"mix": "mixup"}),
    "full, ready-made, CutMix": (FULL, {"mix": "cutmix"}),
}


def breeds(settings: Settings) -> Path:
    """Return a folder with 80 photographs of each breed, copied out of Tiny ImageNet."""
    folder = settings.cache / "breeds"
    if not folder.is_dir():
        source = find_tiny_imagenet(None, settings.cache, settings.mirror)
        beside = folder.with_suffix(".part")
        for breed in BREEDS:
            (beside / breed).mkdir(parents=True, exist_ok=True)
            for number in range(80):
                shutil.copy(source / "train" / breed / "images" / f"{breed}_{number}.JPEG", beside / breed)
        beside.rename(folder)
    return folder


def frozen_features(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy of logistic regression on features; its penalty is chosen on validation."""
    model = load_pretrained(MODEL)
    train, val, test = (tuple(t.numpy() for t in extract_features(model, data[part])) for part in data)
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(*train) for c in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
    best = max(fitted, key=lambda probe: probe.score(*val))
    return {"val": best.score(*val), "test": best.score(*test), "C": best.C}


def trained(splits: Splits, data: Mapping[str, Any], strategy: Strategy, options: dict, seed: int) -> dict[str, Any]:
    """Return the accuracy of one training, and of the same network when it is asked mirror images too."""
    options = dict(options)
    augment = options.pop("augment", "none")
    pictures = data["train"]
    if augment != "none":
        pictures = training_pictures(splits.train, weights_entry(MODEL), augment, epochs=EPOCHS, share=1 / 3)
    model = strategy.starting_model(MODEL, len(splits.classes), seed=seed)
    run = fit(model, pictures, data["val"], strategy, epochs=EPOCHS, batch_size=16, seed=seed, log="off", **options)
    once, twice = (evaluate(model, data["test"], mirrored=mirrored).accuracy for mirrored in (False, True))
    return {"val": run.best.val_accuracy, "test": once, "test_mirrored": twice, "best_epoch": run.best.epoch + 1}


def page(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as a Markdown page."""
    parts = [
        "# Remedies for fine-tuning on EfficientNet-Lite0",
        "This page is written by `python benchmarks/remedies.py` from results/remedies.json. Mean ± standard deviation "
        f"over seeds, in percent; {EPOCHS} epochs, batches of 16, 224 pixels. Each seed has its own validation split "
        "and head. *Mirrored*: the same network, asked about the mirror image of each test picture too.",
    ]
    for name in dict.fromkeys(key.split(":")[0] for key in done):
        rows = {
            key.split(": ", 1)[1]: list(seeds.values()) for key, seeds in done.items() if key.startswith(f"{name}:")
        }
        n = rows[FROZEN][0]["n"]
        table = [_row(row, seeds, rows[FROZEN]) for row, seeds in rows.items()]
        heads = ["remedy", "seeds", "validation", f"test, n = {n}", "mirrored", "test, minus frozen features"]
        parts += [f"## {name}", markdown_table(heads, table)]
    return "\n\n".join([*parts, f"Measured on: {hardware('cpu')}."]) + "\n"


def _row(name: str, seeds: list[Mapping[str, float]], frozen: list[Mapping[str, float]]) -> list[Any]:
    parts = [_spread([s[part] for s in seeds if part in s]) for part in ("val", "test", "test_mirrored")]
    gains = [s["test"] - f["test"] for s, f in zip(seeds, frozen, strict=False)]
    return [name, len(seeds), *parts, _spread(gains, sign=True)]


def _spread(values: list[float], sign: bool = False) -> str:
    if not values:
        return ""
    number = f"{100 * mean(values):+.1f}" if sign else f"{100 * mean(values):.1f}"
    return f"{number} ± {100 * stdev(values):.1f}" if len(values) > 1 else number


def main() -> None:
    """Run what is not in the file yet, print a line for each, and write the page."""
    parser = OneLineParser(prog="remedies.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--data", choices=("hymenoptera", "breeds"), default="hymenoptera")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/remedies.json"))
    options = parser.parse_args()
    done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    settings, prepare = load_settings(), eval_transform(weights_entry(MODEL))
    name = str(breeds(settings)) if options.data == "breeds" else options.data
    rows = REMEDIES if options.data == "hymenoptera" else READY | {"full, as written": REMEDIES["full, as written"]}
    for seed in range(options.seeds):
        splits = open_dataset(name, seed=seed, cache=settings.cache, mirror=settings.mirror)
        prepared = splits.with_transforms(prepare, prepare)
        data = {part: in_memory(getattr(prepared, part)) for part in ("train", "val", "test")}
        for row in (FROZEN, *rows):
            seeds = done.setdefault(f"{options.data}: {row}", {})
            if str(seed) in seeds:
                continue
            found = frozen_features(data) if row == FROZEN else trained(splits, data, *rows[row], seed)
            seeds[str(seed)] = found | {"n": len(splits.test)}
            print(f"{options.data}, seed {seed}: {row}: {found}", flush=True)
            write_text(options.out, json.dumps(done, indent=1) + "\n")
    write_text(options.out.with_suffix(".md"), page(done))


if __name__ == "__main__":
    main()
