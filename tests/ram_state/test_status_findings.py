# SPDX-License-Identifier: Apache-2.0
"""What is judged of the state in RAM, by the dict of pve-state status; test_status.py has the node around it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding
from ansible.module_utils.pveguard.state import status_findings as judge
from ansible.module_utils.pveguard.state.status_findings import PVE_CLUSTER, STATE_UNIT, WATCH_UNIT

from tests.findings import finding

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = dict.fromkeys((PVE_CLUSTER, STATE_UNIT, WATCH_UNIT), "active")
WELL: dict[str, Any] = {
    "state": "enabled", "mounted": True, "daemon_running": True, "restore": None, "rescue": None, "watch_error": None,
    "ready": True, "lag_seconds": 0.0, "generations_damaged": 0, "ha_resources": [], "ha_masked": [],
}  # fmt: skip
CHOICES = {"the newer": "pve-state restore --rescue", "the older": "pve-state restore --replica", "x": "y"}
RESCUE = {"kind": "emptied", "why": ["it was emptied"], "choices": CHOICES}
UNDECIDED = {"rescue": RESCUE, "daemon_running": False}


def looked(status: dict[str, Any], **seen: Any) -> tuple[judge.Health, list[Finding]]:
    status = {**WELL, **status}
    found = judge.health(status, **{"set_up": True, "active": ACTIVE, **seen})
    return found, judge.findings(status, found, judge.noted(status))


def test_all_well() -> None:
    found, told = looked({})
    assert (found.state, found.reason, found.fix) == ("enabled", "", "")
    assert finding(told, "state-in-ram").severity == GOOD and len(told) == 1


def test_a_state_on_disk_is_no_finding_of_the_node() -> None:
    found, told = looked({"mounted": False, "ready": False, "lag_seconds": 90, "ha_resources": ["vm:1"]}, set_up=False)
    assert found.state == "disabled" and told == []


START, START_WATCHER = f"systemctl start {PVE_CLUSTER}", f"systemctl start {WATCH_UNIT}"
JOURNAL = f"journalctl -u {WATCH_UNIT}"
FAILED_RESTORE = {"restore": {"error": "the replica is missing"}}
RESYNC = {"restore_fix": "pve-state restore --resync"}
NO_STATE_UNIT, NO_WATCHER = {"active": {**ACTIVE, STATE_UNIT: ""}}, {"active": {**ACTIVE, WATCH_UNIT: "failed"}}

# In this order: the first that is true is the reason. (id, status, what else is seen, reason, fix)
BROKEN: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("state-rescue-undecided", UNDECIDED, {"rescue_text": "two"}, "two", "pve-state restore --rescue or pve-state"),
    ("state-restore-failed", FAILED_RESTORE, RESYNC, "the replica is missing", "pve-state restore --resync"),
    ("state-not-mounted", {"mounted": False}, {}, "/var/lib/pve-cluster is not the RAM file system", START),
    ("state-unit-down", {}, NO_STATE_UNIT, "pveguard-state.service is missing", START),
    ("state-daemon-down", {"daemon_running": False}, {}, "the daemon does not run", START),
    ("state-watcher-down", {}, NO_WATCHER, "is failed: changes are not saved", START_WATCHER),
    ("state-rescue-kept", {"rescue": RESCUE}, {}, "beside the replica only: it was emptied", "mend what is named there"),
    ("state-save-fails", {"watch_error": "not saved: no space"}, {}, "not saved: no space", JOURNAL),
    ("state-switch-left", {}, {"switch": {"kind": "enable"}}, "a switch-over (enable)", "pve-state rollback"),
]


@pytest.mark.parametrize(("id", "status", "seen", "reason", "fix"), BROKEN, ids=[each[0] for each in BROKEN])
def test_what_does_not_work(id: str, status: dict[str, Any], seen: dict[str, Any], reason: str, fix: str) -> None:
    found, told = looked(status, **seen)
    assert found.state == "failed" and reason in found.reason and fix in found.fix
    each = only(told, id)
    assert each.severity == PROBLEM and each.text == f"its RAM state is failed: {found.reason}" and found.fix in each.helps


def only(told: list[Finding], id: str) -> Finding:
    (each,) = [each for each in told if each.id == id]
    assert each is told[0]
    return each


def test_the_first_reason_counts() -> None:
    status: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    for id, more, also, _, _ in reversed(BROKEN):
        if id not in ("state-rescue-kept", "state-daemon-down", "state-rescue-undecided"):
            status, seen = {**status, **more}, {**seen, **also}
            assert looked(status, **seen)[1][0].id == id


def test_each_kind_of_failure_by_its_id() -> None:
    def told(number: int) -> list[Finding]:
        _, status, seen, _, _ = BROKEN[number]
        return looked(status, **seen)[1]

    assert finding(told(0), "state-rescue-undecided").code.startswith("pve-state restore")
    assert finding(told(1), "state-restore-failed").code == "pve-state restore --resync"
    assert finding(told(2), "state-not-mounted").fix == "Start the daemon, which mounts it."
    assert finding(told(3), "state-unit-down")
    assert finding(told(4), "state-daemon-down")
    assert finding(told(5), "state-watcher-down")
    assert "kept beside" in finding(told(6), "state-rescue-kept").text
    assert finding(told(7), "state-save-fails")
    assert finding(told(8), "state-switch-left")


def test_what_was_never_set_up_or_half() -> None:
    found, told = looked({}, set_up=False)
    assert found.fix == "pve-state disable" == finding(told, "state-not-set-up").code
    found, told = looked({"mounted": False}, set_up=False, placeholder=True)
    assert found.state == "failed" and "placeholder" in found.reason and finding(told, "state-placeholder")


@pytest.mark.parametrize(("unit", "status"), [(STATE_UNIT, {}), (PVE_CLUSTER, {"daemon_running": False}), (WATCH_UNIT, {})])
def test_what_is_being_started_is_no_failure(unit: str, status: dict[str, Any]) -> None:
    found, told = looked(status, starting=[unit], active={**ACTIVE, unit: "activating"})
    assert found.state == "starting" and unit in found.reason and found.fix == ""
    assert finding(told, "state-starting").severity == WARNING


def test_a_schema_that_is_not_known_is_kept_and_stops_nothing() -> None:
    found, told = looked({"rescue": {**RESCUE, "kind": "schema"}})
    assert "update pveguard" in found.fix == finding(told, "state-rescue-kept").helps
    # Its daemon does not run: that is what is wrong, and nobody has to choose.
    assert looked({"rescue": {**RESCUE, "kind": "schema"}, "daemon_running": False})[1][0].id == "state-daemon-down"


def test_figures() -> None:
    _, told = looked({"ready": False, "lag_seconds": 90.0, "generations_damaged": 2, "restore": {"mended": ["a", "b"]}})
    assert "not ready" in finding(told, "state-not-ready").text
    assert finding(told, "state-save-late").text == "a change is 1 min 30 s old and not saved"
    assert finding(told, "state-generations-damaged").text.startswith("2 saved generations are damaged")
    assert "a, b" in finding(told, "state-disk-changed").text
    assert [each.severity for each in told] == [WARNING] * 4 + [GOOD]


def test_ha_on_the_node() -> None:
    _, told = looked({"ha_resources": ["vm:100"], "ha_masked": ["pve-ha-lrm"]})
    assert finding(told, "ha-masked-with-resources").severity == PROBLEM
    assert "pve-ha-lrm is masked" in told[0].text
    _, told = looked({"ha_resources": ["vm:100"]})
    assert finding(told, "ha-resources-with-ram-state").severity == WARNING


def test_what_the_watcher_says() -> None:
    assert judge.nearly_full("/x", 79.9) is None
    assert "/x is 93 % full" in finding([judge.nearly_full("/x", 93)], "state-ram-nearly-full").text
    assert "--unsound" in finding([judge.strange("a bad name")], "state-strange-content").text
    assert "disk I/O" in finding([judge.unreadable("disk I/O error")], "state-live-unreadable").text


def test_a_node_is_believed_and_an_older_one_is_judged() -> None:
    said = [each.as_dict() for each in looked({"watch_error": "no space"})[1]]
    assert finding(judge.of_status({"state": "failed", "findings": said}), "state-save-fails").text.endswith("no space")
    old = finding(judge.of_status({"state": "failed", "reason": "no space", "fix": "pve-state verify"}), "state-failed")
    assert old.text == "its RAM state is failed: no space" and "pve-state verify" in old.helps
    assert finding(judge.of_status({"state": "broken", "error": "no JSON"}), "state-failed").text.endswith("broken: no JSON")
    assert finding(judge.of_status({"state": "enabled", "ready": False}), "state-not-ready")
    assert finding(judge.of_status({"state": "unknown"}), "state-unknown").severity == UNKNOWN
    assert finding(judge.of_status({"state": "starting", "reason": "x"}), "state-starting").sentence.count("Look again") == 1


def test_on_disk() -> None:
    assert finding([judge.on_disk(True, False, [])], "state-on-disk").severity == WARNING
    assert judge.on_disk(False, False, []) is judge.on_disk(True, True, []) is judge.on_disk(True, False, ["vm:1"]) is None


def test_judging_costs_a_program_on_a_node_no_start_up() -> None:
    """Either of these two modules takes as long to import as a third of pve-state."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pveguard.state.status_findings, pveguard.pmxcfs.pmxcfs_findings; "
        "print([name for name in ('dataclasses', 'typing') if name in sys.modules])"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "module_utils")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
