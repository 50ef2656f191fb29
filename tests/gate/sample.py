# SPDX-License-Identifier: Apache-2.0
"""What the gates of three nodes saw: a sound one, one on a throttled disk, one behind a slow and lossy link."""

from __future__ import annotations

import math
import random
from typing import Any

NOW = "2026-11-21T10:20:00Z"
BEFORE = "2026-11-14T09:02:11Z"
KERNEL = "6.17.2-1-pve"
DISK_LIMITS = {"min_fsyncs_per_second": 200.0, "warn_p99_ms": 10.0}
LINK_LIMITS = {"rtt_warn_ms": 5.0, "rtt_fail_ms": 10.0, "loss_fail_percent": 1.0, "mtu_min": 1280.0}


def method(
    rate: float, median_ms: float, spread: float, tail_ms: float, seconds: float = 2.0
) -> dict[str, Any]:
    """Figures of a method as fsync_bench returns them: log-normal latencies with a few in the tail."""
    chance = random.Random(f"{rate} {median_ms}")
    count = max(20, round(rate * seconds))
    times = sorted(
        chance.lognormvariate(math.log(median_ms), spread)
        if chance.random() > 0.012
        else chance.uniform(median_ms, tail_ms)
        for _ in range(count)
    )
    buckets: dict[int, int] = {}
    for value in times:
        at = max(0, math.ceil(2 * math.log2(value * 1000)))
        buckets[at] = buckets.get(at, 0) + 1

    def rank(share: float) -> float:
        return round(times[min(count, math.ceil(count * share)) - 1], 3)

    rounds = [round(rate * factor, 2) for factor in (0.97, 1.04, 1.01, 0.95, 1.03, 1.0)]
    return {
        "operations_per_second": rate,
        "operations_per_second_interval": [round(rate * 0.962, 2), round(rate * 1.038, 2)],
        "rounds_per_second": rounds,
        "p50_ms": rank(0.5),
        "p90_ms": rank(0.9),
        "p99_ms": rank(0.99),
        "p99_9_ms": rank(0.999),
        "max_ms": rank(1),
        "p99_ms_interval": None,
        "samples": count,
        "duration_seconds": seconds,
        "histogram": [[float(f"{0.001 * 2 ** (at / 2):.3g}"), n] for at, n in sorted(buckets.items())],
    }


def disk(methods: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A result of fsync_bench."""
    top = methods["pveperf"]
    result: dict[str, Any] = {
        "verdict": "pass",
        "reason": "ok",
        "message": "fine",
        "method": "pveperf",
        "methods": methods,
        "fsyncs_per_second": top["operations_per_second"],
        "fsyncs_per_second_interval": top["operations_per_second_interval"],
        **{
            key: top[key]
            for key in ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms", "samples", "duration_seconds")
        },
        "suspect": [],
        "class": "nvme",
        "class_rule": "nvme0n1 is attached by NVMe",
        "rotational": False,
        "transport": "nvme",
        "write_cache": "write back",
        "power_loss_protection": None,
        "drive_identity": "eui.0025385b71b0a1c2",
        "block_device": {
            "disks": [
                {
                    "name": "nvme0n1",
                    "vendor": None,
                    "model": "Samsung SSD 980 PRO 1TB",
                    "serial": "S5GXNX0T",
                    "size_bytes": 1000204886016,
                    "transport": "nvme",
                    "rpm": None,
                }
            ]
        },
        "path": "/var/lib/pve-cluster",
        "measured_path": "/var/lib/pve-cluster",
        "device": "dm-1",
        "disk": "nvme0n1",
        "filesystem": "ext4",
        "mount_options": "rw,relatime,errors=remount-ro",
        "in_memory": False,
        "free_bytes": 71_200_000_000,
        "kernel": KERNEL,
        "time": "2026-11-21T10:19:12Z",
        "cached": False,
        "cache": "never measured",
        "age_days": 0.0,
        "drift": None,
        "changed": False,
    }
    return {**result, **changes}


def link(peer: str, number: int, rtt: tuple[float, float, float], **changes: Any) -> dict[str, Any]:
    """One entry of link_bench: ``rtt`` is p50, p99 and max in ms."""
    figures: dict[str, Any] = {
        "sent": 600,
        "samples": 600,
        "lost": 0,
        "loss_percent": 0.0,
        "rtt_p50_ms": rtt[0],
        "rtt_p99_ms": rtt[1],
        "rtt_max_ms": rtt[2],
        "jitter_ms": round(rtt[1] / 9, 3),
        "reordered_percent": 0.0,
    }
    load = {
        **figures,
        **{key: round(figures[key] * 1.6, 3) for key in ("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms")},
    }
    entry: dict[str, Any] = {
        "peer": peer,
        "link": number,
        "source": "198.51.100.11",
        "target": "198.51.100.12",
        "interface": "eno1",
        "interface_mtu": 1500,
        **figures,
        "path_mtu": 1500,
        "load": load,
        "verdict": "pass",
        "reason": "ok",
        "reasons": [],
        "message": f"link {number} to {peer}: fine",
    }
    return {**entry, **changes}


def links(entries: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A ``link_gate_result``."""
    result: dict[str, Any] = {
        "verdict": "pass",
        "reason": "ok",
        "message": "fine",
        "rtt_p99_ms": max((e["rtt_p99_ms"] for e in entries if e["rtt_p99_ms"] is not None), default=None),
        "samples": 600 * len(entries),
        "duration_seconds": 10.0,
        "time": "2026-11-21T10:19:40Z",
        "kernel": KERNEL,
        "under_load": True,
        "links": entries,
    }
    return {**result, **changes}


def not_measured(reason: str, message: str = "not measured") -> dict[str, Any]:
    return {
        "verdict": "not measured",
        "reason": reason,
        "message": message,
        "rtt_p99_ms": None,
        "samples": 0,
        "duration_seconds": 0.0,
        "time": None,
        "kernel": None,
        "under_load": False,
        "links": [],
    }


def sound_disk(**changes: Any) -> dict[str, Any]:
    methods = {
        "pveperf": method(2243.3, 0.36, 0.28, 6.0),
        "fdatasync": method(3998.8, 0.21, 0.3, 7.0),
        "commit": method(14511.0, 0.04, 0.35, 4.0),
    }
    return disk(methods, message="2,243 fsyncs per second, p99 2.4 ms, on /var/lib/pve-cluster", **changes)


def throttled_disk(**changes: Any) -> dict[str, Any]:
    methods = {
        "pveperf": method(14.1, 64.0, 0.25, 140.0),
        "fdatasync": method(19.6, 49.0, 0.16, 101.0),
        "commit": method(890.0, 0.05, 0.4, 210.0),
    }
    known: dict[str, Any] = {
        "verdict": "fail",
        "reason": "slow",
        "message": "14.1 fsyncs per second (95 % interval 13.6 to 14.6), p99 118 ms, on /var/lib (ext4 on vda2); wanted at "
        "least 200 (fsync_gate_min_fsyncs). A slow disk stalls the token of the whole cluster",
        "class": "unknown",
        "class_rule": "vda is a virtual disk (virtio): only the host knows its medium",
        "transport": "virtio",
        "drive_identity": "lab-pve2",
        "block_device": {
            "disks": [
                {
                    "name": "vda",
                    "model": None,
                    "serial": "lab-pve2",
                    "size_bytes": 8589934592,
                    "transport": "virtio",
                }
            ]
        },
        "measured_path": "/var/lib",
        "device": "vda2",
        "disk": "vda",
        "suspect": [
            {
                "rule": "virtual_cache",
                "evidence": "vda is virtual and says write back: the host may keep it in its cache",
            }
        ],
    }
    return disk(methods, **{**known, **changes})


def three() -> dict[str, dict[str, Any]]:
    """name -> what is known of the host after a run that refused two of three."""
    bad_rtt = (40.3, 43.9, 61.2)

    def bad(host: str, peer: str) -> dict[str, Any]:
        where = f"{host}: link 0 to {peer} (198.51.100.11 -> 198.51.100.13, eno1)"
        return link(
            peer,
            0,
            bad_rtt,
            verdict="fail",
            reason="loss",
            reasons=["loss", "rtt"],
            lost=13,
            samples=587,
            loss_percent=2.17,
            message=f"{where}: lost 13 of 600 packets, 2.17 %, wanted at most 1 % (link_gate_loss_fail_percent); "
            "RTT p99 43.9 ms, wanted at most 10 ms (link_gate_rtt_fail_ms)",
        )

    def blamed(host: str) -> dict[str, Any]:
        entry = bad(host, "pve3")
        return {
            **entry,
            "verdict": "warn",
            "reason": "peer_refused",
            "message": f"{entry['message']} (pve3 is refused for it)",
        }

    reports = {
        "pve1": {
            "in_run": True,
            "disk": sound_disk(),
            "links": links(
                [
                    link("pve2", 0, (0.21, 0.48, 1.3)),
                    link("pve2", 1, (0.11, 0.24, 0.6)),
                    blamed("pve1"),
                    link("pve3", 1, (0.12, 0.27, 0.9)),
                ],
                verdict="warn",
                reason="peer_refused",
                message=blamed("pve1")["message"],
            ),
            "plan": {"action": "bootstrap", "reason": ""},
        },
        "pve2": {
            "in_run": False,
            "disk": throttled_disk(),
            "links": links(
                [
                    link("pve1", 0, (0.2, 0.44, 1.1)),
                    link("pve1", 1, (0.11, 0.25, 0.5)),
                    blamed("pve2"),
                    link("pve3", 1, (0.13, 0.31, 0.7)),
                ],
                verdict="warn",
                reason="peer_refused",
                message=blamed("pve2")["message"],
            ),
            "plan": {"action": "join", "reason": ""},
        },
        "pve3": {
            "in_run": False,
            "disk": sound_disk(
                **{"class": "ssd-with-power-loss-protection"},
                class_rule="INTEL SSDSC2KB480G8 is known to have it",
                power_loss_protection=True,
                transport="sata",
                drive_identity="0x55cd2e41534d1a02",
                block_device={
                    "disks": [
                        {
                            "name": "sda",
                            "model": "INTEL SSDSC2KB480G8",
                            "size_bytes": 480103981056,
                            "transport": "sata",
                        }
                    ]
                },
                device="sda3",
                disk="sda",
                drift={
                    "since": BEFORE,
                    "fsyncs_per_second_before": 4980.0,
                    "fsyncs_per_second_change_percent": -55.0,
                    "p99_ms_before": 0.9,
                    "p99_ms_change_percent": 164.0,
                    "changed": ["kernel"],
                    "notable": True,
                    "message": f"since {BEFORE}: 4980 to 2243.3 a second, p99 0.9 to 2.38 ms, with another kernel",
                },
            ),
            "links": links(
                [
                    bad("pve3", "pve1"),
                    link("pve1", 1, (0.12, 0.26, 0.8)),
                    bad("pve3", "pve2"),
                    link("pve2", 1, (0.13, 0.3, 0.7)),
                ],
                verdict="fail",
                reason="loss",
                message="\n".join(bad("pve3", peer)["message"] for peer in ("pve1", "pve2")),
            ),
            "plan": {"action": "join", "reason": ""},
        },
    }
    return reports


TOKEN = {
    "lab": {
        "verdict": "pass",
        "nodes": 2,
        "rtt_p99_ms": 0.77,
        "fsync_p99_ms_sum": 3.1,
        "fsync_measured": 1,
        "round_ms": 7.7,
        "needed_ms": 32.5,
        "effective_ms": 3000.0,
        "advised_token_ms": 3000,
        "message": "a slow round of 2 nodes takes 7.7 ms, so the token timeout has to be at least 32.5 ms; it is 3,000 ms: safe",
    }
}
