"""Bytes, rates and durations as people read them; the same text in every table, message and report."""

from __future__ import annotations

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
