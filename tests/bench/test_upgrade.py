# SPDX-License-Identifier: Apache-2.0
"""The judge of upgrades: it accepts a node that was upgraded, goes on working and is reverted, and tells what is not so."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import upgrade as bench

NODE: dict[str, Any] = {
    "boot_id": "1",
    "program": "/usr/local/sbin/pve-state 0123456789ab",
    "watch_unit": "aaaa",
    "daemon": {"MainPID": "937", "ActiveState": "active", "ActiveEnterTimestampMonotonic": "5"},
    "watcher": {"MainPID": "940", "ActiveState": "active", "ActiveEnterTimestampMonotonic": "6"},
    "state_on": "tmpfs",
    "generations": ["20261130T112603Z-v1823-first-save"],
    "rest_sha256": "cc",
}


def changed(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(NODE) | values


UPGRADED = changed(program="/usr/local/lib/pveguard/f635/pve-state 9876", watcher={"MainPID": "2000", "ActiveState": "active"})


def test_an_upgrade_replaces_program_and_watcher_and_leaves_the_daemon() -> None:
    assert bench.upgraded(NODE, UPGRADED) == []
    assert [line.split(" ")[0] for line in bench.upgraded(NODE, NODE)] == ["its", "the"]
    restarted = UPGRADED | {"daemon": NODE["daemon"] | {"MainPID": "938"}}
    (said,) = bench.upgraded(NODE, restarted)
    assert said.startswith("the daemon was touched") and "938" in said


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"state_on": "disk"}, "on disk, not in RAM"),
        ({"watcher": {"ActiveState": "failed"}}, "watcher is failed"),
        ({"daemon": {"ActiveState": "inactive"}}, "daemon is inactive"),
        ({"generations": ["another"]}, "generations of the former release are gone: 20261130T112603Z"),
        ({"rest_sha256": "dd"}, "configuration is not what it was"),
    ],
)
def test_what_a_protected_node_lacks(values: dict[str, Any], named: str) -> None:
    former = NODE["generations"], NODE["rest_sha256"]
    assert bench.served(changed(generations=[*NODE["generations"], "newer"]), *former) == []
    (said,) = bench.served(changed(**values), *former)
    assert named in said


def test_a_revert_leaves_generations_and_nothing_else() -> None:
    # As check_mode prints them: mode, owner, group, size and path of a file, then its hash and path; type first for others.
    before = ["d 755 root root  /var/lib", "644 root root 256 /etc/corosync/authkey ", "aaaa  /etc/corosync/authkey"]
    store = [
        "d 700 root root  /var/lib/pveguard",
        "d 700 root root  /var/lib/pveguard/state",
        "d 700 root root  /var/lib/pveguard/state/generations",
        "600 root root 9 /var/lib/pveguard/state/generations/a.db ",
        "bbbb  /var/lib/pveguard/state/generations/a.db",
        "600 root root 9 /var/lib/pveguard/backup/config.sql ",
        "600 root www-data 9 /etc/pve/nodes/pve1/changes/a.cfg ",
        "400 root root 256 /etc/corosync/authkey ",
    ]
    after = [before[0], before[2]]
    assert bench.unlike_before(before, [*after, *store]) == []
    left = [
        "600 root root 9 /var/lib/pveguard/state/config.db ",
        "bbbb  /var/lib/pveguard/state/config.db",
        "d 700 root root  /var/lib/pveguard/state/switch",
        "d 755 root root  /etc/pveguard",
        "d 755 root root  /usr/local/lib/pveguard",
        "pveguard-state.service enabled enabled",
    ]
    assert bench.unlike_before(before, [*after, *store, *left]) == [f"+ {line}" for line in sorted(left)]
    assert bench.unlike_before(before, before[:2]) == [f"- {before[2]}"]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_way_back_is_run_as_it_is_shown(as_json: bool) -> None:
    said = [
        "pve1: what was there is generation 20261130T1-before. The way back:",
        "  ansible-playbook -i '/a b/lab' playbooks/restore.yml --limit pve1 -e ram_state_restore_generation=20261130T1-before",
        "  pve-state restore --generation 20261130T1-before --take-down    # on pve1, by hand",
    ]
    text = f'    "msg": {json.dumps(chr(10).join(said))}\n' if as_json else "msg: |-\n    " + "\n    ".join(said)
    assert bench.way_back(f"TASK [x] ***\nansible-playbook other\n{text}\nPLAY RECAP ***\n") == [
        *("-i", "/a b/lab", "playbooks/restore.yml", "--limit", "pve1"),
        *("-e", "ram_state_restore_generation=20261130T1-before"),
    ]
    with pytest.raises(ValueError, match="no way back"):
        bench.way_back("ansible-playbook site.yml")


def test_a_run_is_judged_by_its_code_and_by_what_it_changed() -> None:
    changing = "TASK [State in RAM] ***\nchanged: [pve2]\n"
    assert bench.Run(0, changing, 1).problems("it", changes=True) == []
    assert bench.Run(0, "ok: [pve2]\n", 1).problems("it", changes=False) == []
    assert bench.Run(0, changing, 1).problems("it", changes=False) == ["it changed [('pve2', 'State in RAM')]"]
    assert bench.Run(0, "ok: [pve2]\n", 1).problems("it", changes=True) == ["it changed nothing"]
    assert bench.Run(2, changing, 1).problems("it")[0].startswith("it ended with 2: TASK")


def test_the_look_is_json_on_a_machine_that_pveguard_never_saw() -> None:
    done = subprocess.run(["/bin/sh", "-c", bench.look_command()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(NODE)


def test_wrong_stages_are_named() -> None:
    done = subprocess.run([sys.executable, Path(bench.__file__), "--stages", "former,nap"], capture_output=True, text=True)
    assert done.returncode == 2 and "nap" in done.stderr


def test_the_first_change_is_seen_also_between_two_looks(tmp_path: Path) -> None:
    watched = tmp_path / "sbin"
    watched.mkdir()
    script = bench.BEGUN.replace("/run/", f"{tmp_path}/").replace("/usr/local/sbin", str(watched))
    begun = [sys.executable, "-c", script, "0"]
    assert subprocess.run(begun).returncode == 1
    assert subprocess.run(begun).returncode == 1
    (watched / "pve-state").symlink_to("elsewhere")
    assert subprocess.run(begun).returncode == 0
