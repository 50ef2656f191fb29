# SPDX-License-Identifier: Apache-2.0
"""A report made by hand: three members that were protected, one of them with a worn drive, and one that went away.

The figures of the heartbeats are those published for three idle nodes; the drives are invented.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard.report import report_table
from ansible.module_utils.pveguard.writes import writers as league_of

NOW = "2026-11-21T12:40:00Z"
EARLIER = "2026-11-18T09:12:44Z"
MIB = 1024 * 1024

CLASSES = {
    "ha": "HA heartbeat (lrm_status)",
    "locks": "locks of the scheduler",
    "logs": "task logs and the cluster log",
    "guests": "guest configurations",
    "unattributed": "not seen by the samples",
}


def classes(**counts: float) -> list[dict[str, Any]]:
    """``class=transactions`` of one minute."""
    found = [
        {
            "class": name,
            "label": CLASSES[name],
            "transactions": count,
            "transactions_per_minute": float(count),
            "exact": name == "unattributed",
        }
        for name, count in counts.items()
    ]
    return sorted(found, key=lambda each: -each["transactions"])


def writers(**counts: float) -> list[dict[str, Any]]:
    return [
        {
            "node_id": number,
            "node": name,
            "transactions": count,
            "transactions_per_minute": float(count),
            "exact": False,
        }
        for number, (name, count) in enumerate(counts.items(), 1)
    ]


def file(path: str, kind: str, node: str | None, changes: int, each: int = 1) -> dict[str, Any]:
    return {
        "path": path,
        "class": kind,
        "writer": 1,
        "node": node,
        "changes": changes,
        "transactions_at_least": changes * each,
        "exact": False,
    }


def services(**rates: float) -> list[dict[str, Any]]:
    return [
        {"service": name.replace("_", "-") + ".service", "bytes": rate, "bytes_per_minute": rate}
        for name, rate in rates.items()
    ]


def reading(uptime: float, units: dict[str, int], guests: int, total: int, **more: Any) -> dict[str, Any]:
    """Counters as writers.reading returns them, of a node with one drive."""
    services = sum(units.values()) + (4096 if units else 0)
    return {
        "time": NOW,
        "boot_id": "b",
        "uptime_seconds": uptime,
        "disks": [["nvme0n1", "1", total]],
        "hidden": {},
        "source": "cgroup",
        "why": "",
        "groups": {"system.slice": ["1", 0, services], "qemu.slice": ["2", 0, guests]},
        "units": {name: [str(at), 0, count, "system.slice"] for at, (name, count) in enumerate(units.items(), 10)},
        "swap": None,
        "files": {"access_log": {}, "task_logs": None, "apt": [], "rrd_journal": None},
        **more,
    }


def league(minutes: float, scale: float = 1.0, pmxcfs: float = 1.0) -> dict[str, Any]:
    """The table of a node with twenty guests, ``scale`` times what a stock one writes; ``pmxcfs`` of its own."""
    rates = {
        "pve-cluster.service": 3.6 * MIB * pmxcfs,
        "rrdcached.service": 1.9 * MIB * scale,
        "systemd-journald.service": 310_000 * scale,
        "pveproxy.service": 96_000 * scale,
        "pvefw-logger.service": 41_000 * scale,
        "pvescheduler.service": 22_000,
        "pveguard-state-watch.service": 9_000 if pmxcfs < 1 else 0,
        "smartmontools.service": 4_100,
        "pvestatd.service": 3_100,
        "postfix.service": 2_900,
        "chrony.service": 1_200,
        "zed.service": 800,
    }
    units = {name: round(rate * minutes) for name, rate in rates.items() if rate}
    files = {"access_log": {}, "task_logs": round(9_000 * minutes), "apt": [], "rrd_journal": round(0.3 * MIB * scale * minutes)}
    guests = round(12 * MIB * minutes)
    total = sum(units.values()) + 4096 + guests + round((0.8 * scale + 0.9 * pmxcfs) * MIB * minutes)
    nothing = reading(0.0, {}, 0, 0, files={**files, "task_logs": 0, "rrd_journal": 0})
    made = league_of.table(nothing, reading(minutes * 60, units, guests, total, files=files))
    assert made is not None and made["rest_bytes"] > 0
    return made


def window(
    transactions: float, device_bytes: float | None, memory: bool, moment: str = NOW, **more: Any
) -> dict[str, Any]:
    """Figures of a window of one minute."""
    return {
        "method": "window",
        "from": moment,
        "to": moment,
        "seconds": 60.0,
        "transactions": transactions,
        "transactions_per_minute": float(transactions),
        "device_bytes": device_bytes,
        "device_bytes_per_minute": device_bytes,
        "pmxcfs_write_bytes": 0 if memory else device_bytes,
        "pmxcfs_write_bytes_per_minute": 0.0 if memory else device_bytes,
        "database_in_memory": memory,
        "attribution": "database",
        "journal": None,
        "notes": [],
        **more,
    }


BEFORE = {
    "classes": classes(ha=108, locks=6, logs=2, unattributed=1),
    "writers": writers(pve1=39, pve2=39, pve3=38),
    "files": [
        *(file(f"nodes/pve{n}/lrm_status", "ha", f"pve{n}", 12, 3) for n in (1, 2, 3)),
        file("priv/lock/file-jobs_cfg", "locks", "pve1", 3),
        file("priv/lock/file-replication_cfg", "locks", "pve2", 3),
        file("nodes/pve1/tasks/active", "logs", "pve1", 2),
    ],
    "services": services(pve_cluster=3.6 * MIB, systemd_journald=310_000.0, rrdcached=96_000.0),
    "league": league(1),
}
AFTER = {
    "classes": classes(locks=6, unattributed=0),
    "writers": writers(pve1=2, pve2=2, pve3=2),
    "files": [
        file("priv/lock/file-jobs_cfg", "locks", "pve1", 3),
        file("priv/lock/file-replication_cfg", "locks", "pve2", 3),
    ],
    "services": services(systemd_journald=52_000.0, rrdcached=24_000.0, pve_cluster=0.0),
    "league": league(1, 0.2, 0.0),
}


def facts(name: str = "pve1", **changes: Any) -> dict[str, Any]:
    """Facts of node_info of a member that is protected and quiet; ``outer__inner=value`` changes one."""
    conf = {"sha256": "aa", "config_version": 5, "text": "totem {}"}
    known: dict[str, Any] = {
        "hostname": name,
        "packages": {"pve-cluster": "9.1.6", "pve-manager": "9.1.1"},
        "pmxcfs": {"mode": "cluster", "quorate": True, "mounted": True},
        "corosync": {
            "cluster_name": "pvelab",
            "host": conf,
            "cluster": conf,
            "copies_equal": True,
            "members": [{"id": number, "name": f"pve{number}"} for number in (1, 2, 3)],
            "live_member_ids": [1, 2, 3],
            "quorate": True,
        },
        "ha": {"installed": True, "disabled": True, "enabled": False, "resources": [], "services": {}},
        "ram_state": {
            "state": "enabled",
            "reason": "",
            "fix": "",
            "ready": True,
            "lag_seconds": 0.0,
            "lag_versions": 2,
            "unsaved_files": 0,
            "last_save": "2026-11-21T12:31:09Z",
            "generations": 14,
            "generations_damaged": 0,
            "fill_percent": 3,
        },
    }
    for path, value in changes.items():
        outer, _, inner = path.partition("__")
        known[outer] = {**known[outer], inner: value} if inner else value
    return known


def drive(name: str = "nvme0n1", **changes: Any) -> dict[str, Any]:
    """A drive as disk_wear returns it."""
    return {
        "disk": name,
        "model": "Samsung SSD 980 500GB",
        "serial_sha256": "5c1f0e",
        "kind": "nvme",
        "written_bytes": 61_000_000_000_000,
        "nand_bytes": None,
        "drive_amplification": None,
        "percentage_used": 12,
        "spare_percent": 100,
        "media_errors": 0,
        "unsafe_shutdowns": 9,
        "power_on_hours": 8760,
        "rated_tbw_bytes": 300_000_000_000_000,
        "rated_from": "table",
        "tool": "smartctl",
        "notes": [],
        **changes,
    }


AMPLIFICATION = {
    "cases": [
        {
            "file_bytes": MIB,
            "block_bytes": 512,
            "transactions": None,
            "wal_bytes": None,
            "pmxcfs_write_bytes": None,
            "device_bytes": None,
            "noise_bytes": None,
            "factor": None,
            "skipped": "it would write 2.6 GiB, the budget is 64 MiB",
        },
        *(
            {
                "file_bytes": MIB,
                "block_bytes": block,
                "transactions": transactions,
                "wal_bytes": device,
                "pmxcfs_write_bytes": device,
                "device_bytes": device,
                "noise_bytes": 53_248,
                "factor": factor,
                "skipped": None,
            }
            for block, transactions, device, factor in (
                (4096, 257, 351_576_064, 335.3),
                (131072, 9, 10_072_064, 9.6),
                (MIB, 9, 10_072_064, 9.6),
            )
        ),
    ],
    "device_write_budget_bytes": 64 * MIB,
    "members": ["pve1", "pve2", "pve3"],
    "path": "/var/lib/pve-cluster",
    "notes": [],
}
GATE = {
    "verdict": "pass",
    "reason": "ok",
    "message": "fine",
    "fsyncs_per_second": 812.4,
    "p99_ms": 3.04,
    "time": NOW,
}
LINKS = {"verdict": "pass", "reason": "ok", "message": "fine", "time": NOW}


def days(now: float = 92_000.0, before: float = 4.2e6) -> dict[str, Any]:
    """What an earlier report knew of a long time: three days at so many bytes a minute."""

    def figures(rate: float, table: dict[str, Any]) -> dict[str, Any]:
        return {"from": EARLIER, "to": NOW, "seconds": 3 * 86400.0, "device_bytes": rate * 3 * 1440, "league": table}

    return {
        "day": figures(now, league(3 * 1440, 0.2, 0.0)),
        "day_before": figures(before, league(3 * 1440)),
    }


def entry(name: str = "pve1", **more: Any) -> dict[str, Any]:
    """The entry of a member that is well, with everything measured."""
    counters = {
        "time": NOW,
        "machine": name,
        "database": {"in_memory": True},
        "device": {"bytes_written": 1, "disk": "nvme0n1"},
    }
    known: dict[str, Any] = {
        "now": NOW,
        "in_run": True,
        "node": facts(name),
        "gate": GATE,
        "links": LINKS,
        "measured": {
            "counters": counters,
            "window": window(6, 92_000.0, True, **AFTER),
            "since": None,
        },
        "baseline": {"machine": name, "window": window(117, 4.2e6, False, EARLIER, **BEFORE)},
        "wear": {"disks": [drive()], "notes": []},
        "last": {"machine": name, "writes": days()},
    }
    return report_table.entry(**{**known, **more})


def gone(name: str = "pve4") -> dict[str, Any]:
    """The entry of a node that was measured three days ago and did not answer today."""
    baseline = {"machine": name, "window": window(117, 4.2e6, False, EARLIER, **BEFORE)}
    last = entry(name, baseline=baseline)
    last["counters"] = {**last["counters"], "time": EARLIER}
    last["disks_time"] = EARLIER
    for figures in ("after", "observed"):
        last["writes"][figures] = {**last["writes"][figures], "to": EARLIER}
    return report_table.entry(now=NOW, in_run=False, last=last, baseline=baseline)


def three() -> dict[str, Any]:
    """Three members; the drive of the second is worn, that of the third tells nothing."""
    worn = drive(
        "sda",
        model="CT240BX500SSD1",
        kind="sata",
        percentage_used=91,
        media_errors=3,
        written_bytes=74_000_000_000_000,
        rated_tbw_bytes=80_000_000_000_000,
        nand_bytes=212_000_000_000_000,
        drive_amplification=2.9,
    )
    silent = drive(
        "sdb",
        model="Generic USB disk",
        kind="unknown",
        notes=["smartctl: the device does not support SMART"],
        **dict.fromkeys(
            (
                *("written_bytes", "percentage_used", "spare_percent", "media_errors", "unsafe_shutdowns"),
                *("power_on_hours", "rated_tbw_bytes", "rated_from"),
            )
        ),
    )

    def behind(name: str, disk: str) -> dict[str, Any]:
        counters = {
            "time": NOW,
            "machine": name,
            "database": {"in_memory": True},
            "device": {"bytes_written": 1, "disk": disk},
        }
        return {"counters": counters, "window": window(6, 260_000.0, True, **AFTER), "since": None}

    return report_table.build(
        {
            "pve1": entry("pve1", amplification=AMPLIFICATION),
            "pve2": entry(
                "pve2",
                measured=behind("pve2", "sda"),
                wear={"disks": [worn], "notes": []},
                last={"machine": "pve2", "writes": days(260_000.0)},
            ),
            "pve3": entry("pve3", wear={"disks": [silent], "notes": []}),
        },
        NOW,
    )


def four() -> dict[str, Any]:
    """The three, and one that did not answer."""
    report = three()
    report["nodes"]["pve4"] = gone()
    return report


def fifty() -> dict[str, Any]:
    """Fifty members of one cluster; every tenth is not protected, the last did not answer."""
    nodes = {}
    for number in range(1, 51):
        name = f"node{number:02}"
        changes: dict[str, Any] = {}
        if number % 10 == 0:
            changes = {"ram_state": {"state": "absent"}, "ha__disabled": False, "ha__enabled": True}
        nodes[name] = entry(name, node=facts(name, **changes))
    nodes["node50"] = gone("node50")
    return report_table.build(nodes, NOW)


def nothing() -> dict[str, Any]:
    """One node of which nothing is known."""
    return report_table.build({"silent": report_table.entry(now=NOW, in_run=True)}, NOW)
