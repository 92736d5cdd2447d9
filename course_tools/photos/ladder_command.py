"""``course ladder``: from nearest neighbours to full fine-tuning on any photos, with a report at the end.

course ladder hymenoptera                          six rungs with real ImageNet weights, EfficientNet-Lite0
course ladder photos/ --model vit_b_16             with another network
course ladder photos/ --families resnet,vgg        a folder of one's own, two families
course ladder labels.csv --epochs 10 --out my.html a list of files and labels
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from course_tools.photos.ladder import PROBE, Budget, Ladder, measure
from course_tools.photos.ladder_report import report_page
from course_tools.photos.ladder_results import STEP_COLUMNS, steps
from course_tools.photos.looks import looks_text
from course_utils.common.command_line import OneLineParser, at_least_one, from_zero
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text
from course_utils.common.tables import text_table
from course_utils.datasets import open_dataset
from course_utils.evaluation import interval_text
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.pretrained_models import available_models, weights_entry
from course_utils.settings import default_weights, load_settings
from course_utils.transforms import train_transform


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``course ladder``."""
    parser = OneLineParser(prog="course ladder", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("data", help="pets, hymenoptera, a folder of photos, or a .csv file of files and labels")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--families", metavar="NAME,NAME", help="families or networks, or all of the settings")
    which.add_argument("--model", metavar="NAME", help="a network by its name: resnet50, vit_b_16, timm/convnext_tiny")
    parser.add_argument("--epochs", type=at_least_one, default=6, help="of every rung that trains (default 6)")
    parser.add_argument("--batch-size", type=at_least_one, default=16, help="default 16")
    parser.add_argument("--seed", type=from_zero, help="default: that of the settings")
    parser.add_argument("--augment", default="none", help="none (default), light or strong, for the rungs that train")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the report (default: ladder-NAME.html)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the report is written, also where pictures are broken: they are listed."""
    options = make_parser().parse_args(arguments)
    settings = load_settings(weights=default_weights(options.data))
    if options.model:
        models = [options.model]
    elif options.families:
        models = networks([word for word in options.families.split(",") if word], settings.models)
    else:
        models = [settings.model]
    train_transform(weights_entry(models[0]), options.augment)  # complains of an unknown word before any work
    seed = settings.seed if options.seed is None else options.seed
    splits = open_dataset(options.data, seed=seed, cache=settings.cache, mirror=settings.mirror)
    out = options.out or Path(f"ladder-{splits.name}.html")
    if out.is_dir():
        raise CourseError(f"--out {str(out)!r} is a folder: give the name of a file, such as report.html.")
    print(f"{splits.name}: {', '.join(splits.classes)}\n{splits.summary(len(splits.quarantine))}\n", flush=True)
    budget = Budget(options.epochs, options.batch_size, seed, options.augment, settings.device)
    ladder = measure(splits, models, budget, settings.cache / "ladders", functools.partial(print, flush=True))
    write_text(out, report_page(ladder))
    comparisons = text_table(STEP_COLUMNS, [step.row() for step in steps(ladder.results)])
    print(f"\n{ladder}\n\n{comparisons}\n\n{closing_lines(ladder, options.data)}\n\nThe report is {out}.")
    return 0


def networks(words: Sequence[str], families: Mapping[str, str]) -> list[str]:
    """Return the names of networks that `words` name by family, by their own name, or all of them by ``"all"``.

    `families` maps each family to its network, as ``settings.models``.

    Raises
    ------
    CourseError
        For a word that is neither, or no word at all.

    Examples
    --------
    >>> networks(["vgg", "resnet50"], {"vgg": "vgg16"})
    ['vgg16', 'resnet50']
    """
    known, found = set(available_models()), []
    for word in words:
        if word != "all" and word not in families and word not in known and not word.startswith("timm/"):
            raise CourseError(
                f"There is no family or network {word!r}. The families are {', '.join(families)} (or all of them: "
                "all); a network such as resnet50 does too."
            )
        found += families.values() if word == "all" else [families.get(word, word)]
    if not found:
        raise CourseError(f"No family was named. Choose from {', '.join(families)}, or all.")
    return list(dict.fromkeys(found))


def closing_lines(ladder: Ladder, data: str) -> str:
    """Return the choice, its test accuracy, the findings among the pictures, and how to go on; `data` is as given."""
    chosen, audit = ladder.chosen, ladder.audit
    twice = len(audit.copies) + len(audit.duplicates.pairs)
    left_out, test = len(ladder.splits.quarantine), interval_text(ladder.test.right, len(ladder.test.labels))
    choice = f"Chosen on validation: {chosen.name}. Test: {test}. {looks_text(ladder.looks)}"
    return f"""\
{choice.rstrip()}
Pictures in two splits: {twice}. Labels to look at: {len(audit.suspects)}. Files left out: {left_out}.
Use it: course predict PICTURE --run {chosen.run_id}
Train such a network anew, for longer: {train_command(ladder, data)}"""


def train_command(ladder: Ladder, data: str) -> str:
    """Return the ``course train`` command for the network and the rung that were chosen, with twice the epochs."""
    chosen, budget = ladder.chosen, ladder.budget
    # The probe is feature extraction that is solved at once instead of trained.
    rung = FEATURE_EXTRACTION.name if chosen.rung == PROBE.name else chosen.rung
    words = ["course", "train", data, "--model", chosen.model, "--strategy", rung.replace(" ", "-")]
    words += ["--epochs", str(2 * budget.epochs), "--batch-size", str(budget.batch_size)]
    words += ["--augment", budget.augment] if budget.augment != "none" else []
    return shlex.join(words)
