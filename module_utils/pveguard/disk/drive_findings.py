# SPDX-License-Identifier: Apache-2.0
"""What is judged about drives, as the module ``disk_wear`` returns them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..base.findings import PROBLEM, WARNING, Finding, check
from ..base.units import number_text, years_text

#: Share of its rated life from which a drive is worth a look, in percent (100 is what it is rated for).
USED_WARN_PERCENT = 80.0
#: NVMe drives give a critical warning below their spare threshold, which is 10 % on most.
SPARE_FAIL_PERCENT = 10.0
#: With less than this left a replacement should be at hand.
YEARS_WARN = 1.0

_HELPS = ("Have a replacement at hand and a backup that was tried.", "smartctl -x /dev/DISK")

HEALTH = check(
    "drive-health", (WARNING, PROBLEM), "The drive complains of itself; a problem where it says that it is failing", *_HELPS
)
SPARE = check("drive-spare-low", PROBLEM, f"Less than {SPARE_FAIL_PERCENT:g} % of the drive's spare blocks are left", *_HELPS)
USED = check(
    "drive-life-used",
    (WARNING, PROBLEM),
    f"The drive has used {USED_WARN_PERCENT:g} % or more of the life that it is rated for; a problem from 100 % on",
    *_HELPS,
)
ERRORS = check("drive-media-errors", WARNING, "The drive reports media errors", *_HELPS)
YEARS = check(
    "drive-life-short", WARNING, f"At the measured rate the drive lasts less than {YEARS_WARN:g} year(s)", *_HELPS
)


def findings(disks: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What is to be said of drives."""
    found = []
    for disk in disks:
        name = f"{disk.get('disk')} ({disk.get('model') or 'unknown model'})"
        used, spare, errors = (disk.get(key) for key in ("percentage_used", "spare_percent", "media_errors"))
        code = f"smartctl -x /dev/{str(disk.get('disk')).rpartition('/')[2]}"
        severity = PROBLEM if disk.get("health_passed") is False else WARNING
        found += [HEALTH(f"{name}: {text}", severity=severity, code=code) for text in disk.get("health") or []]
        if spare is not None and spare < SPARE_FAIL_PERCENT:
            found.append(SPARE(f"{name} has {number_text(spare)} % of its spare blocks left", code=code))
        if used is not None and used >= USED_WARN_PERCENT:
            text = f"{name} has used {number_text(used)} % of the life it is rated for"
            found.append(USED(text, severity=PROBLEM if used >= 100 else WARNING, code=code))
        if errors:
            found.append(ERRORS(f"{name} reports {number_text(errors)} media errors", code=code))
        left = (disk.get("endurance") or {}).get("years_left")
        if left is not None and left < YEARS_WARN:
            found.append(YEARS(f"{name} has {years_text(left)} left at the rate that was measured", code=code))
    return found
