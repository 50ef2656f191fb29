# SPDX-License-Identifier: Apache-2.0
"""Metrics for a Prometheus exporter's directory of text files."""

from __future__ import annotations

from .system import epoch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# (name after pveguard_state_, type, help, key of the status, what to make of its value)
METRICS = (
    (
        "enabled",
        "gauge",
        "Whether this node is set up to keep its state in RAM.",
        "state",
        lambda v: v != "disabled",
    ),
    (
        "healthy",
        "gauge",
        "Whether everything works as set up; 0 calls for 'pve-state status'.",
        "state",
        lambda v: v != "failed",
    ),
    ("mounted", "gauge", "Whether the RAM file system is mounted on /var/lib/pve-cluster.", "mounted", None),
    (
        "ready",
        "gauge",
        "Whether saves work and the version is beyond what was lost at the last unclean stop.",
        "ready",
        None,
    ),
    ("watcher_running", "gauge", "Whether the process that saves changes runs.", "watcher_running", None),
    ("watcher_start_timestamp_seconds", "gauge", "When the watcher was started.", "watcher_started", epoch),
    (
        "pmxcfs_answers",
        "gauge",
        "Whether the daemon has answered within the last 30 seconds.",
        "answers",
        None,
    ),
    (
        "quorate",
        "gauge",
        "Whether the daemon has quorum; always 1 where there is no cluster.",
        "quorate",
        None,
    ),
    ("tmpfs_size_bytes", "gauge", "Limit of the RAM file system.", "tmpfs_bytes", None),
    ("tmpfs_used_bytes", "gauge", "What is used of it.", "used_bytes", None),
    (
        "tmpfs_fill_ratio",
        "gauge",
        "Used part of the RAM file system, 0 to 1; at 1 the daemon stops for good.",
        "fill_ratio",
        None,
    ),
    ("root_version", "gauge", "Version of the live database, as last looked at.", "root_version", None),
    ("saved_root_version", "gauge", "Version of the replica on disk.", "saved_root_version", None),
    (
        "lag_versions",
        "gauge",
        "Versions by which the replica lags; heartbeats and locks alone may make it lag.",
        "lag_versions",
        None,
    ),
    (
        "lag_seconds",
        "gauge",
        "Age of the oldest real change that is not saved, 0 when all are.",
        "lag_seconds",
        None,
    ),
    (
        "unsaved_files",
        "gauge",
        "Files that a power cut would lose, as last looked at.",
        "unsaved_files",
        None,
    ),
    (
        "last_change_timestamp_seconds",
        "gauge",
        "When configuration was last seen to change.",
        "last_real_change",
        epoch,
    ),
    ("last_save_timestamp_seconds", "gauge", "When the replica was last written.", "last_save", epoch),
    ("saves_total", "counter", "Saves since the watcher was started.", "saves", None),
    (
        "save_failures_total",
        "counter",
        "Saves that failed since the watcher was started.",
        "save_failures",
        None,
    ),
    ("save_failing", "gauge", "Whether the last save failed.", "watch_error", bool),
    (
        "rescue_pending",
        "gauge",
        "Whether the live state is kept beside the replica only, which a start would not take by itself.",
        "rescue",
        bool,
    ),
    (
        "generations",
        "gauge",
        "Full copies in the store; each was verified when it was made.",
        "generations",
        None,
    ),
    (
        "generations_damaged",
        "gauge",
        "Full copies that failed the last verification in this boot.",
        "generations_damaged",
        None,
    ),
    (
        "newest_generation_timestamp_seconds",
        "gauge",
        "When the newest full copy was made.",
        "newest_generation_time",
        epoch,
    ),
    (
        "lineage",
        "gauge",
        "Number of the history that is saved; one more each time it could not be a continuation.",
        "lineage",
        None,
    ),
    (
        "lineage_start_timestamp_seconds",
        "gauge",
        "When that history began, where it is not the first.",
        "lineage_since",
        epoch,
    ),
    (
        "ha_resources_while_masked",
        "gauge",
        "HA resources that exist while HA is masked on this node.",
        "ha_resources_while_masked",
        None,
    ),
)


def metrics_text(status: dict[str, Any]) -> str:
    """The metrics in Prometheus' text format; what is not known is left out."""
    lines = []
    used, limit = status.get("used_bytes"), status.get("tmpfs_bytes")
    status = {**status, "fill_ratio": round(used / limit, 4) if used is not None and limit else None}
    for name, kind, text, key, make in METRICS:
        value = status.get(key)
        if make is not None and (value is not None or make is bool):
            value = make(value)
        if value is None:
            continue
        number = int(value) if isinstance(value, bool) else round(value, 4)
        name = f"pveguard_state_{name}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {number}"]
    return "\n".join(lines) + "\n"
