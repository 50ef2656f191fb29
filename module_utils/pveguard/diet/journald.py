# SPDX-License-Identifier: Apache-2.0
"""The journal: bounded, written out less often, and on disk where it is on disk already.

What critical messages need is journald's own: one of priority crit or above is synced at once where it comes from the kernel,
from the output of a service or by journald's own protocol. One by syslog(3) is not, with or without this (docs/write-diet.md).
What somebody has set in a file of his own stays as it is. A journal that is in RAM, or goes nowhere, is left alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..base.run import Run
from ..disk import block_writes
from . import surroundings
from .parts import Facts, Files, Found, Options, Work, active, file_states, loaded, number, same, text

NAME = "journald"
UNIT = "systemd-journald.service"
UNITS = (UNIT,)
#: Before the names that somebody may give his own: those count then, as they are set on purpose.
DROP_IN = "/etc/systemd/journald.conf.d/50-pveguard.conf"
KEYS = ("Storage", "SystemMaxUse", "SyncIntervalSec", "RateLimitIntervalSec", "RateLimitBurst")
#: By what later files are read over earlier ones of the same name.
_FOLDERS = ("/usr/lib/systemd", "/usr/local/lib/systemd", "/run/systemd", "/etc/systemd")


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``; ``active``; ``persistent``: whether the journal is on disk; ``tenth_mib`` of its file system; ``theirs``:
    which of KEYS others have set, with their values; ``files``.
    """
    if not loaded(found.units.get(UNIT)):
        return {"installed": False}
    theirs = settings_of_others(found.root)
    storage = theirs.get("Storage", "auto").lower()
    folder = found.root / "var/log/journal"
    on_disk = not surroundings.in_ram(block_writes.device_behind("/var/log/journal", found.root, skip_memory=False))
    return {
        "installed": True,
        "active": active(found.units.get(UNIT)),
        "persistent": on_disk and (storage == "persistent" or (storage == "auto" and folder.is_dir())),
        "tenth_mib": tenth_mib(folder),
        "theirs": theirs,
        "files": file_states([DROP_IN], found.root),
    }


def tenth_mib(place: Path) -> int | None:
    """A tenth of the file system, which is journald's own bound, down to a power of two: ZFS has another size every day. None
    where it is not known.
    """
    try:
        space = os.statvfs(place)
    except OSError:
        return None
    tenth = space.f_blocks * space.f_frsize // 10 // 1024**2
    return 1 << tenth.bit_length() - 1 if tenth else None


def settings_of_others(root: Path) -> dict[str, str]:
    """KEYS as files set them that are not pveguard's, in the order in which journald reads them."""
    files: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted((root / folder.lstrip("/") / "journald.conf.d").glob("*.conf")):
            files[path.name] = path
    main = next((path for folder in reversed(_FOLDERS) if (path := root / folder.lstrip("/") / "journald.conf").exists()), None)
    ours = root / DROP_IN.lstrip("/")
    found: dict[str, str] = {}
    for path in [*([main] if main else []), *(files[name] for name in sorted(files))]:
        # A distribution's own file is no wish of the operator.
        if path == ours or path.is_relative_to(root / "usr"):
            continue
        for line in text(path).splitlines():
            key, sign, value = line.strip().partition("=")
            if sign and key.strip() in KEYS:
                found[key.strip()] = value.strip()
    return {key: value for key, value in found.items() if value}


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed") or not facts.get("persistent"):
        return []
    if not facts.get("active"):
        return ["start systemd-journald, which does not run"] if facts.get("kept") else []
    wanted = owned(options, facts)
    if same(facts.get("files") or {}, wanted):
        return []
    values = re.findall(r"^(\w+=.*)$", wanted[DROP_IN], re.MULTILINE)
    return [f"bound the journal ({', '.join(values)})"]


def owned(options: Options, facts: Facts) -> Files:
    bound, tenth = int(number(options.get("max_use_mib"), 512)), facts.get("tenth_mib")
    wish = {
        "Storage": "persistent",
        "SystemMaxUse": f"{min(bound, tenth) if tenth else bound}M",
        "SyncIntervalSec": f"{int(number(options.get('sync_seconds'), 900))}s",
        "RateLimitIntervalSec": f"{int(number(options.get('rate_interval_seconds'), 30))}s",
        "RateLimitBurst": str(int(number(options.get("rate_burst"), 5000))),
    }
    theirs = facts.get("theirs") or {}
    lines = [f"{key}={value}" for key, value in wish.items() if key not in theirs]
    head = [
        "# Managed by pveguard: the journal on disk, bounded. What journald syncs at once it still does (critical messages).",
        "# What another file sets is not set here.",
    ]
    return {DROP_IN: "\n".join([*head, "[Journal]", *lines]) + "\n"}


def activate(work: Work) -> None:
    """Restart journald: its sockets and the streams of all services stay open meanwhile, held by systemd."""
    if not work.facts.get("installed"):
        return
    # What it has not synced yet; it does so at its end too.
    work.run(["journalctl", "--sync"], timeout=120)
    work.systemctl("restart", UNIT)
    work.done.append("systemd-journald restarted")
