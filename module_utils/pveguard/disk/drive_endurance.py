# SPDX-License-Identifier: Apache-2.0
"""How long a drive lasts: its rating in bytes, and years at what is written a day."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Ratings beyond these many full writes of a drive, or below one, are in another unit.
RATED_WRITES = (1, 200_000)
_DAYS_A_YEAR = 365.25
#: Above this a drive ends for another reason than its writes.
_LONG_YEARS = 20.0


def rated(model: str, table: Iterable[Mapping[str, Any]]) -> tuple[int | None, str | None]:
    """Bytes that the maker rates ``model`` for, and who says so; (None, None) where ``table`` does not know it.

    An entry's ``model`` is a regular expression for the whole model name, case ignored; its endurance is ``tbw_bytes``
    or ``tbw`` (in terabytes of 10^12 bytes, as makers count); ``source`` is where it was read.
    """
    for entry in table:
        if re.fullmatch(str(entry["model"]), model.strip(), re.IGNORECASE):
            # A decimal fraction of terabytes is not exact in binary.
            amount = entry.get("tbw_bytes") or round(float(entry["tbw"]) * 10**12)
            return int(amount), str(entry.get("source") or "write_report_endurance")
    return None, None


def checked(table: Iterable[Mapping[str, Any]], notes: list[str]) -> list[Mapping[str, Any]]:
    """The entries that can be used; a note for each other, so that a typing error costs one drive's figure only."""
    good = []
    for entry in table:
        try:
            re.compile(str(entry["model"]))
            amount = float(entry.get("tbw_bytes") or entry["tbw"])
            if not 0 < amount < float("inf"):
                raise ValueError(f"{amount:g} is no amount of data")
            good.append(entry)
        except KeyError as error:
            notes.append(f"write_report_endurance: {dict(entry)} has no {error.args[0]}")
        except (ValueError, TypeError, re.error) as error:
            notes.append(f"write_report_endurance: {dict(entry)}: {error}")
    return good


def endurance(disk: Mapping[str, Any], bytes_per_day: float | None) -> dict[str, Any]:
    """How many years a disk lasts when the host goes on to write ``bytes_per_day``.

    ``disk`` is a result of :func:`read`. Methods: ``rated TBW``, what is left of the maker's rating; ``percentage
    used``, what is left by the drive's own count, which is in whole percent, so that the truth lies within one percent
    to either side; and ``rated TBW x percentage used`` where the drive does not tell what was written. Those that can
    be used are in ``methods`` (each ``method``, ``years_left``, ``years_left_low``, ``years_left_high``, ``basis``);
    the figures beside it are of the one that ends first.

    A drive at 0 or 1 % says only that it lasts longer than some time: ``years_left`` and ``years_left_high`` are then
    None, ``years_left_low`` is that time, and ``method`` ends in ``(at least)``. All are None, with a note, where
    nothing can be said: no rate, nothing written, a virtual or a rotating disk, a drive that tells nothing.
    """
    notes: list[str] = []
    result: dict[str, Any] = {
        "years_left": None,
        "years_left_low": None,
        "years_left_high": None,
        "method": None,
        "methods": [],
        "notes": notes,
    }
    if disk.get("virtual"):
        notes.append("a virtual disk: only the host knows what its drive has left")
    elif disk.get("rotational"):
        notes.append("a rotating disk: writes do not wear it out")
    elif bytes_per_day is None or bytes_per_day < 0:
        notes.append("no rate was measured")
    elif bytes_per_day == 0:
        notes.append("nothing was written while it was measured: at that rate it does not wear")
    else:
        found = _estimates(disk, bytes_per_day * _DAYS_A_YEAR, notes)
        result["methods"] = found
        ends = [entry for entry in found if entry["years_left"] is not None]
        chosen = min(ends, key=lambda entry: entry["years_left"]) if ends else next(iter(found), None)
        if chosen:
            result |= {key: value for key, value in chosen.items() if key != "basis"}
            if (chosen["years_left_low"] or 0) > _LONG_YEARS:
                notes.append("so long that the drive will end for another reason than its writes")
    return result


def _estimates(disk: Mapping[str, Any], bytes_per_year: float, notes: list[str]) -> list[dict[str, Any]]:
    written, used, rating = disk.get("written_bytes"), disk.get("percentage_used"), disk.get("rated_tbw_bytes")
    found = []

    def add(method: str, basis: str, low: float, middle: float | None, high: float | None) -> None:
        years = [None if left is None else _rounded(max(0.0, left) / bytes_per_year) for left in (middle, low, high)]
        found.append(
            {
                "method": method if middle is not None else f"{method} (at least)",
                "years_left": years[0],
                "years_left_low": years[1],
                "years_left_high": years[2],
                "basis": basis,
            }
        )

    if rating and written is not None:
        left = float(rating - written)
        add("rated TBW", f"{written} of {rating} bytes written ({disk.get('rated_from')})", left, left, left)
        if left <= 0:
            notes.append("more was written than the maker rates it for: its warranty ended, it may last on")
    if used is not None and used > 100:
        notes.append("the drive says that its rated life is over; it may last on")
    if used is not None and (written or rating):
        # Bytes of the host in the drive's whole life, if it goes on as in its life so far.
        def left_at(percent: float) -> float:
            return written * (100 - percent) / percent if written else (rating or 0) * (100 - percent) / 100

        method = "percentage used" if written else "rated TBW x percentage used"
        basis = f"{used} % used" + (f" by {written} bytes" if written else f" of {rating} bytes")
        if used < 2 and written:
            add(method, basis, left_at(used + 1), None, None)
        else:
            add(method, basis, left_at(used + 1), left_at(used), left_at(max(0, used - 1)))
    if not found:
        missing = [
            text
            for text, value in (
                ("what was written in its life", written),
                ("the percentage used", used),
                ("its rated endurance (write_report_endurance)", rating),
            )
            if value is None
        ]
        notes.append(f"not known: {', '.join(missing)}" if missing else "nothing was written to it yet")
    return found


def _rounded(years: float) -> float:
    """Three significant digits: more would be pretence."""
    return float(f"{years:.3g}")
