"""Which of the usual remedies make fine-tuning hold on a real network: one training per remedy and seed.

python benchmarks/remedies.py --seeds 3 --out results/remedies.json

The network is EfficientNet-Lite0 with its ImageNet weights. Each row changes what it says and nothing else. Every seed
draws another validation split and another head; the best epoch is chosen on validation, and the test pictures are asked
once at the end. A row that is in the file already is not trained again, so that a stopped run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course_utils.common.command_line import OneLineParser
from course_utils.common.files import write_text
from course_utils.datasets import in_memory, open_dataset
from course_utils.evaluation import evaluate
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import DISCRIMINATIVE, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.settings import load_settings
from course_utils.training import fit
from course_utils.transforms import eval_transform

MODEL = "efficientnet_lite0"


def layerwise(top: float, decay: float, head: float) -> tuple[float, ...]:
    """Return the rates of ten stages from the head on: each stage at `decay` times the rate of the one behind it."""
    return (head, *(top * decay**depth for depth in range(9)))


REMEDIES = {
    "full, as it is": FULL,
    "statistics kept": Strategy("full", (0,), FULL.rates, update_statistics=False),
    "body 1e-4": Strategy("full", (0,), (1e-2, 1e-4)),
    "body 1e-4, head 3e-3": Strategy("full", (0,), (3e-3, 1e-4)),
    "body 1e-4, head 3e-3, statistics kept": Strategy("full", (0,), (3e-3, 1e-4), update_statistics=False),
    "head first, body 1e-4, statistics kept": Strategy("full", (0, 1), (1e-2, 1e-4), update_statistics=False),
    "layer-wise 3e-4 × 0.75, statistics kept": Strategy(
        "full", (0,), layerwise(3e-4, 0.75, 3e-3), update_statistics=False
    ),
    "warm-up 0.3": Strategy("full", (0,), FULL.rates, warmup=0.3),
    "last block, as it is": LAST_BLOCK,
    "last block 1e-4, statistics kept": Strategy(
        "last", (0, 0, None), (1e-2, 1e-4), hidden=False, update_statistics=False
    ),
    "discriminative, as it is": DISCRIMINATIVE,
    "progressive, as it is": PROGRESSIVE,
}


def frozen_features(data: Any, model: Any) -> Any:
    """Return the test predictions' accuracy of logistic regression; its penalty is chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    train, val, test = (tuple(t.numpy() for t in extract_features(model, split)) for split in data)
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(*train) for c in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
    best = max(fitted, key=lambda probe: probe.score(*val))
    return {"val": best.score(*val), "test": best.score(*test), "C": best.C}


def main() -> None:
    """Run what is not in the file yet, and print a line for each."""
    parser = OneLineParser(prog="remedies.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--data", default="hymenoptera")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/remedies.json"))
    options = parser.parse_args()
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    settings, entry = load_settings(), weights_entry(MODEL)
    prepare = eval_transform(entry)
    for seed in range(options.seeds):
        splits = open_dataset(options.data, seed=seed, cache=settings.cache, mirror=settings.mirror)
        splits = splits.with_transforms(prepare, prepare)
        data = tuple(map(in_memory, (splits.train, splits.val, splits.test)))
        for name in ("frozen features", *REMEDIES):
            key = f"{Path(options.data).name}, seed {seed}, {options.epochs} epochs: {name}"
            if key in done:
                continue
            if name == "frozen features":
                done[key] = frozen_features(data, load_pretrained(MODEL))
            else:
                strategy = REMEDIES[name]
                model = strategy.starting_model(MODEL, len(splits.classes), seed=seed)
                run = fit(model, *data[:2], strategy, epochs=options.epochs, batch_size=16, seed=seed, log="off")
                report = evaluate(model, data[2])
                done[key] = {
                    "val": run.best.val_accuracy,
                    "last_val": run.history[-1].val_accuracy,
                    "test": report.accuracy,
                    "best_epoch": run.best.epoch + 1,
                    "seconds": round(sum(record.seconds for record in run.history), 1),
                }
            done[key]["n"] = len(splits.test)
            print(f"{key}: {done[key]}", flush=True)
            write_text(options.out, json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
