# SPDX-License-Identifier: Apache-2.0
"""The cluster works, nothing is left that writes for nothing, and what is in RAM has a good copy on disk."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

HA_UNITS = ("pve-ha-lrm.service", "pve-ha-crm.service", "watchdog-mux.service")


@pytest.fixture(scope="module")
def look(everywhere: Any) -> dict[str, Any]:
    found = everywhere("look.py")
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def report(ephemeral: Path) -> dict[str, Any]:
    return dict(json.loads((ephemeral / "reports" / "latest.json").read_text()))


def test_every_node_is_in_one_quorate_cluster(look: dict[str, Any]) -> None:
    seen = {name: (node["quorate"], node["members"]) for name, node in look.items()}
    assert seen == dict.fromkeys(look, (True, len(look)))


def test_both_copies_of_corosync_conf_are_the_same_bytes_everywhere(look: dict[str, Any]) -> None:
    copies = {digest for node in look.values() for digest in node["corosync_conf"].values()}
    assert len(copies) == 1
    assert None not in copies


def test_configuration_is_the_same_everywhere(look: dict[str, Any]) -> None:
    assert len({node["rows_sha256"] for node in look.values()}) == 1


def test_configuration_file_system_is_mounted(look: dict[str, Any]) -> None:
    for name, node in look.items():
        assert node["mounts"]["/etc/pve"]["type"].startswith("fuse"), name


def test_a_file_written_on_one_node_is_seen_on_the_others(nodes: dict[str, Host]) -> None:
    names = sorted(nodes)
    text = f"from {names[0]} at {time.time_ns()}"
    path = "/etc/pve/molecule-shared"
    assert nodes[names[0]].run(f"echo {shlex.quote(text)} > {path}").rc == 0
    for name in names[1:]:
        wait = f"for i in $(seq 300); do grep -qxF {shlex.quote(text)} {path} && exit; sleep 0.2; done; exit 1"
        assert nodes[name].run(wait).rc == 0, f"{name} does not see what {names[0]} wrote"
    assert nodes[names[-1]].run(f"rm {path}").rc == 0


def test_daemons_run(look: dict[str, Any]) -> None:
    for name, node in look.items():
        for unit in ("corosync.service", "pve-cluster.service", "pveguard-state.service"):
            assert node["units"][unit]["ActiveState"] == "active", f"{name}: {unit}"


def test_ha_is_masked_and_inactive(look: dict[str, Any]) -> None:
    for name, node in look.items():
        for unit in HA_UNITS:
            state = node["units"][unit]
            assert state["LoadState"] == "masked", f"{name}: {unit}"
            assert state["ActiveState"] == "inactive", f"{name}: {unit}"


def test_database_is_in_ram(look: dict[str, Any]) -> None:
    for name, node in look.items():
        mount = node["mounts"]["/var/lib/pve-cluster"]
        assert mount is not None and mount["type"] == "tmpfs", name
        assert {"nosuid", "nodev", "noexec"} <= set(mount["options"].split(",")), name


def test_watcher_runs(look: dict[str, Any]) -> None:
    for name, node in look.items():
        assert node["units"]["pveguard-state-watch.service"]["ActiveState"] == "active", name


def test_replica_on_disk_is_verified(look: dict[str, Any]) -> None:
    for name, node in look.items():
        code, output = node["verify"]
        assert code == 0, f"{name}: {output}"


def test_status_can_be_read(look: dict[str, Any]) -> None:
    for name, node in look.items():
        code, output = node["status"]
        assert code == 0, f"{name}: {output}"
        assert isinstance(json.loads(output), dict), name


def test_check_mode_had_said_what_the_run_changed(ephemeral: Path) -> None:
    folder = ephemeral / "changed"
    predicted = json.loads((folder / "converge-check-1.json").read_text())
    done = json.loads((folder / "converge-run-1.json").read_text())
    assert predicted == done


def test_report_names_every_node(report: dict[str, Any], look: dict[str, Any]) -> None:
    assert set(report["nodes"]) == set(look)


def test_report_says_who_wrote_before_and_that_it_is_quiet_now(report: dict[str, Any]) -> None:
    """Three idle LRMs wrote 36 transactions a minute each, on every node; a heartbeat at each end may be cut off."""
    names = set(report["nodes"])
    for name, entry in report["nodes"].items():
        before, now = entry["writes"]["before"], entry["writes"]["observed"]
        beats = [file["transactions_at_least"] for file in before["files"] if file["path"].endswith("/lrm_status")]
        assert abs(sum(beats) - 36 * len(names) * before["seconds"] / 60) <= 3 * len(names), name
        assert before["classes"][0]["class"] == "ha", f"{name}: {before['classes']}"
        writers = {writer["node"] for writer in before["writers"]}
        assert writers == names, f"{name}: {writers}"
        assert {f"nodes/{node}/lrm_status" for node in names} <= {file["path"] for file in before["files"]}, name
        assert now["database_in_memory"] and now["pmxcfs_write_bytes"] == 0, name
        assert not [file for file in now["files"] if file["path"].endswith("/lrm_status")], name
        # What is left: each node's scheduler makes and removes two locks, once in a window of a minute.
        assert now["seconds"] >= 60 and now["transactions"] <= 2 * 4 * len(names), name


def test_report_page_is_about_these_nodes(ephemeral: Path, report: dict[str, Any]) -> None:
    page = (ephemeral / "reports" / "index.html").read_text()
    # One file: it asks nobody for anything.
    assert "default-src 'none'" in page and not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.?https?:", page)
    for name in report["nodes"]:
        assert name in page, name
    metrics = (ephemeral / "reports" / "pveguard.prom").read_text()
    assert {f'node="{name}"' in metrics for name in report["nodes"]} == {True}
