"""The making of the embedded weights: ``course pretrain resnet18_mini``.

Pre-training is ordinary supervised training on a big set of photographs, here Tiny ImageNet: 200 classes, 64 × 64
pixels, CS231n at Stanford (http://cs231n.stanford.edu/). Nothing in this file knows about transfer.

Three habits keep it affordable on two cores:

* the pictures are decoded once and stay in memory as bytes;
* cropping, flipping and enlarging are one operation, :func:`random_views`, on a whole batch;
* it starts with small pictures and ends with large ones (progressive resizing), because most of the learning does
  not need the detail. Training on crops makes objects look larger than they do at test time, so the last training
  size stays below the test size (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from course_utils.common.command_line import OneLineParser, at_least_one, from_zero
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of, write_text, written_whole
from course_utils.common.measuring import hardware
from course_utils.common.tables import markdown_table, percent
from course_utils.data.downloads import unpack_zip
from course_utils.evaluation import interval_text
from course_utils.mini import networks
from course_utils.settings import load_settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NATIVE_SIZE = 64
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FOLDER = "tiny-imagenet-200"
# SHA-256 over the names and contents of the validation split with its labels, and of the first 300 training pictures
# of each class, as `digest` computes it. The archive travels repacked, so its own hash says nothing; these do.
VALIDATION_DIGEST = "8d1664362a3233f4cf5db72a3a0d68f44d1021378bb4205afd7bbd135b7a4fc7"
TRAINING_DIGEST = "8b3f7a05bcd96c24664aa378d29720e85e2413b4ca90e238c3169921175b9e19"
DIGEST_PER_CLASS = 300


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, apart from the pictures and the machine.

    Parameters
    ----------
    phases
        Pairs of (epochs, picture side in pixels), in order.
    batch_size, peak_lr, momentum, weight_decay, label_smoothing
        Settings of SGD with Nesterov momentum and cross-entropy. Norms and biases are not decayed.
    warmup
        Share of a cycle's steps in which the learning rate climbs; it then falls as a cosine to zero.
    cycles
        Epochs of each such cycle; empty for one over all. Every later one climbs to half the rate of the one before
        (warm restarts, Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983), so a recipe can be made longer.
    smallest_crop
        Least share of a picture's area that a random view keeps, in (0, 1].
    bfloat16
        True to compute forward passes in bfloat16: twice as fast for plain convolutions. For depthwise ones float32 is
        better: on a CPU their backward pass in bfloat16 took four times as long.
    seed
        Seed of the weights, the order and the views.
    """

    phases: tuple[tuple[int, int], ...] = ((8, 64), (10, 96), (9, 112))
    batch_size: int = 128
    peak_lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warmup: float = 0.15
    cycles: tuple[int, ...] = ()
    smallest_crop: float = 0.35
    bfloat16: bool = True
    seed: int = 0

    @property
    def epochs(self) -> int:
        """Number of epochs in all phases."""
        return sum(count for count, _ in self.phases)

    def size_at(self, epoch: int) -> int:
        """Side in pixels of the pictures in an epoch, counted from 0."""
        sizes = [size for count, size in self.phases for _ in range(count)]
        if epoch >= len(sizes):
            raise ValueError(f"the recipe has {len(sizes)} epochs, there is no epoch {epoch}")
        return sizes[epoch]


# Three recipes are shorter than the ResNet's: they had to fit into two hours of two cores. The VGG and the MobileNet
# stayed below 40 % after their first 14 epochs, so they got a second cycle. Networks of depthwise convolutions have few
# weights, so they get less decay and milder crops; and since such a convolution reads much and computes little, large
# pictures cost them most.
_DEPTHWISE = {"weight_decay": 1e-4, "smallest_crop": 0.5, "bfloat16": False}
RECIPES = {
    "resnet18_mini": Recipe(),
    "vgg11_mini": Recipe(phases=((8, 64), (11, 96)), cycles=(14, 5), smallest_crop=0.5),
    "efficientnet_b0_mini": Recipe(phases=((10, 64), (4, 96)), **_DEPTHWISE),
    "mobilenet_v3_small_mini": Recipe(phases=((10, 64), (9, 96)), cycles=(14, 5), **_DEPTHWISE),
}


@dataclass
class Pictures:
    """A split in memory: ``images`` uint8 ``(N, 3, 64, 64)``, ``labels`` int64 ``(N,)``."""

    images: Tensor
    labels: Tensor
    names: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def read_categories(folder: Path) -> tuple[list[str], list[str]]:
    """Return the 200 WordNet ids of Tiny ImageNet, sorted, and the first English name of each."""
    ids = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return ids, [words[i].split(",")[0].strip() for i in ids]


def read_training(folder: Path, per_class: int) -> Pictures:
    """Read the first `per_class` training pictures of every class, as far as they are there."""
    ids, _ = read_categories(folder)
    paths = [path for path in training_files(folder, per_class) if path.exists()]
    return _decode(paths, [ids.index(path.parts[-3]) for path in paths])


def read_validation(folder: Path) -> Pictures:
    """Read the 10,000 validation pictures, which the training never sees."""
    ids, _ = read_categories(folder)
    rows = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    names, wnids = zip(*(row.split("\t")[:2] for row in rows if row), strict=True)
    return _decode([folder / "val" / "images" / name for name in names], [ids.index(wnid) for wnid in wnids])


def _decode(paths: list[Path], labels: list[int]) -> Pictures:
    images = np.empty((len(paths), 3, NATIVE_SIZE, NATIVE_SIZE), dtype=np.uint8)
    for i, path in enumerate(paths):
        with Image.open(path) as picture:  # a few are grey
            images[i] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    return Pictures(torch.from_numpy(images), torch.tensor(labels), [p.name for p in paths])


def normalise(images: Tensor) -> Tensor:
    """Return bytes ``(N, 3, H, W)`` as float32 with ImageNet's mean and standard deviation per channel."""
    return normalize(images.float() / 255, IMAGENET_MEAN, IMAGENET_STD)


def random_views(images: Tensor, size: int, smallest_crop: float, generator: torch.Generator) -> Tensor:
    """Cut a random window out of each picture, mirror half of them, and resample to float ``(N, C, size, size)``.

    Parameters
    ----------
    images, size
        Float ``(N, C, H, W)``, and side of the result in pixels.
    smallest_crop
        Least area: area and shape of the window are drawn from ``[smallest_crop, 1]`` and ``exp([-0.2, 0.2])``. A side
        that would be longer than the picture is cut to its size, so the area can be up to a fifth smaller.
    generator
        Source of windows and mirrors.
    """
    n = len(images)
    area = torch.empty(n).uniform_(smallest_crop, 1, generator=generator)
    ratio = torch.empty(n).uniform_(-0.2, 0.2, generator=generator).exp()
    half_w = (area * ratio).sqrt().clamp(max=1)
    half_h = (area / ratio).sqrt().clamp(max=1)
    where = torch.empty(2, n).uniform_(-1, 1, generator=generator)
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    # An affine map in coordinates that run from -1 to 1: scale on the diagonal, centre of the window in the last
    # column. grid_sample then reads each output pixel from where the map points.
    window = torch.zeros(n, 2, 3)
    window[:, 0, 0], window[:, 1, 1] = half_w * mirror, half_h
    window[:, 0, 2], window[:, 1, 2] = where[0] * (1 - half_w), where[1] * (1 - half_h)
    grid = F.affine_grid(window.to(images.device), [n, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def batches(pictures: Pictures, recipe: Recipe, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the shuffled, augmented batches of one epoch; the same epoch always gives the same batches."""
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(pictures), generator=generator)
    for chosen in order.split(recipe.batch_size)[: len(pictures) // recipe.batch_size]:
        images = normalise(pictures.images[chosen].to(device))
        views = random_views(images, recipe.size_at(epoch), recipe.smallest_crop, generator)
        yield views, pictures.labels[chosen].to(device)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups: weights of convolutions and linear layers with weight decay; norms and biases without."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate at a step: in each cycle a linear climb, then a cosine down to zero."""
    start, length, peak = 0, steps, recipe.peak_lr
    for i, epochs in enumerate(recipe.cycles):
        start += length if i else 0
        length, peak = round(steps * epochs / recipe.epochs), recipe.peak_lr / 2**i
        if step < start + length:
            break
    climb = max(1, round(recipe.warmup * length))
    if step - start < climb:
        return peak * (step - start + 1) / climb
    return peak * 0.5 * (1 + math.cos(math.pi * (step - start - climb) / max(1, length - climb)))


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, pictures: Pictures, recipe: Recipe, epoch: int
) -> float:
    """Train on all pictures once; return the mean loss."""
    model.train()
    device = next(model.parameters()).device
    steps_per_epoch = len(pictures) // recipe.batch_size
    total = 0.0
    for i, (images, labels) in enumerate(batches(pictures, recipe, epoch, device)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * steps_per_epoch + i, recipe.epochs * steps_per_epoch, recipe)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / max(1, steps_per_epoch)


@torch.inference_mode()
def count_correct(model: nn.Module, pictures: Pictures, preprocess: Callable, k: int = 1) -> int:
    """Return the number of pictures with their label among the `k` highest logits, in float32, after `preprocess`."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for images, labels in zip(pictures.images.split(250), pictures.labels.split(250), strict=True):
        logits = model(preprocess(images).to(device))
        right += (logits.topk(k).indices.cpu() == labels.unsqueeze(1)).any(1).sum().item()
    return right


@dataclass(frozen=True)
class Result:
    """A trained model and the record of its training."""

    model: nn.Module
    recipe: Recipe
    per_class: int
    training_pictures: int
    seconds: float
    history: list[dict]


def pretrain(
    name: str, folder: Path, work: Path, recipe: Recipe, per_class: int = 500, notify: Callable[[str], None] = print
) -> Result:
    """Train a mini model from random weights, or go on where an interrupted call stopped.

    Parameters
    ----------
    name
        Key of ``networks.BUILDERS``.
    folder
        Tiny ImageNet, unpacked.
    work
        Folder for the checkpoint, which is written after every epoch.
    recipe, per_class
        Settings of the training, and number of training pictures per class, at least 1.
    notify
        Function that is given a line about each epoch.

    Raises
    ------
    CourseError
        If there are fewer pictures than one batch needs, or the checkpoint belongs to another recipe.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    pictures, validation = read_training(folder, per_class), read_validation(folder)
    if len(pictures) < recipe.batch_size:
        raise CourseError(f"{len(pictures)} training pictures do not fill a batch of {recipe.batch_size}: give more.")
    model = networks.BUILDERS[name](num_classes=200).to(device, memory_format=torch.channels_last)
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=True)
    checkpoint = work / f"{name}.pt"
    state = _resume(checkpoint, model, optimizer, recipe, per_class)
    preprocess = networks.preprocessing(name)
    # Part of the validation set shows that the network learns. Nothing is chosen by it: the last epoch counts.
    watched = Pictures(validation.images[:2000], validation.labels[:2000], validation.names[:2000])
    for epoch in range(len(state["history"]), recipe.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(model, optimizer, pictures, recipe, epoch)
        state["seconds"] += time.perf_counter() - start
        right = count_correct(model, watched, preprocess)
        row = {"epoch": epoch + 1, "size": recipe.size_at(epoch), "loss": round(loss, 4), "val_correct": right}
        state["history"].append(row)
        _save_checkpoint(checkpoint, model, optimizer, state)
        notify(
            f"{name} epoch {epoch + 1}/{recipe.epochs} at {row['size']} px: loss {loss:.3f}, validation "
            f"{percent(right / len(watched))} of {len(watched)}, {state['seconds'] / 60:.1f} min so far"
        )
    return Result(model, recipe, per_class, len(pictures), state["seconds"], state["history"])


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, per_class: int) -> dict:
    """Load what an interrupted run has saved; return its state, or that of a run that begins."""
    wanted = json.loads(json.dumps({**asdict(recipe), "per_class": per_class}))
    if not path.exists():
        return {"seconds": 0.0, "history": [], "made_by": wanted}
    saved = torch.load(path, weights_only=True)
    if saved["state"]["made_by"] != wanted:
        raise CourseError(
            f"{path} belongs to another recipe: {saved['state']['made_by']}, asked for was {wanted}. "
            "Delete the file to start anew, or name another work folder."
        )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["state"]


def _save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    with written_whole(path) as beside:
        # Through memory: of a full disk torch.save would raise another error than an OSError.
        content = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, content)
        beside.write_bytes(content.getvalue())


# --- the finished file -------------------------------------------------------------------------------------------


def export(name: str, result: Result, folder: Path, command: str, out: Path = networks.WEIGHTS_FOLDER) -> dict:
    """Store a model as float16 safetensors, measure what the stored file can do, and write its card beside it.

    Parameters
    ----------
    name, folder
        Same as in :func:`pretrain`, whose return value is `result`.
    command
        Command line that made the model, for the card.
    out
        Folder of ``<name>.safetensors`` and ``<name>.json``.

    Returns
    -------
    dict
        The card: it becomes the ``meta`` of the torchvision weights entry.
    """
    # safetensors does not store the strides that memory_format=channels_last leaves.
    state = {
        key: (t.half() if t.is_floating_point() else t).cpu().clone(memory_format=torch.contiguous_format)
        for key, t in result.model.state_dict().items()
    }
    file = out / f"{name}.safetensors"
    with written_whole(file) as beside:
        beside.write_bytes(save(state))
    # Readers get the file, so the accuracy is measured on the file as it was written.
    fresh = networks.BUILDERS[name](num_classes=200)
    fresh.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in load_file(file).items()})
    validation, preprocess = read_validation(folder), networks.preprocessing(name)
    top1, top5 = (100 * count_correct(fresh, validation, preprocess, k) / len(validation) for k in (1, 5))
    card = {
        "file": file.name,
        "sha256": sha256_of(file),
        "num_params": sum(p.numel() for p in fresh.parameters()),
        "min_size": (32, 32),
        "top1": round(top1, 2),
        "top5": round(top5, 2),
        "validation_pictures": len(validation),
        "training_pictures": result.training_pictures,
        "_metrics": {"Tiny ImageNet": {"acc@1": top1, "acc@5": top5}},
        "command": command,
        "seed": result.recipe.seed,
        "seconds": round(result.seconds),
        "hardware": hardware("cpu"),
        "date": datetime.now(UTC).date().isoformat(),
        "recipe": asdict(result.recipe),
        "history": result.history,
        "source": "Tiny ImageNet (CS231n, Stanford), a subset of ImageNet at 64 x 64 pixels",
        "categories": read_categories(folder)[1],
    }
    write_text(out / f"{name}.json", json.dumps(card, indent=1) + "\n")
    return card


def results_page(folder: Path = networks.WEIGHTS_FOLDER) -> str:
    """Return a Markdown page about all embedded weights, from their cards."""
    rows, about = [], []
    for path in sorted(folder.glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        name, n = Path(card["file"]).stem, card["validation_pictures"]
        accuracy, interval = f"{card['top1']} % / {card['top5']} %", interval_text(round(card["top1"] * n / 100), n)
        origin = f"`{card['command']}`", card["seed"], card["seconds"], f"`{card['sha256']}`"
        rows.append([name, card["num_params"], accuracy, interval, *origin])
        about.append(f"{name}: {card['date']}, {card['hardware']}; {card['training_pictures']:,} pictures.")
    measured = (
        "Measured on the 10,000 validation pictures of Tiny ImageNet, which training did not see, on the stored file. "
        "Seconds are wall-clock time on a machine that did other work beside it. This page is written by `course "
        "pretrain`."
    )
    headings = ["weights", "parameters", "top-1 / top-5", "top-1, 95 % interval"]
    headings += ["command", "seed", "seconds", "SHA-256"]
    title = "# Pre-training of the embedded weights"
    return "\n\n".join([title, measured, markdown_table(headings, rows), "\n".join(about)]) + "\n"


# --- finding the data --------------------------------------------------------------------------------------------


def digest(paths: Iterable[Path], folder: Path) -> str:
    """Return the SHA-256 over the names (relative to `folder`) and SHA-256 of each file, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def validation_files(folder: Path) -> list[Path]:
    """Return the files that determine a measured accuracy: class lists, validation labels and pictures."""
    pictures = sorted((folder / "val" / "images").glob("*.JPEG"))
    return [folder / "wnids.txt", folder / "words.txt", folder / "val" / "val_annotations.txt", *pictures]


def training_files(folder: Path, per_class: int | None = None) -> list[Path]:
    """Return the paths of the first training pictures of every class, 300 of each if `per_class` is None."""
    ids, _ = read_categories(folder)
    count = DIGEST_PER_CLASS if per_class is None else per_class
    return [folder / "train" / i / "images" / f"{i}_{n}.JPEG" for i in ids for n in range(count)]


def check_tiny_imagenet(folder: Path) -> None:
    """Compare the data with what the embedded weights were trained and measured on.

    Raises
    ------
    CourseError
        If a file is missing or differs. (Pictures 300 to 499 of each class are not compared: they were not at hand
        when the digests were taken.)
    """
    for files, wanted, what in (
        (validation_files, VALIDATION_DIGEST, "validation split"),
        (training_files, TRAINING_DIGEST, "first 300 training pictures of each class"),
    ):
        try:
            found = digest(files(folder), folder)
        except OSError as error:
            raise CourseError(f"{folder} is not a complete Tiny ImageNet: {error}. Unpack {URL} again.") from error
        if found != wanted:
            raise CourseError(
                f"The {what} in {folder} has the digest {found}, not {wanted}: it is damaged or another edition. "
                f"Unpack {URL} again."
            )


def find_tiny_imagenet(given: Path | None, cache: Path, mirror: Path | None) -> Path:
    """Return the folder of the data: that given or unpacked before, else an archive's, unpacked into the cache.

    The archive is the one given, one in the mirror, or the download. :func:`check_tiny_imagenet` checks the folder.
    """
    unpacked = cache / FOLDER
    if given is not None and given.is_dir():
        unpacked = given / FOLDER if (given / FOLDER).is_dir() else given
    elif given is not None or not unpacked.is_dir():
        _unpack(given or _in_mirror(mirror) or _download(cache), unpacked)
    check_tiny_imagenet(unpacked)
    return unpacked


def _in_mirror(mirror: Path | None) -> Path | None:
    found = sorted(mirror.glob(f"{FOLDER}*")) if mirror else []
    return next((path for path in found if path.name.endswith((".zip", ".tar.xz", ".tar.gz"))), None)


def _download(cache: Path) -> Path:
    try:
        # Without a hash of the archive: check_tiny_imagenet checks its files after unpacking.
        return Path(pooch.retrieve(URL, known_hash=None, fname=f"{FOLDER}.zip", path=cache, progressbar=True))
    except OSError as error:
        raise CourseError(
            f"Tiny ImageNet could not be downloaded from {URL} ({error}). Fetch it with another machine and give the "
            f"file: course pretrain NAME --data {FOLDER}.zip"
        ) from error


def _unpack(archive: Path, target: Path) -> None:
    if not archive.is_file():
        raise CourseError(f"--data {archive}: there is no such folder or archive.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as scratch:
        if archive.suffix == ".zip":
            unpack_zip(archive, Path(scratch), max_bytes=2_000_000_000, max_files=300_000)
        else:
            # The filter refuses links, devices and paths that lead outside.
            shutil.unpack_archive(archive, scratch, filter="data")
        if not (Path(scratch) / FOLDER).is_dir():
            raise CourseError(f"{archive} has no folder {FOLDER} in it: it is another archive.")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(Path(scratch) / FOLDER, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a model's weights by ``course pretrain``; return the exit code."""
    parser = OneLineParser(prog="course pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=sorted(networks.BUILDERS))
    parser.add_argument("--data", type=Path, help="Tiny ImageNet, unpacked or as an archive (default: downloaded)")
    about = "training pictures per class (default: 500)"
    parser.add_argument("--per-class", type=at_least_one, default=500, help=about)
    parser.add_argument("--seed", type=from_zero, default=0)
    parser.add_argument("--out", type=Path, default=networks.WEIGHTS_FOLDER, help="folder for the finished files")
    parser.add_argument("--results", type=Path, help="write a page about all embedded weights to this .md file")
    options = parser.parse_args(arguments)
    settings = load_settings()
    recipe = replace(RECIPES[options.name], seed=options.seed)
    folder = find_tiny_imagenet(options.data, settings.cache, settings.mirror)
    work = settings.cache / "pretraining"
    result = pretrain(options.name, folder, work, recipe, options.per_class, partial(print, flush=True))
    command = f"course pretrain {options.name} --per-class {options.per_class} --seed {options.seed}"
    card = export(options.name, result, folder, command, options.out)
    if options.results:
        write_text(options.results, results_page(options.out))
    print(
        f"{options.name}: top-1 {card['top1']} %, top-5 {card['top5']} % of {card['validation_pictures']} validation "
        f"pictures; {card['file']} has SHA-256 {card['sha256']}"
    )
    return 0
