# SPDX-License-Identifier: Apache-2.0
"""What the units of a node write: the class of each, and what of one unit belongs to another class."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .writer_files import Known

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


def of_unit(unit: str) -> str:
    """The class of what a unit writes most of."""
    return next((kind for pattern, kind in _UNITS if pattern.fullmatch(unit)), "service")


def label(kind: str, unit: str) -> str:
    """What a row is called; other services by their name."""
    return unit.removesuffix(".service") if kind == "service" and unit else LABELS.get(kind, kind)


def rows(units: Mapping[str, tuple[int, bool]], source: str, ended: int, known: Known) -> list[Row]:
    """The rows of ``units`` (bytes, exact) and of what ended; their sum is that of the units and ``ended``.

    What is known of the files takes its part of the unit that writes them: never more than the unit wrote.
    """
    found: list[Row] = []
    logins, all_logins = 0, True
    tasks = known.task_logs
    for unit, (count, exact) in sorted(units.items(), key=lambda each: (-each[1][0], each[0])):
        kind = of_unit(unit)
        if kind == "logins":
            logins, all_logins = logins + count, all_logins and exact
        elif kind == "rrd":
            journal = min(count, known.rrd_journal)
            found.append(("rrd_journal", unit, journal, False, "rrdcached"))
            # What its journal costs beyond its bytes, since it is written in whole pages, is in here.
            found.append((kind, unit, count - journal, exact and not journal, source))
        elif kind == "jobs":
            part = min(count, tasks)
            tasks -= part
            found.append(("task_logs", unit, part, False, "files"))
            found.append((kind, unit, count - part, exact and not part, source))
        elif kind == "access_log":
            log = count if known.access_log_most is None else min(count, known.access_log_most)
            found.append((kind, unit, log, exact and log == count and known.access_log_most is not None, source))
            # Uploads of images, for instance.
            found.append(("service", unit, count - log, False, source))
        else:
            found.append((kind, unit, count, exact, source))
    found.append(("logins", "user.slice", logins, all_logins, source))
    packages = min(ended, known.apt)
    found.append(("apt", "", packages, False, "files"))
    found.append(("ended", "", ended - packages, not packages, source))
    return found
