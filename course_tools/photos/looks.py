"""Looks at the test pictures: the more networks were asked about them, the less the best answer means.

``course ladder`` and ``course train --test`` count theirs here, by the pictures themselves: another seed, number of
epochs or name of the folder does not begin a new count. What a notebook asks by ``evaluate``, what ``course compare``
and ``course families`` do, and looks at another split of the same photos are not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from course_utils.common.errors import CourseError, warn
from course_utils.common.files import sha256_of, written_whole


def count_look(root: Path, pictures: Sequence[Path], network: str) -> int:
    """Return the number of networks that have been asked about these test pictures, this one included.

    Parameters
    ----------
    root
        Folder that holds the count: an empty file for each network, in a folder for each set of pictures.
    pictures
        Files of the test pictures, in any order. What they contain counts, not where they are.
    network
        Name of the network's run. The same one counts once.
    """
    digests = "\n".join(sorted(map(sha256_of, pictures)))
    path = root / "looks" / hashlib.sha256(digests.encode()).hexdigest()[:16] / network
    try:
        with written_whole(path):
            pass
    except CourseError as error:
        warn(f"This look at the test pictures was not counted: {error}")
    return max(1, len(list(path.parent.glob("[!.]*"))))


def looks_text(looks: int) -> str:
    """Return a sentence about so many looks; empty for a single one.

    >>> looks_text(3)
    'These test pictures have been asked for 3 networks by now; the more often, the less the number means.'
    """
    asked = f"These test pictures have been asked for {looks} networks by now"
    return f"{asked}; the more often, the less the number means." if looks > 1 else ""
