# SPDX-License-Identifier: Apache-2.0
"""Swap: used later (vm.swappiness), and where that is chosen in RAM (zram) or not at all.

A swap device is switched off only while the memory that is free holds what is in it, with a reserve; it is masked, not taken out
of fstab. zram is set up only where a package for it is there, and settings that somebody has made for it stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.run import Run
from . import kernel_settings
from .parts import (
    Facts,
    Files,
    Found,
    Link,
    Options,
    file_states,
    loaded,
    mount_unit,
    number,
    same,
    text,
    unescape,
)

NAME = "swap"
SERVICE = "zramswap.service"
UNITS = (SERVICE,)
FILE = "/etc/sysctl.d/90-pveguard-swap.conf"
GENERATOR, GENERATOR_CONF = "/usr/lib/systemd/system-generators/zram-generator", "/etc/systemd/zram-generator.conf"
SWAPPINESS = "vm.swappiness"
KEYS = {SWAPPINESS: kernel_settings.sysctl_path(SWAPPINESS)}
KEEP, ZRAM, NONE = "keep", "zram", "none"


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``; ``values``: the swappiness; ``disks``: swap on disk in use, by its name in /proc/swaps, KiB used each;
    ``zram``: whether swap in zram is in use; ``zram_by``: the package for it (``zram-tools``, ``systemd-zram-generator``, empty);
    ``boot``: which boot it is; ``units``: of the swap in fstab; ``available_kib`` and ``memory_kib``; ``files``.
    """
    root = found.root
    values = kernel_settings.read(KEYS, root)
    disks, zram = in_use(root)
    generator = (root / GENERATOR.lstrip("/")).exists()
    by = "systemd-zram-generator" if generator else "zram-tools" if loaded(found.units.get(SERVICE)) else ""
    units = _units(text(root / "etc/fstab"))
    memory = memory_of(root)
    return {
        "installed": bool(values),
        "values": values,
        "disks": disks,
        "zram": zram,
        "zram_by": by,
        "boot": boot(root),
        "units": units,
        "available_kib": memory.get("MemAvailable", 0),
        "memory_kib": memory.get("MemTotal", 0),
        "files": file_states([FILE, GENERATOR_CONF, *(_mask(unit) for unit in units)], root),
    }


def boot(root: Path) -> str:
    return text(root / "proc/sys/kernel/random/boot_id").strip()


def in_use(root: Path) -> tuple[dict[str, int], bool]:
    """Swap on disk, ``{name: KiB used}``, and whether there is swap in zram."""
    disks, zram = {}, False
    for line in text(root / "proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 5:
            continue
        if fields[0].startswith("/dev/zram"):
            zram = True
        else:
            disks[unescape(fields[0])] = int(fields[3])
    return disks, zram


def _units(fstab: str) -> list[str]:
    """The units that systemd makes of the swap lines of fstab."""
    found = []
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#") or fields[2] != "swap":
            continue
        what = unescape(fields[0])
        kind, sign, value = what.partition("=")
        if sign and kind in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
            what = f"/dev/disk/by-{kind.lower()}/{value.strip(chr(34))}"
        found.append(f"{mount_unit(what).removesuffix('.mount')}.swap")
    return found


def memory_of(root: Path) -> dict[str, int]:
    lines = [line.split() for line in text(root / "proc/meminfo").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _mask(unit: str) -> str:
    return f"/etc/systemd/system/{unit}"


def settings(options: Options) -> tuple[int, str]:
    return int(number(options.get("swappiness"), 10)), str(options.get("device") or KEEP)


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return []
    swappiness, device = settings(options)
    todo = []
    now = facts["values"][SWAPPINESS]
    if now != swappiness:
        todo.append(f"set vm.swappiness to {swappiness} instead of {now}")
    if device != KEEP and facts.get("disks"):
        todo.append(f"switch swap on {', '.join(facts['disks'])} off")
    if device == ZRAM and not facts.get("zram"):
        todo.append("swap to RAM (zram)")
    if not todo and not same(facts.get("files") or {}, owned(options, facts)):
        todo.append("keep the settings of swap over a boot")
    return todo


def owned(options: Options, facts: Facts) -> Files:
    swappiness, device = settings(options)
    found: Files = {FILE: f"# Managed by pveguard: swap is used later.\n{SWAPPINESS} = {swappiness}\n"}
    if device != KEEP:
        found.update({_mask(unit): Link("/dev/null") for unit in facts.get("units") or []})
    theirs = facts["files"][GENERATOR_CONF] != "absent" and GENERATOR_CONF not in (facts.get("paths") or [])
    if device == ZRAM and facts.get("zram_by") == "systemd-zram-generator" and not theirs:
        found[GENERATOR_CONF] = "# Managed by pveguard: swap in RAM, compressed.\n[zram0]\nzram-size = min(ram / 4, 4096)\n"
    return found


def live(facts: Facts) -> Any:
    """Names of devices are those of this boot."""
    disks = sorted(facts.get("disks") or {})
    return {"values": facts["values"], "disks": disks, "zram": bool(facts.get("zram")), "boot": facts.get("boot")}
