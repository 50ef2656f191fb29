# SPDX-License-Identifier: Apache-2.0
"""The program that founds and joins, with the units and the mount faked: logins, and what must not be cut off."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.formats import corosync_edit

from tests.node_program import cluster_member

from .fakes import make_database, snapshot

CONF = corosync_edit.render_new("lab", [{"name": "pve2", "node_id": 2, "links": ["10.77.0.2"]}])
SHARED, OWN = "ssh-ed25519 AAAA shared", "ssh-ed25519 BBBB own"


class Host:
    """Stopping the daemon takes the files away; its start brings them back, or those of the cluster."""

    def __init__(self, root: Path, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.program = root, program
        self.mounted, self.quorate, self.starts = True, True, True
        self.units: list[tuple[str, ...]] = []
        self.cluster_keys: str | None = None
        self.seen_while_away: str | None = None
        self.node = program.Node(root)
        for directory in ("etc/pve/priv", "etc/corosync", "root/.ssh", "var/log/pve/tasks", "run"):
            (root / directory).mkdir(parents=True)
        self.keys = root / "etc/pve/priv/authorized_keys"
        self.keys.write_text(f"{SHARED}\n{OWN}\n")
        (root / "root/.ssh/authorized_keys").symlink_to(self.keys)
        self.local = root / "root/.ssh/authorized_keys2"
        make_database(self.node.database, {"nodes/pve2/qemu-server/100.conf": "memory: 512\n"})
        monkeypatch.setattr(program, "systemctl", self.systemctl)
        self.command = program.command
        monkeypatch.setattr(
            program, "command", lambda *argv, **_: program.Result(0)
        )
        monkeypatch.setattr(program, "active", lambda *units: dict.fromkeys(units, True))
        monkeypatch.setattr(program, "is_mounted", lambda _node: self.mounted)
        monkeypatch.setattr(program, "missing", lambda *_: [] if self.quorate else ["no quorum"])
        monkeypatch.setattr(program, "quorum", lambda: (True, [1, 2]))
        self.prove_writable = program.prove_writable
        self.sleep: Callable[[], object] = lambda: None
        monkeypatch.setattr(program, "prove_writable", lambda *_: None)
        # A clock of its own: a deadline passes by waiting for something, and not because the machine is busy.
        self.now = 0.0
        own = {"sleep": self._sleep, "monotonic": lambda: self.now}
        monkeypatch.setattr(program, "time", SimpleNamespace(**{**vars(time), **own}))
        monkeypatch.setattr(program.signal, "signal", lambda *_: None)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleep()

    def systemctl(self, *argv: str, must: bool = True) -> str:
        self.units.append(argv)
        if argv == ("stop", self.program.DAEMON) and self.mounted:
            os.rename(self.root / "etc/pve", self.root / "etc/pve.away")
            (self.root / "etc/pve").mkdir()
            self.mounted = False
            self.seen_while_away = self.local.read_text() if self.local.exists() else None
        if argv == ("start", self.program.DAEMON) and not self.mounted:
            if not self.starts:
                raise self.program.Failure("it does not start")
            (self.root / "etc/pve").rmdir()
            os.rename(self.root / "etc/pve.away", self.root / "etc/pve")
            self.mounted = True
            if self.cluster_keys is not None:
                self.keys.write_text(self.cluster_keys)
        return ""

    def perform(self, **more: Any) -> dict[str, Any]:
        request = {
            "state": "joined",
            "node_name": "pve2",
            "node_id": 2,
            "cluster_name": "lab",
            "conf": CONF,
            "authkey": "a2V5",
            "expected_ids": [2],
            "deadline_s": 60,
            "tree_sha256": None,
            **more,
        }
        result: dict[str, Any] = self.program.perform(self.node, request)
        return result


@pytest.fixture
def program() -> ModuleType:
    return cluster_member()


@pytest.fixture
def host(tmp_path: Path, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, program, monkeypatch)


@pytest.mark.parametrize("state", ["joined", "bootstrapped"])
def test_a_login_survives_the_time_without_the_file_system(host: Host, state: str) -> None:
    host.cluster_keys = f"{SHARED}\n"
    result = host.perform(state=state)
    assert result.get("error") is None, result
    assert host.seen_while_away == f"{SHARED}\n{OWN}\n"
    # What the cluster knows needs no second place.
    assert host.local.read_text() == f"{OWN}\n"
    assert host.local.stat().st_mode & 0o777 == 0o600
    assert len(result["warnings"]) == 1 and "1 ssh key(s) that the cluster" in result["warnings"][0]


def test_keys_that_were_there_before_stay(host: Host) -> None:
    host.local.write_text(f"{SHARED}\n")
    result = host.perform()
    assert result.get("error") is None and result["warnings"] == []
    assert host.seen_while_away == f"{SHARED}\n{OWN}\n"
    assert host.local.read_text() == f"{SHARED}\n"


def test_the_way_back_takes_the_added_keys_back(host: Host) -> None:
    host.quorate = False
    result = host.perform()
    assert result["restored"] is True and result["warnings"] == []
    assert host.seen_while_away is not None
    assert host.keys.read_text() == f"{SHARED}\n{OWN}\n"
    assert not host.local.exists()


def test_without_the_file_system_the_added_keys_stay(host: Host) -> None:
    host.starts = False
    result = host.perform()
    assert result["restored"] is False
    assert host.local.read_text() == f"{SHARED}\n{OWN}\n"
    assert "is not mounted" in result["warnings"][0]


def test_keys_that_are_no_link_are_left_alone(host: Host) -> None:
    link = host.root / "root/.ssh/authorized_keys"
    link.unlink()
    link.write_text(f"{OWN}\n")
    assert host.perform().get("error") is None
    assert host.seen_while_away is None and not host.local.exists()


def refused(host: Host, state: str) -> str:
    before = snapshot(host.root)
    result = host.perform(state=state)
    assert result["restored"] is True and result["generation"] is None
    assert snapshot(host.root) == before
    assert not [argv for argv in host.units if argv[0] == "stop"]
    return str(result["error"])


@pytest.mark.parametrize("state", ["joined", "bootstrapped"])
def test_a_running_task_is_not_cut_off(host: Host, state: str) -> None:
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    upid = f"UPID:pve2:{os.getpid():08X}:{start:08X}:66F00000:vzdump:100:root@pam:"
    active = host.root / "var/log/pve/tasks/active"
    active.write_text(f"{upid} 0\n")
    error = refused(host, state)
    assert f"1 Proxmox VE task(s) run on this node, the first is {upid}: wait" in error
    # Finished, another process of that number, no such process, and what is no task.
    reused = f"UPID:pve2:{os.getpid():08X}:{start + 1:08X}:66F00000:vzdump:100:root@pam:"
    gone = f"UPID:pve2:7FFFFFFF:{start:08X}:66F00000:vzdump:100:root@pam:"
    active.write_text(f"{upid} 1 66F00001 OK\n{reused} 0\n{gone} 0\nUPID:pve2\n\nrubbish\n")
    assert host.perform(state=state).get("error") is None


@pytest.mark.parametrize("path", ["qemu-server/101.conf", "lxc/102.conf"])
def test_a_locked_guest_is_not_cut_off(host: Host, path: str) -> None:
    host.node.database.unlink()
    make_database(
        host.node.database,
        {
            "nodes/pve2/qemu-server/100.conf": "memory: 512\n[snap]\nlock: old\n",
            "nodes/pve1/qemu-server/200.conf": "lock: migrate\n",
            f"nodes/pve2/{path}": "memory: 512\nlock: backup\n",
        },
    )
    error = refused(host, "bootstrapped")
    assert f"locked: /etc/pve/nodes/pve2/{path} (backup); wait" in error


def test_a_node_that_leaves_keeps_its_logins(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.program, "not_alone", lambda _node: [])
    other = "ssh-rsa CCCC root@pve1"
    host.keys.write_text(f"{SHARED}\n{OWN}\n{other}\n")
    host.cluster_keys = "ssh-rsa DDDD root@pve2\n"
    host.node.database.unlink()
    make_database(host.node.database, {"corosync.conf": CONF, "nodes/pve1/qemu-server/100.conf": "memory: 512\n"})
    for name in ("authkey", "corosync.conf"):
        (host.root / "etc/corosync" / name).write_text("x")
    result = host.perform(state="left")
    assert result.get("error") is None, result
    assert host.keys.read_text().splitlines() == ["ssh-rsa DDDD root@pve2", SHARED, OWN, other]
    assert host.seen_while_away is not None and OWN in host.seen_while_away and not host.local.exists()
    (warning,) = result["warnings"]
    assert "ssh keys of root@pve1" in warning
    assert list((host.root / "etc/corosync").iterdir()) == [] and not host.node.database.exists()
    order = [argv for argv in host.units if argv[0] in ("stop", "start")]
    assert order[:3] == [("stop", host.program.WATCH), ("stop", host.program.DAEMON), ("stop", host.program.COROSYNC)]
    (saved,) = host.node.generations.glob("*-before-leave.db")
    assert "corosync.conf" in host.program.read_tree(saved)[1]


def test_a_leave_that_cannot_end_is_undone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # The deadline passes here, not before on a busy machine.
    real, late = time.monotonic, [0.0]

    def not_alone(_node: Any) -> list[str]:
        late[0] = 1000
        return ["/etc/pve is read-only"]

    monkeypatch.setattr(host.program, "not_alone", not_alone)
    monkeypatch.setattr(host.program, "time", SimpleNamespace(**{**vars(time), "monotonic": lambda: real() + late[0]}))
    host.node.database.unlink()
    make_database(host.node.database, {"corosync.conf": CONF})
    (host.root / "etc/corosync/authkey").write_text("key")
    (host.root / "etc/corosync/corosync.conf").write_text(CONF)
    before = host.program.read_tree(host.node.database)
    result = host.perform(state="left", deadline_s=100)
    assert result["restored"] is True and "/etc/pve is read-only. The node is as it was before" in result["error"]
    assert (host.root / "etc/corosync/authkey").read_text() == "key"
    assert (host.root / "etc/corosync/corosync.conf").read_text() == CONF
    assert host.program.read_tree(host.node.database) == before
    assert ("start", host.program.COROSYNC) in host.units


# /etc/pve refuses a write while the members form anew


def test_the_proof_that_it_takes_writes_outlasts_a_passing_loss_of_quorum(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ["mkdir", "mkdir", "rmdir"]

    def command(*argv: str, **more: Any) -> Any:
        if refused and argv[0] == refused[0]:
            refused.pop(0)
            return host.program.Result(1, "", "Permission denied")
        return host.command(*argv, **more)

    monkeypatch.setattr(host.program, "command", command)
    host.prove_writable(host.node, "pve2", host.now + 60)
    assert refused == [] and not (host.node.pve / "pveguard-pve2").exists()
    # What an interrupted run left is no obstacle, and is removed.
    (host.node.pve / "pveguard-pve2").mkdir()
    host.prove_writable(host.node, "pve2", host.now + 60)
    assert not (host.node.pve / "pveguard-pve2").exists()
    refused[:] = ["mkdir"] * 100
    with pytest.raises(host.program.Failure, match="cannot be written although the node is quorate: Permission denied"):
        host.prove_writable(host.node, "pve2", host.now - 1)


def test_a_write_is_done_again_until_the_deadline(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = host.program.write_in_place, [0]

    def refusing(path: Path, data: bytes) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise OSError(errno.EACCES, "Permission denied")
        real(path, data)

    monkeypatch.setattr(host.program, "write_in_place", refusing)
    refusals[0] = 3
    assert host.perform(state="bootstrapped").get("error") is None
    refusals[0] = 10**9
    (host.node.pve / "corosync.conf").unlink()
    for file in ("authkey", "corosync.conf"):
        (host.root / "etc/corosync" / file).unlink()
    assert "Permission denied" in host.perform(state="bootstrapped")["error"]


def test_the_keys_of_a_node_that_leaves_are_kept_when_it_takes_writes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = host.program.write_in_place, [3]

    def refusing(path: Path, data: bytes) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise OSError(errno.EACCES, "Permission denied")
        real(path, data)

    monkeypatch.setattr(host.program, "write_in_place", refusing)
    change = host.program.Change(host.node, {"deadline_s": 60, "node_name": "pve2"})
    host.keys.unlink()
    change._keep_keys()
    assert host.keys.read_text() == f"{SHARED}\n{OWN}\n" and refusals == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("outcome", [{"changed": True}, {"changed": False, "error": "refused"}])
def test_a_signal_after_the_work_does_not_take_the_result_away(
    tmp_path: Path,
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    outcome: dict[str, Any],
) -> None:
    write_atomic, before = program.write_atomic, {each: signal.getsignal(each) for each in program.ENDINGS}

    def asked_to_end(*arguments: Any) -> None:
        os.kill(os.getpid(), number)
        write_atomic(*arguments)

    monkeypatch.setattr(program, "perform", lambda *_: dict(outcome))
    monkeypatch.setattr(program, "write_atomic", asked_to_end)
    (tmp_path / "request").write_text("{}")
    try:
        code = program.main(["run", str(tmp_path / "request"), str(tmp_path / "result")])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert code == ("error" in outcome)
    assert json.loads((tmp_path / "result").read_text()) == outcome
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result"]
