# SPDX-License-Identifier: Apache-2.0
"""How long ZFS collects what nobody has synced (zfs_txg_timeout): at once, and at every boot.

Set by systemd-tmpfiles, not by an option of the kernel module: with the system on ZFS that would have to be in the initramfs.
"""

from __future__ import annotations

from typing import Any

from ..base.run import Run
from . import kernel_settings
from .parts import Facts, Files, Found, Options, Work, file_states, number, same

NAME = "zfs_txg"
UNITS: tuple[str, ...] = ()
PARAMETER = "/sys/module/zfs/parameters/zfs_txg_timeout"
FILE = "/etc/tmpfiles.d/pveguard-zfs.conf"
KEYS = {"zfs_txg_timeout": PARAMETER}


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``: whether the kernel has ZFS; ``values``: the timeout in seconds; ``files``."""
    values = kernel_settings.read(KEYS, found.root)
    return {"installed": bool(values), "values": values, "files": file_states([FILE], found.root)}


def _seconds(options: Options) -> int:
    return int(number(options.get("seconds"), 15))


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return []
    now, wanted = facts["values"]["zfs_txg_timeout"], _seconds(options)
    if now != wanted:
        return [f"let ZFS collect what nobody has synced for {wanted} s instead of {now} s"]
    return [] if same(facts.get("files") or {}, owned(options, facts)) else ["keep zfs_txg_timeout over a boot"]


def owned(options: Options, facts: Facts) -> Files:
    return {FILE: f"# Managed by pveguard: less frequent transaction groups.\nw {PARAMETER} - - - - {_seconds(options)}\n"}


def live(facts: Facts) -> Any:
    return facts["values"]


def activate(work: Work) -> None:
    wanted = (work.was or {}) if work.options is None else {"zfs_txg_timeout": _seconds(work.options)}
    kernel_settings.set_all(work, {key: (KEYS[key], value) for key, value in wanted.items()})
