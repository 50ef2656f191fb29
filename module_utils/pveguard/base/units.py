"""Bytes, rates and durations as people read them; the same text in every table, message and report."""

from __future__ import annotations

from datetime import datetime

#: Shown for a figure that was not measured: never a guess, never an empty cell.
UNKNOWN = "unknown"

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def number_text(value: float | None) -> str:
    """Three significant digits, thousands separated: ``0``, ``0.05``, ``1.5``, ``36``, ``2,049``."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return text if text not in ("0", "-0") else "<0.01"


def bytes_text(value: float | None) -> str:
    """Binary units, three significant digits: ``0 B``, ``4 KiB``, ``1.33 MiB``."""
    if value is None:
        return UNKNOWN
    size = float(value)
    for unit in _BYTE_UNITS:
        # 999.5 would be shown as 1,000 of the smaller unit.
        if abs(size) < 999.5 or unit == _BYTE_UNITS[-1]:
            return f"{number_text(size)} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def rate_text(value: float | None, per: str = "min") -> str:
    """Bytes per ``per``: ``1.33 MiB/min``."""
    return UNKNOWN if value is None else f"{bytes_text(value)}/{per}"


def duration_text(seconds: float | None) -> str:
    """The two largest units: ``0.4 s``, ``59 s``, ``2 min 5 s``, ``4 h 10 min``, ``3 d 4 h``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds < 59.5:
        return f"{number_text(seconds)} s"
    whole = round(seconds)
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        parts.append((count, name))
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {name}" for count, name in parts[first : first + 2] if count)


#: Days of a mean year of the Gregorian calendar.
YEAR_DAYS = 365.2425
#: A longer life says nothing of a drive, which ends for another reason: shown as ``over 100 years``.
MOST_YEARS = 100


def years_text(years: float | None) -> str:
    """``5 months``, ``1.5 years``, ``36 years``, ``over 100 years`` (:data:`MOST_YEARS`)."""
    if years is None:
        return UNKNOWN
    if years < 1 / 12:
        return duration_text(max(0.0, round(years * YEAR_DAYS)) * 86400)
    if years < 0.96:
        months = max(1, round(years * 12))
        return f"{months} month{'' if months == 1 else 's'}"
    if years > MOST_YEARS:
        return f"over {MOST_YEARS} years"
    shown = number_text(round(years, 1) if years < 10 else round(years))
    return f"{shown} year{'' if shown == '1' else 's'}"


def change_text(before: float | None, after: float | None) -> str:
    """What became of a rate: ``19 times less``, ``2.5 times more``, ``-18 %``, ``none left``, ``as before``."""
    if before is None or after is None:
        return UNKNOWN
    if before == after or (before > 0 and after > 0 and 0.99 <= after / before <= 1.01):
        return "as before"
    if after == 0:
        return "none left"
    if before == 0:
        return "none before"
    factor = max(before, after) / min(before, after)
    if factor >= 1.995:
        return f"{number_text(factor)} times {'less' if after < before else 'more'}"
    return f"{100 * (after / before - 1):+.0f} %"


def percent_text(value: float | None) -> str:
    """``0 %``, ``12 %``, ``0.5 %``."""
    return UNKNOWN if value is None else f"{number_text(value)} %"


def time_text(moment: object) -> str:
    """``2026-11-21 10:20 UTC`` of a time in UTC as ISO 8601."""
    parsed = _moment(moment)
    return UNKNOWN if parsed is None else f"{parsed:%Y-%m-%d %H:%M} UTC"


def age_seconds(moment: object, now: object) -> float | None:
    """Seconds from ``moment`` to ``now`` (UTC, ISO 8601), never below 0; None when either is not a time."""
    then, here = _moment(moment), _moment(now)
    return None if then is None or here is None else max(0.0, (here - then).total_seconds())


def _moment(value: object) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    # A time without a zone is not known to be UTC.
    return parsed if parsed.tzinfo is not None else None
