"""Plain text tables: the same in a terminal, a notebook, a projector and a diff."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under columns as text, numbers to the right and everything else to the left.

    Each row has as many cells as `columns`; integers get thousands separators, None becomes a dash.

    Examples
    --------
    >>> print(text_table(["stage", "parameters"], [["stem", 2384], ["head", None]]))
    stage  parameters
    -----  ----------
    stem        2,384
    head            -
    """
    rows = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [bool(column) and all(_is_number(value) for value in column) for column in zip(*rows, strict=True)]
    right = right or [False] * len(columns)
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(_line(line, widths, right) for line in lines)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table of the same arguments as :func:`text_table`; ``|`` and ``$`` stand for themselves."""
    rows = ([_cell(value).replace("|", "\\|").replace("$", "\\$") for value in row] for row in [columns, *rows])
    heads, *rows = rows
    lines = [heads, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shortened(text: str, longest: int = 40) -> str:
    """Return a text of at most so many characters: of a longer one the beginning and the end, with an ellipsis between.

    >>> shortened("a very long name, the second", 20)
    'a very lon…he second'
    """
    kept = longest - 1
    return text if len(text) <= longest else f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in [0, 1] as text, rounded to so many digits: ``"81.2 %"``."""
    return f"{100 * share:.{digits}f} %"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "line"), counted(0, "line")
    ('1 line', '0 lines')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _line(cells: Sequence[str], widths: list[int], right: list[bool]) -> str:
    padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
    return "  ".join(padded).rstrip()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_number(value: object) -> bool:
    text = "-" if value is None else str(value)
    return text == "-" or text[:1].isdigit() or (text[:1] in "+-" and text[1:2].isdigit())
