# SPDX-License-Identifier: Apache-2.0
"""What the templates of the pages know how to draw, as plain data: badges, figures, tables, notices.

All texts are plain; the templates escape them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Nodes of one chart and rows of a table that is open; the rest is in a table on demand.
MAX_NODES = 12
#: Stand-alone hosts and clusters that are open; more are on demand.
MAX_GROUPS = 3

VERDICTS = ("pass", "warn", "fail", "unknown")
_SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✕", "unknown": "?"}
_FIGURE = re.compile(r"[<+-]?[0-9][0-9,.]*( ?[A-Za-z%/]{1,5})?")


@dataclass(frozen=True)
class Badge:
    """A verdict in its colour. ``kind``: one of :data:`VERDICTS`, anything else is ``unknown``. ``label``: default ``kind``."""

    kind: str
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in VERDICTS:
            object.__setattr__(self, "kind", "unknown")
        if not self.label:
            object.__setattr__(self, "label", self.kind)

    @property
    def symbol(self) -> str:
        """The verdict for those who do not see colours."""
        return _SYMBOLS[self.kind]


@dataclass(frozen=True)
class Code:
    """A path, a command or a line of a log."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A key figure with its name and what has to be known about it."""

    name: str
    value: str
    note: str = ""

    @property
    def plain(self) -> bool:
        """Whether the value is a text, which is drawn smaller than a number with its unit."""
        return not _FIGURE.fullmatch(self.value)


Cell = str | Badge | Code


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading. ``numbers``: columns aligned to the right.

    Raises ValueError when a row does not have one cell for each column.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"{self.caption}: not every row has {len(self.header)} cells")


@dataclass(frozen=True)
class LongTable:
    """A table of which the first rows are open; ``rest`` is shown on demand under the title ``more``."""

    first: Table
    rest: Table | None = None
    more: str = ""


def long_table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    more: str,
    *,
    limit: int = MAX_NODES,
    numbers: Sequence[int] = (),
) -> LongTable | None:
    """``rows``, of which ``limit`` are open; ``more`` says what the others are. None without rows."""
    if not rows:
        return None
    first = Table(caption, header, rows[:limit], numbers)
    if len(rows) <= limit:
        return LongTable(first)
    return LongTable(
        first, Table(f"{caption}, continued", header, rows[limit:], numbers), f"{more}: {len(rows) - limit} more"
    )


@dataclass(frozen=True)
class Item:
    """A line of a list. ``strong``: whom or what it is about, put before it."""

    text: str
    strong: str = ""


@dataclass(frozen=True)
class Notice:
    """What stands out in the colour of ``kind`` (see :class:`Badge`): a title, a sentence, a list."""

    kind: str
    items: Sequence[Item] = ()
    title: str = ""
    text: str = ""
