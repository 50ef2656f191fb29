# SPDX-License-Identifier: Apache-2.0
"""Swap switched off and on; apart from the look, so that the facts of a node do not carry it."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import PveguardError
from . import kernel_settings
from .parts import SYSTEMCTL_S, Facts, Options, Work
from .swap import KEEP, KEYS, SERVICE, SWAPPINESS, ZRAM, boot, in_use, memory_of, settings

#: Of all memory, what stays available beside what comes back from swap.
RESERVE = 0.1
MIB = 1024


def refuse(options: Options, facts: Facts, root: Path) -> None:
    """Raises PveguardError, before anything is changed, where memory would not hold what is in swap, or zram has no package."""
    device = settings(options)[1]
    if device == ZRAM and not facts.get("zram_by"):
        raise PveguardError(
            "swap in zram needs one of the packages systemd-zram-generator and zram-tools, and none is installed: install "
            "one, or set write_diet_swap_device: keep or none"
        )
    if device != KEEP:
        _refuse_full(facts)


def _refuse_full(facts: Facts) -> None:
    used = sum((facts.get("disks") or {}).values())
    left = facts["available_kib"] - used
    reserve = int(facts["memory_kib"] * RESERVE)
    if facts.get("disks") and left < reserve:
        raise PveguardError(
            f"swap is not switched off: it holds {used // MIB} MiB, of memory {facts['available_kib'] // MIB} MiB are "
            f"available, and {reserve // MIB} MiB have to stay free: move guests away first, or set write_diet_swap_device: keep"
        )


def activate(work: Work) -> None:
    was = work.was or {}
    if work.options is None:
        _back(work, was)
        return
    swappiness, device = settings(work.options)
    kernel_settings.set_all(work, {SWAPPINESS: (KEYS[SWAPPINESS], swappiness)})
    work.systemctl("daemon-reload")
    disks, zram = in_use(work.root)
    if device == KEEP:
        # It may have been switched off by a former wish.
        _swap_on(work, was, disks)
        return
    if device == ZRAM and not zram:
        work.systemctl("start", _zram_unit(work))
        work.done.append("swap in zram started")
    for name in disks:
        memory = memory_of(work.root)
        now = {"disks": {name: in_use(work.root)[0].get(name, 0)}, "memory_kib": memory.get("MemTotal", 0)}
        _refuse_full({**now, "available_kib": memory.get("MemAvailable", 0)})
        work.command("swapoff", name)
        work.done.append(f"swap on {name} switched off")


def _back(work: Work, was: Facts) -> None:
    values = was.get("values") or {}
    kernel_settings.set_all(work, {key: (KEYS[key], value) for key, value in values.items()})
    work.systemctl("daemon-reload")
    now, zram = in_use(work.root)
    _swap_on(work, was, now)
    if zram and not was.get("zram") and was:
        work.systemctl("stop", _zram_unit(work))
        work.done.append("swap in zram stopped")


def _swap_on(work: Work, was: Facts, now: Facts) -> None:
    missing = [name for name in was.get("disks") or [] if name not in now]
    if not missing:
        return
    # By fstab, with the priorities that it gives. After a boot the name of then may be that of another device, a guest's even.
    all_of_fstab = work.run(["swapon", "--all"], timeout=SYSTEMCTL_S)
    on = in_use(work.root)[0]
    if was.get("boot") == boot(work.root):
        for name in missing:
            if name not in on:
                work.command("swapon", name)
    elif not all_of_fstab.ok and not set(on) - set(now):
        raise PveguardError(
            f"swap was on {', '.join(missing)}, and 'swapon --all' brings none back: {all_of_fstab.stderr.strip()}. Look at the "
            "swap lines of /etc/fstab and run again"
        )
    work.done += [f"swap on {name} switched on" for name in in_use(work.root)[0] if name not in now]


def _zram_unit(work: Work) -> str:
    return "dev-zram0.swap" if work.facts.get("zram_by") == "systemd-zram-generator" else SERVICE
