# SPDX-License-Identifier: Apache-2.0
"""Logs stay on disk and are written less often: the kernel keeps what nobody has synced for longer before it writes it.

That is how pveproxy's access log, pve-firewall's log and every other file that is appended to without a sync get to the disk.
What a program syncs (databases, the journal, a guest's flush) is written when it says so, as before.
"""

from __future__ import annotations

from typing import Any

from ..base.run import Run
from . import kernel_settings
from .parts import Facts, Files, Found, Options, Work, file_states, number, same

NAME = "writeback"
UNITS: tuple[str, ...] = ()
FILE = "/etc/sysctl.d/90-pveguard-writeback.conf"
EXPIRE, WAKE = "vm.dirty_expire_centisecs", "vm.dirty_writeback_centisecs"
KEYS = {key: kernel_settings.sysctl_path(key) for key in (EXPIRE, WAKE)}


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``; ``values`` of the two settings, in hundredths of a second; ``files``."""
    values = kernel_settings.read(KEYS, found.root)
    return {"installed": len(values) == len(KEYS), "values": values, "files": file_states([FILE], found.root)}


def settings(options: Options) -> dict[str, int]:
    seconds = int(number(options.get("expire_seconds"), 120))
    # The kernel looks a few times in that period, as it does with its own numbers (30 s and 5 s).
    return {EXPIRE: seconds * 100, WAKE: max(100, seconds * 100 // 6)}


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return []
    wanted, now = settings(options), facts["values"]
    if now != wanted:
        return [f"write what nobody has synced after {wanted[EXPIRE] // 100} s instead of {now[EXPIRE] // 100} s"]
    return [] if same(facts.get("files") or {}, owned(options, facts)) else [f"keep {EXPIRE} over a boot"]


def owned(options: Options, facts: Facts) -> Files:
    lines = [f"{key} = {value}" for key, value in settings(options).items()]
    return {FILE: "\n".join(["# Managed by pveguard: what nobody has synced is written less often.", *lines]) + "\n"}


def live(facts: Facts) -> Any:
    return facts["values"]


def activate(work: Work) -> None:
    wanted = (work.was or {}) if work.options is None else settings(work.options)
    kernel_settings.set_all(work, {key: (KEYS[key], value) for key, value in wanted.items()})
