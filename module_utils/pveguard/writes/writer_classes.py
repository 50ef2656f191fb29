# SPDX-License-Identifier: Apache-2.0
"""What the units of a node write: the class of each, and what of one unit belongs to another class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .writer_files import PAGE

#: The kernel writes back what is dirty this often (vm.dirty_writeback_centisecs), so a page that is appended to at most so often.
_WRITE_BACK_SECONDS = 5

#: Class -> what is written. Guests and the rest of the drive's counter are not among them.
LABELS = {
    "pmxcfs": "cluster file system (pmxcfs)",
    "rrd": "statistics (RRD files)",
    "rrd_journal": "journal of rrdcached",
    "journal": "system journal (journald)",
    "access_log": "access log of the API (pveproxy)",
    "task_logs": "task logs",
    "firewall_log": "firewall log",
    "smartd": "state of smartd",
    "apt": "packages and their lists (apt)",
    "swap": "swap",
    "jobs": "API and jobs, backups among them",
    "pveguard": "pveguard's own",
    "logins": "logins (ssh, Ansible)",
    "ended": "services that ended (timers, jobs)",
    "service": "other services",
}
REST_LABEL = "file-system metadata, the kernel, and what nobody is known for"

#: The unit's whole name -> its class; all others are ``service``.
_UNITS = (
    (re.compile(r"pve-cluster\.service"), "pmxcfs"),
    (re.compile(r"rrdcached\.service"), "rrd"),
    (re.compile(r"systemd-journald(@.+)?\.service"), "journal"),
    (re.compile(r"pveproxy\.service"), "access_log"),
    (re.compile(r"(pvefw-logger|pve-firewall)\.service"), "firewall_log"),
    (re.compile(r"(smartd|smartmontools)\.service"), "smartd"),
    (re.compile(r"(apt-daily|apt-daily-upgrade|pve-daily-update|unattended-upgrades|packagekit)\.service"), "apt"),
    (re.compile(r"(pvedaemon|pvescheduler)\.service"), "jobs"),
    (re.compile(r"pveguard-.+\.service"), "pveguard"),
    (re.compile(r"user\.slice|session-.+\.scope|user@.+\.service"), "logins"),
)

#: Class, unit, bytes, whether that is all of it and no more, source.
Row = tuple[str, str, int, bool, str]


@dataclass(frozen=True)
class Known:
    """Bytes of a time. ``rrd_journal``, ``task_logs``, ``apt``: at least. ``access_log_most``: what the log may have cost at
    most, None where that is not known.
    """

    rrd_journal: int = 0
    task_logs: int = 0
    apt: int = 0
    access_log_most: int | None = None


def known(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, start: float | None, seconds: float | None
) -> Known:
    """What the files of two readings (writer_files) say was written from ``start`` (seconds since 1970) on; without ``before``
    since boot.
    """
    new = after or {}
    journal, was = new.get("rrd_journal") or 0, (before or {}).get("rrd_journal")
    apt = sum(size for first, size in new.get("apt") or [] if start is not None and first >= start)
    if not before:
        return Known(rrd_journal=journal, apt=apt)
    old_logs, new_logs = before.get("access_log") or {}, new.get("access_log") or {}
    most = None
    tasks, old_tasks = new.get("task_logs"), before.get("task_logs")
    # One that is gone may have grown before.
    if seconds is not None and new_logs and set(old_logs) <= set(new_logs):
        growth = sum(max(0, size - old_logs.get(inode, 0)) for inode, size in new_logs.items())
        most = growth + PAGE * (1 + int(seconds // _WRITE_BACK_SECONDS)) if growth else 0
    return Known(
        # It counts from nothing when it was started again.
        rrd_journal=0 if was is None else journal - was if journal >= was else journal,
        task_logs=0 if tasks is None or old_tasks is None else max(0, tasks - old_tasks),
        apt=apt,
        access_log_most=most,
    )


def of_unit(unit: str) -> str:
    """The class of what a unit writes most of."""
    return next((kind for pattern, kind in _UNITS if pattern.fullmatch(unit)), "service")


def label(kind: str, unit: str) -> str:
    """What a row is called; other services by their name."""
    return unit.removesuffix(".service") if kind == "service" and unit else LABELS.get(kind, kind)


def rows(units: Mapping[str, tuple[int, bool]], source: str, ended: int, files: Known) -> list[Row]:
    """The rows of ``units`` (bytes, exact) and of what ended; their sum is that of the units and ``ended``.

    What is known of the files takes its part of the unit that writes them: never more than the unit wrote.
    """
    found: list[Row] = []
    logins, all_logins = 0, True
    tasks = files.task_logs
    for unit, (count, exact) in sorted(units.items(), key=lambda each: (-each[1][0], each[0])):
        kind = of_unit(unit)
        if kind == "logins":
            logins, all_logins = logins + count, all_logins and exact
        elif kind == "rrd":
            journal = min(count, files.rrd_journal)
            found.append(("rrd_journal", unit, journal, False, "rrdcached"))
            # What its journal costs beyond its bytes, since it is written in whole pages, is in here.
            found.append((kind, unit, count - journal, exact and not journal, source))
        elif kind == "jobs":
            part = min(count, tasks)
            tasks -= part
            found.append(("task_logs", unit, part, False, "files"))
            found.append((kind, unit, count - part, exact and not part, source))
        elif kind == "access_log":
            log = count if files.access_log_most is None else min(count, files.access_log_most)
            found.append((kind, unit, log, exact and log == count and files.access_log_most is not None, source))
            # Uploads of images, for instance.
            found.append(("service", unit, count - log, False, source))
        else:
            found.append((kind, unit, count, exact, source))
    found.append(("logins", "user.slice", logins, all_logins, source))
    packages = min(ended, files.apt)
    found.append(("apt", "", packages, False, "files"))
    found.append(("ended", "", ended - packages, not packages, source))
    return found
