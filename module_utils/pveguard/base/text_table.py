"""Aligned tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

#: An elastic column is never made narrower than this.
MIN_WIDTH = 8


def clean(text: object) -> str:
    """One line without control characters: what a drive or a host calls itself must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(text).replace("\n", " ")).strip()


def shorten(text: str, width: int) -> str:
    """At most ``width`` characters; what was cut is marked by an ellipsis."""
    return text if len(text) <= width else text[: max(0, width - 1)].rstrip() + "…"


def lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    elastic: Sequence[int] = (),
    right: Sequence[int] = (),
) -> list[str]:
    """The table, line by line, without trailing blanks: header, rule, rows.

    ``width``: characters that a line may have. The columns ``elastic`` are cut for it, the widest first, none below
    :data:`MIN_WIDTH`; with no room left even then the lines are longer. ``right``: columns aligned to the right.
    """
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(elastic, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= MIN_WIDTH:
            break
        widths[widest] -= 1
    out = [
        "  ".join(
            shorten(cell, size).rjust(size) if column in right else shorten(cell, size).ljust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    out.insert(1, "  ".join("-" * size for size in widths))
    return out
