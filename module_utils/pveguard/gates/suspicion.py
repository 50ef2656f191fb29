"""Signs that a drive acknowledges a flush before the data is stored. They are never a proof: only a power cut is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..base.units import number_text

#: Revolutions a minute of a disk that does not say: the common 7200, at which one place passes the head 120 times a
#: second. An fsync of a file system with a journal needs at least one such pass.
DEFAULT_RPM = 7200
#: More than this many fsyncs in one revolution are not explained by blocks that happen to lie side by side.
PER_REVOLUTION = 1.5

#: Milliseconds. No NAND page is programmed faster than in about 0.1 ms (SLC; the usual TLC takes several times as
#: long), and a commit of a journal, which a truncation needs as well as new blocks, waits for two flushes. Half of
#: one is impossible without a protected cache.
FLASH_PROGRAM_MS = 0.1
IMPOSSIBLE_MS = FLASH_PROGRAM_MS / 2


def suspects(device: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What speaks against the drive: ``{rule, evidence}``, empty when nothing does.

    ``device``: of :func:`block_device.describe`. ``methods``: figures per method; those of ``commit`` are not used,
    since a commit is not synced. Rules: ``rotation`` (more fsyncs than revolutions), ``latency`` (faster than flash can
    be programmed, volatile write cache, no protection known or one that has failed), ``virtual_cache`` (the same on a
    virtual disk: unsafe caching on the host, or a protected cache there), ``no_flush`` (the drive caches, the kernel
    does not flush), ``no_barrier`` (mount option), ``zfs_sync`` (property ``disabled``).
    """
    found: list[dict[str, str]] = []

    def suspect(rule: str, evidence: str) -> None:
        found.append({"rule": rule, "evidence": evidence})

    disks = device.get("disks") or []
    options = str(device.get("mount_options") or "").split(",")
    if any(re.match(r"(nobarrier|barrier=0)\Z", option) for option in options):
        suspect("no_barrier", f"{device['mount_point']} is mounted without barriers, so nothing is flushed")
    if device.get("zfs_sync") == "disabled":
        suspect("zfs_sync", f"the property sync of {device['source']} is disabled, so nothing is flushed")
    for disk in disks:
        if disk["drive_write_cache"] == "write back" and disk["write_cache"] == "write through":
            suspect(
                "no_flush",
                f"{disk['name']} says that it has a write cache, /sys/block/{disk['name']}/queue/write_cache says "
                "'write through', so the kernel does not flush it",
            )
    synced = {name: methods[name] for name in ("fdatasync", "pveperf") if name in methods}
    medians = {name: entry["p50_ms"] for name, entry in synced.items() if entry.get("p50_ms") is not None}
    if not disks or not medians:
        return found
    # A cache of flash in front of a disk, or a RAID controller with a battery, is fast and honest.
    spinning = [disk for disk in disks if disk["rotational"] and not disk["virtual"]]
    if len(spinning) == len(disks) and all(disk["transport"] in ("sata", "sas", "usb") for disk in disks):
        rpm = max(disk["rpm"] or DEFAULT_RPM for disk in disks)
        name, rate = max(
            ((name, entry["operations_per_second"]) for name, entry in synced.items()),
            key=lambda pair: pair[1],
        )
        if rate > rpm / 60 * PER_REVOLUTION:
            suspect(
                "rotation",
                f"{number_text(rate)} {name} a second on {', '.join(disk['name'] for disk in disks)}, which turns "
                f"{number_text(rpm / 60)} times a second",
            )
        return found
    # A flush waits for every drive of a mirror, so one that has lost its protection is enough.
    failed = [disk for disk in disks if disk.get("power_loss_failed")]
    exposed = failed or [
        disk for disk in disks if disk["volatile_cache"] and not disk["power_loss_protection"]
    ]
    if not failed and len(exposed) != len(disks):
        return found
    # Either method is evidence: to sync a truncated file the file system commits its journal, and waits for flushes, too.
    impossible = [f"{name} of {number_text(median)} ms" for name, median in medians.items() if median < IMPOSSIBLE_MS]
    if not impossible:
        return found
    seen = f"median {' and '.join(impossible)}"
    names = ", ".join(disk["name"] for disk in exposed)
    if all(disk["virtual"] for disk in disks):
        suspect(
            "virtual_cache",
            f"{seen} on the virtual disk {names}: the host's cache mode may ignore flushes (cache=unsafe), or its "
            "cache is protected",
        )
    elif all(disk["transport"] in ("sata", "sas", "usb", "mmc", "nvme") for disk in exposed):
        cache = (
            f"where {'; '.join(disk['power_loss_rule'] for disk in failed)}"
            if failed
            else "with a volatile write cache and no known power-loss protection"
        )
        suspect(
            "latency",
            f"{seen} on {names}, {cache}; flash needs about {number_text(FLASH_PROGRAM_MS)} ms for a page",
        )
    return found
