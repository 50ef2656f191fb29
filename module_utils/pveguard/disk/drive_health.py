"""What a drive says of its health, by any interface, and whether its power-loss protection still works.

Read from smartctl's JSON (7.0 or later) or from that of ``nvme smart-log``. Whatever is in it, nothing here raises: a value
of another type or beyond its range is a value that the drive does not tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

#: NVM Express Base Specification, SMART / Health Information log, Critical Warning: (bit, what smartctl and nvme call it,
#: what it means).
NVME_WARNINGS = (
    (0, ("spare_below_threshold", "available_spare"), "its spare blocks are below the drive's threshold"),
    (
        1,
        ("temperature_above_or_below_threshold", "temp_threshold"),
        "its temperature is beyond the drive's threshold",
    ),
    (
        2,
        ("reliability_degraded",),
        "its reliability is degraded by media or internal errors: copy what is on it, then replace it",
    ),
    (3, ("media_read_only", "ro"), "its medium is read-only: it stores nothing any more"),
    (
        4,
        ("volatile_memory_backup_failed", "vmbu_failed"),
        "the backup of its volatile memory has failed: what it acknowledged can be lost with the power",
    ),
    (
        5,
        ("persistent_memory_region_unreliable", "pmr_ro"),
        "its persistent memory region is read-only or unreliable",
    ),
)
_BACKUP = 1 << 4

#: Names that smartmontools' database of drives gives to attributes of the capacitors that finish writes when the power
#: goes, such as 175 Power_Loss_Cap_Test. Drives without such capacitors do not have them. Attributes 174 and 192, counts
#: of power losses, say nothing of it.
_CAPACITOR = re.compile(r"Power_?Loss_Cap|Power_?Loss_Prot|PLP|Capacitor|Super_?Cap|Cap_Health", re.IGNORECASE)
_FAILURES = re.compile(r"Fail", re.IGNORECASE)
#: A normalised value goes from 1, the worst, to 253.
_WORST_VALUE = 1

#: SPC, additional sense codes of informational exceptions (asc, ascq).
_SCSI_CACHE = {
    (0x0B, 0x06): "non-volatile cache is now volatile",
    (0x0B, 0x07): "degraded power to non-volatile cache",
}
_SCSI_CACHE_TEXT = re.compile(
    r"cache (?:is )?now volatile|power to (?:the )?non-?volatile cache|capacitor|super-?cap", re.IGNORECASE
)

#: No counter of a drive has more bits (NVMe).
_COUNT_LIMIT = 1 << 128
_GROUPED = re.compile(r"\d{1,3}(?:([,.' ])\d{3})(?:\1\d{3})*")


def count(value: Any) -> int | None:
    """A count that is not negative, from a number or from text, whose digits nvme groups by threes; else None."""
    if isinstance(value, str):
        text = value.strip()
        if not text.isascii() or len(text) > 60:
            return None
        if text.isdigit():
            value = int(text)
        elif _GROUPED.fullmatch(text):
            value = int(re.sub(r"\D", "", text))
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_LIMIT
    return value if good else None


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """``value`` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def attributes(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of the table of ATA attributes."""
    for row in items(mapping(answer.get("ata_smart_attributes")).get("table")):
        if isinstance(row, Mapping):
            yield row


def nvme_log(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The SMART / Health Information log of an NVMe drive."""
    return mapping(answer.get("nvme_smart_health_information_log"))


def nvme_warnings(log: Mapping[str, Any], status: Any = None) -> int:
    """The bits of Critical Warning, from the log and from smartctl's ``smart_status``: one that is set anywhere is set."""
    return _bits(log.get("critical_warning")) | _bits(mapping(status).get("nvme"))


def _bits(value: Any) -> int:
    if isinstance(value, Mapping):
        found = _bits(value.get("value"))
        for bit, names, _ in NVME_WARNINGS:
            if any(value.get(name) is True or count(value.get(name)) for name in names):
                found |= 1 << bit
        return found
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]{1,2}", value.strip()):
        return int(value, 16)
    found = count(value) or 0
    # It is one byte.
    return found if found <= 0xFF else 0


def power_loss_failure(answer: Mapping[str, Any]) -> str | None:
    """Why the drive's power-loss protection does not work (any more), None where nothing says so."""
    bits = nvme_warnings(nvme_log(answer), answer.get("smart_status"))
    if bits & _BACKUP:
        return f"NVMe critical warning 0x{bits:02x}, volatile memory backup failed"
    for row in attributes(answer):
        if _is_capacitor(answer, row) and (why := _failing(row)):
            return f"SMART attribute {_title(row)} {why}"
    said = _scsi_exception(answer)
    if said and said[1]:
        return f"SCSI informational exception: {said[0]}"
    return None


def capacitors(answer: Mapping[str, Any]) -> str | None:
    """The attribute that shows that the drive has capacitors against a power loss; None where none does."""
    return next(
        (f"SMART attribute {_title(row)}" for row in attributes(answer) if _is_capacitor(answer, row)), None
    )


def findings(answer: Mapping[str, Any]) -> list[str]:
    """What the drive complains of, a sentence each, without its name; empty when it complains of nothing."""
    found: list[str] = []
    log, status = nvme_log(answer), mapping(answer.get("smart_status"))
    bits = nvme_warnings(log, status)
    known = 0
    for bit, _, text in NVME_WARNINGS:
        known |= 1 << bit
        if bits >> bit & 1:
            found.append(f"{text} (NVMe critical warning 0x{bits:02x})")
    if bits & ~known:
        found.append(f"it warns of something that is not known here (NVMe critical warning 0x{bits:02x})")
    for row in attributes(answer):
        if _is_capacitor(answer, row):
            if why := _failing(row):
                found.append(
                    f"its power-loss protection has failed: SMART attribute {_title(row)} {why}; what it acknowledged "
                    "can be lost with the power"
                )
        elif _when_failed(row) == "now":
            found.append(f"SMART attribute {_title(row)} is below its threshold: the drive expects to fail")
    said = _scsi_exception(answer)
    if said:
        found.append(f"it reports: {said[0]}")
    if status.get("passed") is False and not found:
        found.append("it says that it is failing: copy what is on it, then replace it")
    return found


def _title(row: Mapping[str, Any]) -> str:
    number = count(row.get("id"))
    return f"{'?' if number is None else number} {str(row.get('name'))[:60]}"


def _is_capacitor(answer: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    # smartctl has names of its own for drives that its database does not know, and they are none of these.
    return answer.get("in_smartctl_database") is not False and bool(
        isinstance(row.get("name"), str) and _CAPACITOR.search(row["name"])
    )


def _when_failed(row: Mapping[str, Any]) -> str:
    said = row.get("when_failed")
    text = said.lower() if isinstance(said, str) else ""
    if text in ("now", "failing_now"):
        return "now"
    value, threshold = count(row.get("value")), count(row.get("thresh"))
    # 0 is a threshold that no value is below.
    if value is not None and threshold and value <= threshold and "when_failed" not in row:
        return "now"
    return "past" if text in ("past", "in_the_past") else ""


def _failing(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the capacitors by this attribute, None when nothing is."""
    value, worst = count(row.get("value")), count(row.get("worst"))
    threshold = count(row.get("thresh")) or 0
    if _when_failed(row) == "now" or _at_worst(value, threshold):
        return f"is at {'?' if value is None else value}, its threshold at {threshold}"
    if _when_failed(row) == "past" or _at_worst(worst, threshold):
        return f"was at {'?' if worst is None else worst} once, its threshold is {threshold}"
    raw = count(mapping(row.get("raw")).get("value"))
    if _FAILURES.search(str(row.get("name"))) and raw:
        return f"counts {raw}"
    return None


def _at_worst(value: int | None, threshold: int) -> bool:
    # 0 is no normalised value; some drives have it in every attribute that has none.
    return value is not None and (value == _WORST_VALUE or value <= threshold and threshold > 0)


def _scsi_exception(answer: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The informational exception of a SCSI drive, and whether it is of its protected cache."""
    said = mapping(mapping(answer.get("smart_status")).get("scsi"))
    code, qualifier = count(said.get("asc")), count(said.get("ascq"))
    if code is None and not isinstance(said.get("ie_string"), str):
        return None
    numbers = (code or 0, qualifier or 0)
    if numbers == (0, 0) and not said.get("ie_string"):
        return None
    known = _SCSI_CACHE.get(numbers)
    text = said["ie_string"][:120] if isinstance(said.get("ie_string"), str) and said["ie_string"] else known
    shown = f"{text or 'an exception'} (asc 0x{numbers[0]:02x}, ascq 0x{numbers[1]:02x})"
    return shown, known is not None or bool(text and _SCSI_CACHE_TEXT.search(text))
