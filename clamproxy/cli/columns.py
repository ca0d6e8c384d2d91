"""Columns of plain text, for lists that may have a line for each machine of a large site.

rich's tables measure and wrap each cell, which would take ten seconds for ten thousand machines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from clamproxy.readable import plain


def padded(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> Iterator[list[str]]:
    """The same rows, with the cells of each column equally wide, except in the last column.

    Args:
        rows: the first one may be headings.
        right: the columns with numbers, which are aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1:] = [0]
    for row in rows:
        yield [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]


def table_text(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """The rows as `plain` lines, in the columns of `padded`, which takes the same arguments."""
    shown = [[*map(plain, row)] for row in rows]
    return "".join(f"{'  '.join(cells).rstrip()}\n" for cells in padded(shown, right=right))
