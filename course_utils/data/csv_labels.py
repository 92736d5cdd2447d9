"""Your own data as a list: a CSV file with a row for each picture, its name and its label.

::

    file,label,split
    cats/001.jpg,cat,train
    cats/002.jpg,cat,test

A list and a folder drift apart: files are renamed, rows are sorted without their labels. Training does not fail then,
it learns nonsense. So :func:`read_labels` compares the list with the folder first, and its errors name the lines.
A column that tells the splits is found by its heading or its cells, in the words of :mod:`course_utils.data.words`.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from course_utils.common.errors import CourseError
from course_utils.common.tables import counted
from course_utils.data.downloads import is_hidden
from course_utils.data.folders import composed, is_picture, require_distinct
from course_utils.data.words import means_mask, readable, says_split, splits_of

DELIMITERS = ",;\t|"
MOST_NAMED = 5  # files or lines in an error message


class LabelledFile(NamedTuple):
    """One row of a list, and its file.

    Parameters
    ----------
    path, name
        The file, which exists, and its path from the folder, with ``/`` on every system; bytes of the name that are
        no UTF-8 are spelled out.
    label
        Text in the list, without spaces around it: ``"007"`` stays ``"007"``.
    split
        ``"train"``, ``"val"``, ``"test"``, or ``""`` if the list does not say.
    line
        Number of the row's first line in the list, from 1.
    """

    path: Path
    name: str
    label: str
    split: str
    line: int


def read_labels(
    csv_file: str | Path,
    folder: str | Path | None = None,
    file_column: str = "file",
    label_column: str = "label",
    split_column: str | None = "split",
) -> list[LabelledFile]:
    """Return the rows of a list of pictures and labels, with the file of each.

    Parameters
    ----------
    csv_file
        Text in UTF-8, as Excel and pandas write it: headings in the first line (after Excel's ``sep=;``, if that is
        there), columns separated by ``,``, ``;``, ``|`` or tabs, cells that contain those between double quotes.
    folder
        Folder from which the names start; by default that of the list.
    file_column
        Heading of the column with the names, in capital or small letters. A name may have sub-folders
        (``cats/001.jpg``, with either slash) and may lack its ending; a bare name is also looked for in the folder's
        direct sub-folders. It has to fit exactly one file.
    label_column
        Heading of the column with the labels: words, or numbers, which are taken as words.
    split_column
        Heading of the column that says train, val or test. By default the column that tells the splits, whatever it
        is called; without one, the names of the files' folders do. None leaves all of that aside.

    Returns
    -------
    list of LabelledFile
        Rows in the order of the list, without repeated ones.

    Raises
    ------
    CourseError
        If the list cannot be read, a column is missing, a cell is empty, or there are fewer than two labels; if a name
        fits no file, several, or one outside of the folder; if a file is named twice with different labels or splits;
        if every row has a label of its own, or two labels look the same; if a column or folder tells splits that are
        not understood, or does so for some rows only, or two columns disagree. A column of numbered folds is refused
        too: it does not say which of them is for testing, and often keeps together what must not be torn apart.

    Warns
    -----
    UserWarning
        If the files lie in folders that are called like the labels, and a label is not that of the folder.
    """
    table = _read_table(Path(os.path.expanduser(csv_file)))
    file_at = table.index(file_column, "file_column", taken=label_column)
    label_at = table.index(label_column, "label_column", taken=file_column)
    names, labels = table.cells(file_at), table.cells(label_at)
    splits = _splits(table, split_column, {file_at, label_at})
    table.require_filled(names, file_column)
    table.require_filled(labels, label_column)
    _require_labels(table, labels, label_column)
    root = table.path.parent if folder is None else Path(os.path.expanduser(folder))
    paths = _find_all(_Folder(root), table, names, file_column)
    rows = [
        LabelledFile(path, readable(path.relative_to(os.path.abspath(root)).as_posix()), label, split, line)
        for path, label, split, line in zip(paths, labels, splits, table.lines, strict=True)
    ]
    if split_column is not None and not any(splits):
        rows = _with_splits_of_folders(rows, table.path)
    rows = _without_repeats(rows, table.path)
    _warn_of_other_folders(rows, table.path)
    return rows


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def index(self, name: str, argument: str, taken: str | None = None) -> int:
        """Return the place of a heading; errors name the `argument` that chooses it, and never suggest `taken`."""
        where = [i for i, heading in enumerate(self.columns) if heading == name]
        where = where or [i for i, heading in enumerate(self.columns) if heading.lower() == name.lower()]
        if len(where) == 1:
            return where[0]
        if where:
            raise CourseError(f"{str(self.path)!r} has {len(where)} columns {name!r}. Rename the others.")
        others = {heading.lower(): heading for heading in self.columns if heading not in ("", taken)}
        near = list(others) if len(others) == 1 else difflib.get_close_matches(name.lower(), others, n=1, cutoff=0.4)
        hint = f" Perhaps you mean {others[near[0]]!r}." if near else ""
        raise CourseError(
            f"{str(self.path)!r} has no column {name!r}; its first line gives the columns {self.headings}.{hint} "
            f"Put the right headings into the first line; in Python, open_csv takes {argument}=..."
        )

    def cells(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [row[index] for row in self.rows]

    @property
    def headings(self) -> str:
        return ", ".join(repr(heading) for heading in self.columns)

    def require_filled(self, cells: list[str], column: str) -> None:
        """Refuse a column with empty cells."""
        empty = [line for line, cell in zip(self.lines, cells, strict=True) if not cell]
        if empty:
            raise CourseError(
                f"The column {column!r} of {str(self.path)!r} is empty in {counted(len(empty), 'row')}: "
                f"{_some(f'line {line}' for line in empty)}. Fill it in, or take these rows out."
            )


def _read_table(path: Path) -> _Table:
    text = _read_text(path)
    start = 1
    if told := re.match(r"\"?sep=([^\w\s\"]|\t)\"?\1*(\r\n|\r|\n)", text, re.IGNORECASE):  # Excel's own first line
        delimiter, text, start = told[1], text[told.end() :], 2
    else:
        headings = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([headings], delimiter=mark), [])))
    before = start
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    found: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):  # spreadsheets leave rows of empty cells at the end
                found.append((start, [composed(cell.strip()) for cell in cells]))
            start = before + reader.line_num
    except csv.Error as error:
        raise CourseError(
            f"{str(path)!r} cannot be read as CSV from line {start} on ({error}). A text that begins with a double "
            "quote has to end with one."
        ) from error
    if len(found) < 2:
        raise CourseError(f"{str(path)!r} holds no rows: it needs a line of headings, then a line for each picture.")
    (_, columns), *rows = found
    for line, cells in rows:
        if any(cells[len(columns) :]):
            raise CourseError(
                f"Line {line} of {str(path)!r} has {len(cells)} cells, the first line {len(columns)} headings. Put a "
                "text that contains the separator between double quotes."
            )
        cells += [""] * (len(columns) - len(cells))
    return _Table(path, columns, [cells for _, cells in rows], [line for line, _ in rows])


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise CourseError(
            f"The list {str(path)!r} cannot be read: {error.strerror or error}. Give a .csv file with the columns "
            "file and label."
        ) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CourseError(
            f"{str(path)!r} is not in UTF-8 (byte {data[error.start]:#04x} in line {line}). Save it as UTF-8; in "
            'Excel: "CSV UTF-8".'
        ) from error


# --- labels and splits -------------------------------------------------------------------------------------------


def _splits(table: _Table, column: str | None, used: set[int]) -> list[str]:
    """Return the split of each row, "" if no column tells it."""
    if column is None:
        return [""] * len(table.rows)
    if column == "split":
        headings = enumerate(table.columns)
        where = [i for i, heading in headings if i not in used and says_split(heading, table.cells(i))]
    else:
        where = [table.index(column, "split_column")]
    told = [(table.columns[i], _understood(table, i)) for i in where if any(table.cells(i))]
    if not told:
        return [""] * len(table.rows)
    for heading, splits in told[1:]:
        if splits != told[0][1]:
            raise CourseError(
                f"The columns {told[0][0]!r} and {heading!r} of {str(table.path)!r} both tell splits, and not the "
                "same. Take one of them out; in Python, open_csv takes split_column=..."
            )
    return told[0][1]


def _understood(table: _Table, index: int) -> list[str]:
    """Return the splits that a column tells; refuse cells that mean none."""
    cells = table.cells(index)
    known = splits_of(cells)
    lines = dict(zip(cells[::-1], table.lines[::-1], strict=True))
    other = [f"{cell!r} (line {lines[cell]})" for cell in dict.fromkeys(cells) if cell not in known]
    if other:
        raise CourseError(
            f"The column {table.columns[index]!r} of {str(table.path)!r} holds {_some(other)}; it may hold train, val "
            "and test. Correct it, or take the column out if it means something else; in Python, open_csv takes "
            "split_column=None to leave it aside."
        )
    return [known[cell] for cell in cells]


def _with_splits_of_folders(rows: list[LabelledFile], path: Path) -> list[LabelledFile]:
    """Return the rows with the splits that their folders are called after, as ``test/cat/001.jpg`` is.

    A folder that is called like its label is a class. If only "train" is found, nothing was said about testing.
    """
    inside = [[part for part in row.name.split("/")[:-1] if part != row.label] for row in rows]
    known = splits_of(part for parts in inside for part in parts)
    found = [sorted({known[part] for part in parts if part in known}) for parts in inside]
    if not {split for splits in found for split in splits} - {"train"}:
        return rows
    unclear = [f"{row.name} (line {row.line})" for row, splits in zip(rows, found, strict=True) if len(splits) != 1]
    if unclear:
        names = ", ".join(repr(name) for name, split in known.items() if split != "train")
        raise CourseError(
            f"{str(path)!r} names files in {names}, which means val or test, and others whose split it does not tell: "
            f"{_some(unclear)}. Add a column split that holds train, val or test for each row; in Python, open_csv "
            "takes split_column=None to leave the folders aside."
        )
    return [row._replace(split=splits[0]) for row, splits in zip(rows, found, strict=True)]


def _require_labels(table: _Table, labels: list[str], column: str) -> None:
    counts = Counter(labels)
    require_distinct(counts, table.path)
    if len(counts) < 2:
        raise CourseError(
            f"The column {column!r} of {str(table.path)!r} holds only one label, {labels[0]!r}: two or more are needed."
        )
    if len(counts) == len(labels):
        raise CourseError(
            f"The column {column!r} of {str(table.path)!r} has {len(labels)} different labels in {len(labels)} rows, "
            f"such as {labels[0]!r} and {labels[1]!r}; a class needs several pictures. Is it the wrong column? "
            f"There are {table.headings}; give the right one the heading 'label', or in Python, open_csv takes "
            "label_column=..."
        )


def _without_repeats(rows: list[LabelledFile], path: Path) -> list[LabelledFile]:
    """Return each file once; refuse one that has two labels or two splits."""
    first: dict[Path, LabelledFile] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        for verb, one, two in (("labelled", other.label, row.label), ("in", other.split, row.split)):
            if one != two:
                raise CourseError(
                    f"{str(path)!r} names the file {row.name!r} twice: it is {verb} {one!r} in line {other.line} and "
                    f"{two!r} in line {row.line}. Take one of the rows out."
                )
    return list(first.values())


def _warn_of_other_folders(rows: list[LabelledFile], path: Path) -> None:
    """Warn if the folders are called like the labels, and some labels are not those of their folders."""
    folders = [composed(row.path.parent.name) for row in rows]
    other = [
        f"{row.name} is labelled {row.label!r} (line {row.line})"
        for row, folder in zip(rows, folders, strict=True)
        if row.label != folder
    ]
    if other and set(folders) == {row.label for row in rows}:
        warnings.warn(
            f"In {str(path)!r}, {len(other)} of {counted(len(rows), 'label')} differ from the folder that the file "
            f"lies in: {_some(other)}. The labels of the list are used; check that no row has slipped.",
            stacklevel=3,
        )


# --- the files ---------------------------------------------------------------------------------------------------


class _Folder:
    """The files below a folder, by name; each directory is listed once at most."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise CourseError(f"The folder of the pictures, {str(root)!r}, does not exist or is no folder.")
        self.root = Path(os.path.abspath(root))
        self.resolved = self.root.resolve()
        self.listings: dict[Path, dict[str, list[Path]]] = {}

    def place(self, name: str) -> Path | None:
        """Return the path that a name means; None if that is outside of the folder."""
        # ".." is worked out in the text, so that a link to a folder cannot lead anywhere else.
        path = Path(os.path.normpath(self.root / name.replace("\\", "/")))
        for root in (self.root, self.resolved):
            if path.is_relative_to(root):
                return self.root / path.relative_to(root)
        return None

    def find(self, name: str) -> list[Path]:
        """Return every file that a name can mean: only the one of exactly this path if there is one."""
        path = self.place(name)
        if path is None or path == self.root:
            return []
        if os.path.isfile(path):
            return [path]
        found = self._listing(path.parent).get(path.name, [])
        if found or path.parent != self.root:
            return found
        names = _searched(os.listdir(self.root))
        return [match for name in names for match in self._listing(self.root / name).get(path.name, [])]

    def example(self) -> str | None:
        """Return the name of some picture below the folder, to show the form of names."""
        for here, folders, names in os.walk(self.root):
            folders[:] = _searched(folders)
            picture = min(filter(is_picture, names), default=None)
            if picture:
                return Path(here, picture).relative_to(self.root).as_posix()
        return None

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        """Return the files of a folder by name, and pictures by name without ending as well."""
        if folder not in self.listings:
            by_name = self.listings[folder] = defaultdict(list)
            try:
                files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
            except (OSError, ValueError):
                files = []  # no folder, or a name that none can have: then none of its files is there either
            for name in (name for name in files if not is_hidden(name)):
                whole = composed(name)
                for key in {whole, Path(whole).stem} if is_picture(name) else {whole}:
                    by_name[key].append(folder / name)
        return self.listings[folder]


def _searched(folders: Iterable[str]) -> list[str]:
    return sorted(name for name in folders if not is_hidden(name) and not means_mask(name))


def _find_all(folder: _Folder, table: _Table, names: list[str], column: str) -> list[Path]:
    """Return one file for each name; an error says if single rows are wrong or the whole column or folder."""
    lines = dict(zip(names[::-1], table.lines[::-1], strict=True))  # a repeated name has its first line

    def listed(chosen: Iterable[str]) -> str:
        return _some(f"{readable(name)} (line {lines[name]})" for name in chosen)

    outside = [name for name in dict.fromkeys(names) if folder.place(name) is None]
    if outside:
        advice = _without_prefix(folder, outside[0]) or (
            "Only files in it are read: put the list into a folder that holds all of them; in Python, open_csv takes "
            "folder=..."
        )
        raise CourseError(
            f"{str(table.path)!r} names {counted(len(outside), 'file')} outside of the folder {str(folder.root)!r}: "
            f"{listed(outside)}. {advice}"
        )
    found = {name: folder.find(name) for name in names}
    missing = [name for name, paths in found.items() if not paths]
    if len(missing) == len(found):
        raise CourseError(_nothing_found(folder, table, names, column))
    if missing:
        raise CourseError(
            f"{counted(len(missing), 'file')} of the {len(found)} that {str(table.path)!r} names "
            f"{'is' if len(missing) == 1 else 'are'} not in the folder {str(folder.root)!r}: {listed(missing)}. Put "
            "what is missing there, correct the list, or take these rows out of it."
        )
    for name, paths in found.items():
        if len(paths) > 1:
            fitting = _some(readable(path.relative_to(folder.root).as_posix()) for path in paths)
            raise CourseError(
                f"{name!r} in line {lines[name]} of {str(table.path)!r} fits {len(paths)} files: {fitting}. Write the "
                "whole path from the folder, with the ending."
            )
    return [found[name][0] for name in names]


def _nothing_found(folder: _Folder, table: _Table, names: list[str], column: str) -> str:
    """Return the message that the column or the folder is probably the wrong one, with an example of both."""
    example = folder.example()
    there = f"a picture in the folder is called {example!r}" if example else "there is no picture in the folder"
    first_row = zip(table.columns, table.rows[0], strict=True)
    better = next((heading for heading, cell in first_row if heading != column and cell and folder.find(cell)), None)
    if better:
        advice = (
            f"The column {better!r} does name files: give it the heading {column!r}, or in Python, call open_csv "
            f"with file_column={better!r}."
        )
    else:
        advice = _without_prefix(folder, names[0]) or (
            f"Probably it is the wrong column or the wrong folder: the columns are {table.headings}. Put the list "
            "beside the pictures, with the right headings; in Python, open_csv takes file_column=... and folder=..."
        )
    return (
        f"None of the {len(set(names))} names in the column {column!r} of {str(table.path)!r} is a file in the folder "
        f"{str(folder.root)!r}. The first name is {names[0]!r}, {there}. {advice}"
    )


def _without_prefix(folder: _Folder, name: str) -> str | None:
    """Return the advice to take a folder of another machine out of the names, if the rest of this name is a file."""
    parts = name.replace("\\", "/").split("/")
    for i in range(1, len(parts)):
        rest = "/".join(parts[i:])
        if folder.find(rest):
            prefix = name[: len(name) - len(rest)]
            return f"Without {prefix!r} in front {rest!r} is there: take that out of the names in the list."
    return None


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more
