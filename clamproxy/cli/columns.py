"""Columns of plain text, for lists that are as long as a site is large.

rich's tables measure and wrap each cell: ten thousand machines would take ten seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


def padded(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> Iterator[list[str]]:
    """The same rows with the cells of each column equally wide, but for the last column.

    Args:
        rows: the headings among them.
        right: the columns that hold numbers: these are aligned at their ends.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1:] = [0]
    for row in rows:
        yield [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
