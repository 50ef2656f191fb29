# SPDX-License-Identifier: Apache-2.0
"""Swap: used later (vm.swappiness), and where that is chosen in RAM (zram) or not at all.

A swap device is switched off only while the memory that is free holds what is in it, with a reserve; it is masked, not taken out
of fstab. zram is set up only where a package for it is there, and settings that somebody has made for it stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from . import kernel_settings
from .parts import (
    SYSTEMCTL_S,
    Facts,
    Files,
    Found,
    Link,
    Options,
    Work,
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
#: Of all memory, what stays available beside what comes back from swap.
RESERVE = 0.1
MIB = 1024


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
    memory = _memory(root)
    return {
        "installed": bool(values),
        "values": values,
        "disks": disks,
        "zram": zram,
        "zram_by": by,
        "boot": _boot(root),
        "units": units,
        "available_kib": memory.get("MemAvailable", 0),
        "memory_kib": memory.get("MemTotal", 0),
        "files": file_states([FILE, GENERATOR_CONF, *(_mask(unit) for unit in units)], root),
    }


def _boot(root: Path) -> str:
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


def _memory(root: Path) -> dict[str, int]:
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
        memory = _memory(work.root)
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
    if was.get("boot") == _boot(work.root):
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
