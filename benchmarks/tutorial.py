"""(a) The PyTorch transfer-learning tutorial's procedure against ``fit`` with cached activations.

The baseline does plainly what the tutorial describes (https://pytorch.org/tutorials/beginner/transfer_learning_tutorial):
feature extraction on hymenoptera with a ResNet-18 at 224 pixels, random crops and mirror images, batches of 4, SGD with
a learning rate of 0.001 and a momentum of 0.9, a tenth of it after every 7 epochs, 25 epochs, the weights of the best
epoch. All of it goes through the whole network in every epoch. Ours is one call of ``fit`` for as many epochs; the time
to fill the cache counts.

The pictures come from ``COURSE_DATA_MIRROR`` or the network (`open_dataset("hymenoptera")`). Speed does not depend on
the values of the weights, so they are random unless ``--weights imagenet`` is given; accuracy is compared with the
embedded weights (``resnet18_mini``, at their own size).
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from common import make_entry, make_parser, report, timed
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course_utils.common.state import evaluating
from course_utils.datasets import PhotoDataset, few_per_class, in_memory, open_dataset
from course_utils.engine.activation_cache import cut
from course_utils.engine.artifact_store import DATA_FILE
from course_utils.engine.history import Run
from course_utils.engine.inputs import CacheOptions
from course_utils.engine.loading import workers_for
from course_utils.evaluation import compare_models, evaluate, interval_text
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.pretrained_models import last_layer, load_pretrained, weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform, train_transform

EPOCHS, BATCH = 25, 4
GOAL = 15


@dataclass(frozen=True)
class Job:
    """One comparison.

    Parameters
    ----------
    name
        Of the network.
    weights
        As ``load_pretrained`` takes them; None for random ones.
    train, val
        Pictures without a transform.
    epochs
        Of ours.
    workers
        Processes that load pictures for the baseline; ours decodes in threads, once.
    """

    name: str
    weights: str | None
    train: PhotoDataset
    val: PhotoDataset
    epochs: int
    workers: int

    def model(self) -> nn.Module:
        """The network with a new head; the same at every call."""
        torch.manual_seed(0)
        return load_pretrained(self.name, len(self.train.classes), self.weights)

    def prepared(self, augment: str = "none") -> tuple[PhotoDataset, PhotoDataset]:
        """Both splits with the transforms of the network."""
        entry = weights_entry(self.name)
        return self.train.with_transform(train_transform(entry, augment)), self.val.with_transform(
            eval_transform(entry)
        )


def tutorial_epochs(model: nn.Module, train: Dataset, val: Dataset, epochs: int, workers: int) -> list[float]:
    """Train the head as the tutorial does, for the first `epochs` of 25; returns the seconds of each epoch.

    The model ends with the weights of its best epoch.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
    head = last_layer(model)
    head.requires_grad_(True)
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    loaders = [DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers) for data in (train, val)]
    best, best_right, seconds = None, -1, []

    def epoch() -> int:
        model.train()  # BatchNorm of the frozen part moves too: so it does in the tutorial
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            return sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loaders[1])

    for _ in range(epochs):
        taken, right = timed(epoch)
        seconds.append(taken)
        if right > best_right:
            best, best_right = copy.deepcopy(model.state_dict()), right
    model.load_state_dict(best)
    return seconds


def ours(job: Job, model: nn.Module, folder: str) -> Run:
    """The same task as one call; the cache is filled by it if it is not there."""
    options = {"epochs": job.epochs, "batch_size": BATCH, "log": "off", "device": "cpu"}
    return fit(model, *job.prepared(), FEATURE_EXTRACTION, cache=CacheOptions("on", folder=folder), **options)


def forward_alone(job: Job) -> float:
    """Seconds of the frozen stages over all pictures, once, with pictures that are tensors already."""
    front, _ = cut(job.model().eval(), "head")
    batches = [torch.stack([data[i][0] for i in range(min(64, len(data)))]) for data in job.prepared()]

    def run() -> None:
        with evaluating(front):
            for images in batches:
                front(images.contiguous(memory_format=torch.channels_last))

    run()  # the first call plans
    seconds, _ = timed(run)
    return seconds / sum(map(len, batches)) * (len(job.train) + len(job.val))


def measure(job: Job, baseline_epochs: int) -> dict[str, float]:
    """Seconds of the baseline and of ours, the second with an empty cache and again with a full one."""
    torch.manual_seed(0)
    epochs = tutorial_epochs(job.model(), *job.prepared("light"), baseline_epochs, job.workers)
    with tempfile.TemporaryDirectory() as folder:
        cold, run = timed(lambda: ours(job, job.model(), folder))
        warm, _ = timed(lambda: ours(job, job.model(), folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob(DATA_FILE))
    mean = statistics.fmean(epochs)
    return {
        "baseline_epochs_measured": len(epochs),
        "baseline_epoch": mean,
        "baseline": mean * job.epochs,
        "ours": cold,
        "ours_again": warm,
        "ours_epoch": statistics.median(record.seconds for record in run.history),
        "forward_alone": forward_alone(job),
        "bytes": size,
    }


def accuracy(job: Job) -> tuple[str, str, str, dict[str, float]]:
    """Both procedures to their end on the embedded weights, compared picture by picture."""
    models = [job.model(), job.model()]
    torch.manual_seed(0)
    tutorial_epochs(models[0], *job.prepared("light"), job.epochs, job.workers)
    with tempfile.TemporaryDirectory() as folder:
        ours(job, models[1], folder)
    val = in_memory(job.prepared()[1])
    reports = [evaluate(model, val) for model in models]
    pair = compare_models(*reports, names=("the tutorial's", "ours"))
    texts = [interval_text(found.right, len(val)) for found in reports]
    numbers = {"right": [found.right for found in reports], "n": len(val), "p": pair.p_value}
    numbers |= {"difference": pair.difference, "interval": list(pair.interval)}
    return texts[0], texts[1], " ".join(str(pair).split()), numbers


def pictures(quick: bool) -> tuple[PhotoDataset, PhotoDataset]:
    """The tutorial's two sets: the official train, and the official val, which chooses the epoch there."""
    splits = open_dataset("hymenoptera")
    train = PhotoDataset(splits.train.paths + splits.val.paths, splits.train.labels + splits.val.labels, splits.classes)
    return (few_per_class(train, 4), few_per_class(splits.test, 2)) if quick else (train, splits.test)


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--weights", choices=["random", "imagenet"], default="random")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the baseline that are measured (at most 25)")
    parser.add_argument(
        "--workers", type=int, help="processes that load pictures for the baseline (default: by a rule)"
    )
    options = parser.parse_args(arguments)
    train, val = pictures(options.quick)
    epochs = 2 if options.quick else EPOCHS
    name = "resnet18_mini" if options.quick else "resnet18"
    weights = "DEFAULT" if options.weights == "imagenet" else None
    # The tutorial has four. On two cores they slow it down (16.1 s an epoch with two, 14.9 without).
    workers = workers_for(train)[0] if options.workers is None else options.workers
    job = Job(name, weights, train, val, epochs, workers)
    found = measure(job, min(options.epochs, epochs))
    theirs, own, verdict, numbers = accuracy(Job("resnet18_mini", "DEFAULT", train, val, epochs, workers))
    entry = make_entry(
        f"feature extraction on hymenoptera, {name}, {epochs} epochs: the tutorial's procedure and ours",
        columns=["procedure", "seconds", "seconds per epoch", "accuracy with the embedded weights"],
        rows=[
            ["tutorial", f"{found['baseline']:.1f}", f"{found['baseline_epoch']:.2f}", theirs],
            ["ours, nothing cached before", f"{found['ours']:.1f}", f"{found['ours_epoch']:.2f}", own],
            ["ours again, the cache is there", f"{found['ours_again']:.1f}", f"{found['ours_epoch']:.2f}", own],
        ],
        findings=[
            f"{found['baseline'] / found['ours']:.1f} times faster, filling the cache included (goal: {GOAL}); "
            f"{found['baseline'] / found['ours_again']:.1f} times when it is there.",
            f"Accuracy on the {len(val)} pictures that choose the epoch in both: {verdict}",
        ],
        limit=f"the frozen stages alone, once over all {len(train) + len(val)} pictures (already decoded): "
        f"{found['forward_alone']:.1f} s; each epoch reads {found['bytes'] / 1e6:.1f} MB of activations.",
        notes=[
            f"{_derived(found, epochs)} It loads pictures with {workers} workers.",
            "Ours learns without augmentation, by AdamW with a warm-up and a cosine.",
        ],
        numbers=found | {"accuracy": numbers},
        device="cpu",
    )
    report("a", entry, options)
    return entry


def _derived(found: dict[str, float], epochs: int) -> str:
    measured = found["baseline_epochs_measured"]
    if measured == epochs:
        return f"All {epochs} epochs of the tutorial's procedure were measured."
    return f"The tutorial's seconds are derived: {measured} epochs were measured, their mean times {epochs}."


if __name__ == "__main__":
    main()
