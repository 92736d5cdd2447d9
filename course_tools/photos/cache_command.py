"""See what is cached, how much room it takes, and clear it.

``course cache`` lists the activations of frozen stages (:mod:`course_utils.engine.activation_cache`), the decoded
pictures and the decisions to decode them (:mod:`course_utils.engine.pixel_store`). ``course cache --clear`` removes
them; they are computed again when they are needed.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from datetime import datetime

from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.tables import text_table
from course_utils.engine.activation_cache import caches_root
from course_utils.engine.artifact_store import Artifact, ArtifactStore
from course_utils.engine.pixel_store import stores_root

ABOUT = ("holds", "pictures", "views", "numbers")
COLUMNS = ("name", *ABOUT, "MB", "last used", "status")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``course cache`` and return its exit code."""
    parser = OneLineParser(prog="course cache", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="caches, or parts of their names; all without any")
    parser.add_argument("--clear", action="store_true", help="remove them instead of listing them")
    parser.add_argument("--unused", type=float, metavar="DAYS", help="only those that were not used for so many days")
    parser.add_argument("--check", action="store_true", help="read every byte, to find damage")
    options = parser.parse_args(arguments)
    if options.unused is not None and options.unused < 0:
        parser.error("--unused takes a number of days, 30 for instance")
    stores = [ArtifactStore(root) for root in dict.fromkeys((caches_root(), stores_root()))]
    places = " and ".join(str(store.root) for store in stores)
    artifacts = [artifact for store in stores for artifact in store.artifacts(thorough=options.check)]
    artifacts = _chosen(sorted(artifacts, key=lambda artifact: -artifact.last_used), options.names, places)
    if options.unused is not None:
        artifacts = [one for one in artifacts if time.time() - one.last_used >= 86400 * options.unused]
    if options.clear:
        return _clear(artifacts, stores)
    if not artifacts:
        print(f"No caches in {places}. Training writes them there.")
        return 0
    print(text_table(COLUMNS, map(_row, artifacts)))
    places = sorted({str(artifact.folder.parent) for artifact in artifacts})
    print(f"\n{_count(artifacts)}, {_megabytes(artifacts):,.1f} MB in {' and '.join(places)}")
    return 0


def _row(artifact: Artifact) -> list[object]:
    summary = artifact.content.get("summary", {})
    day = f"{datetime.fromtimestamp(artifact.last_used).astimezone():%Y-%m-%d %H:%M}"
    status = f"damaged: {artifact.problem}" if artifact.problem else "good"
    return [artifact.name, *map(summary.get, ABOUT), f"{artifact.size / 1e6:.1f}", day, status]


def _count(artifacts: list[Artifact]) -> str:
    return f"{len(artifacts)} cache{'' if len(artifacts) == 1 else 's'}"


def _megabytes(artifacts: list[Artifact]) -> float:
    return sum(artifact.size for artifact in artifacts) / 1e6


def _chosen(artifacts: list[Artifact], names: list[str], places: str) -> list[Artifact]:
    chosen = []
    for name in names:
        found = [artifact for artifact in artifacts if name in artifact.name]
        if not found:
            near = difflib.get_close_matches(name, [artifact.name for artifact in artifacts], n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else " `course cache` lists all."
            raise CourseError(f"There is no cache {name!r} in {places}.{hint}")
        chosen += [artifact for artifact in found if artifact not in chosen]
    return chosen if names else artifacts


def _clear(artifacts: list[Artifact], stores: list[ArtifactStore]) -> int:
    size = _megabytes(artifacts)
    kept = [artifact for artifact in artifacts if not artifact.remove()]
    drafts = sum(store.remove_drafts() for store in stores)
    print(
        f"{len(artifacts) - len(kept)} of {_count(artifacts)} removed, {size - _megabytes(kept):,.1f} MB"
        + (f"; {drafts} half-done of killed processes too" if drafts else "")
    )
    for artifact in kept:
        print(f"{artifact.name} is in use or protected, and stays")
    return 1 if kept else 0
