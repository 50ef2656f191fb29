# SPDX-License-Identifier: Apache-2.0
"""The counters of one moment of all who write to the drives that carry the system; what two of them say: see :mod:`writers`.

Reading them waits for nothing and writes nothing. A file of its own, because the facts of a node need no more than this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.run import Run
from ..base.run import run as real_run
from ..disk import block_writes, system_disks
from . import writer_files

#: Control groups at the top in which guests are.
GUEST_GROUPS = re.compile(r"qemu\.slice|lxc(\..+)?|machine\.slice")
#: Sessions come and go, their slice stays.
LOGINS = "user.slice"


def counters(
    store: str = block_writes.STORE,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    root: Path | str = Path("/"),
    run: Run = real_run,
) -> dict[str, Any]:
    """Those of :func:`block_writes.counters`, and ``league``, the :func:`reading` of the same moment."""
    return {**block_writes.counters(store, database, pid_file, root), "league": reading(root, run=run)}


def reading(
    root: Path | str = Path("/"), *, disks: Sequence[str] | None = None, run: Run = real_run
) -> dict[str, Any]:
    """The counters of this moment; never raises. ``disks``: names of block devices (``sda``) in place of the system's own.

    Keys: ``time`` (UTC, ISO 8601), ``boot_id``, ``uptime_seconds``; ``disks`` (``[[name, identity, bytes written since
    boot]]``); ``hidden`` (name -> layer that hides who writes to it, counted above that); ``source`` (``cgroup``, ``proc`` or
    None) and ``why`` it is not ``cgroup`` (``zfs``, ``v1``, ``off`` or empty); ``groups``: control groups at the top, ``{name:
    [identity, swap, bytes to each of disks]}``; ``units`` with ``cgroup``: those that wrote, ``{name: [identity, swap, bytes to
    each of disks, group]}``, and with ``proc`` ``{name: [identity, 0, bytes]}``; ``swap``: ``{bytes, by_unit}`` or None without
    any; ``files``: see writer_files.
    """
    root = Path(root)
    system = system_disks.find(root, run) if disks is None else system_disks.named(disks, root)
    # Before the units, at either end of a time: so both ends are late by the same.
    written = [
        [disk.name, disk.identity, block_writes.device_counters(disk.number, root)[0]] for disk in system.disks
    ]
    whole = [swap.number for swap in system.swaps if swap.number] if all(swap.whole for swap in system.swaps) else []
    # One column for each disk, then those of swap.
    numbers = [number for disk in system.disks for number in disk.seen_at] + whole
    found = block_writes.control_groups(numbers, root)
    groups: dict[str, list[Any]] = {}
    units: dict[str, list[Any]] = {}

    def row(each: block_writes.ControlGroup) -> list[Any]:
        left = list(each.written)
        columns = [sum(left.pop(0) for _ in disk.seen_at) for disk in system.disks]
        return [each.identity, sum(left), *columns]

    if found is not None:
        groups = {name: row(each) for name, each in found.groups.items()}
    why = "zfs" if system.zfs else "v1" if not found or not found.controller else "" if found.by_unit else "off"
    if not why and found is not None:
        source = "cgroup"
        apart = {name for name in groups if GUEST_GROUPS.fullmatch(name) or name == LOGINS}
        whole_slice = {LOGINS: found.groups[LOGINS]} if LOGINS in groups else {}
        for name, each in {**found.units, **whole_slice}.items():
            if any(each.written) and (each.group not in apart or name == LOGINS):
                units[name] = [*row(each), each.group]
    else:
        source = "proc"
        units = {name: [words, 0, count] for name, (count, words) in block_writes.by_process(root).items()}
        # Only those of guests are used, and nothing of a pool is in any.
        groups = {} if system.zfs else {name: each for name, each in groups.items() if GUEST_GROUPS.fullmatch(name)}
    uptime = writer_files.text(root / "proc/uptime").split()
    return {
        "time": writer_files.now(),
        "boot_id": writer_files.text(root / "proc/sys/kernel/random/boot_id").strip() or None,
        "uptime_seconds": float(uptime[0]) if uptime else None,
        "disks": written,
        "hidden": {disk.name: disk.hidden_by for disk in system.disks if disk.hidden_by},
        "source": source if units or groups or any((root / "proc").glob("[0-9]*/io")) else None,
        "why": why,
        "groups": groups,
        "units": units,
        "swap": _swap(system.swaps, source == "cgroup", root),
        "files": writer_files.reading(root),
    }


def _swap(swaps: Sequence[system_disks.Swap], seen: bool, root: Path) -> dict[str, Any] | None:
    """What was written to the swap on these disks since boot; ``by_unit``: it is known whose memory it was."""
    if not swaps:
        return None
    written: int | None = 0
    for swap in swaps:
        if swap.number is None:
            # All swap there is, in pages; more than one may not be told from the other.
            pages = re.search(r"^pswpout (\d+)$", writer_files.text(root / "proc/vmstat"), re.MULTILINE)
            lines = writer_files.text(root / "proc/swaps").splitlines()[1:]
            written = int(pages[1]) * writer_files.PAGE if pages and len(lines) == 1 else None
        elif written is not None:
            count = block_writes.device_counters(swap.number, root)[0]
            written = None if count is None else written + count
    return {"bytes": written, "by_unit": seen and all(swap.whole for swap in swaps)}
