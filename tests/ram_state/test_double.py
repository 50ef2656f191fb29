# SPDX-License-Identifier: Apache-2.0
"""The whole way with a real FUSE daemon and a real tmpfs, in private namespaces; only systemctl is a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

harness = pytest.importorskip("lab.tests.doubles.harness")
from lab.tests.doubles.test_cluster import Cluster, made  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts/pve-state"
DROP_IN = ROOT / "roles/ram_state/files/units/pve-cluster.conf"
pytestmark = [pytest.mark.root, pytest.mark.slow]

SYSTEMCTL = r"""#!/bin/bash
# What the units do, in their order.
PS="/usr/bin/python3 -IS %(program)s"
DROP=/etc/systemd/system/pve-cluster.service.d/pveguard.conf
LIVE=/var/lib/pve-cluster
# A zombie has no namespaces; a number that is used again is a process of another node.
lives() { [ "/proc/$(cat "$1" 2>/dev/null)/ns/mnt" -ef /proc/self/ns/mnt ]; } # PIDFILE
end() { # PIDFILE: what has not ended in the end is killed, as systemd does at TimeoutStopSec
    cp "$1" "$1.end" 2>/dev/null || return 0 # the daemon removes its own before it has ended
    if lives "$1.end"; then
        kill "$(cat "$1.end")"
        for _ in $(seq 1800); do lives "$1.end" || break; sleep 0.05; done
        ! lives "$1.end" || kill -9 "$(cat "$1.end")"
        while lives "$1.end"; do sleep 0.05; done
    fi
    rm -f "$1" "$1.end"
}
case "$*" in
"start pve-cluster.service")
    if [ -e $DROP ]; then
        if ! mountpoint -q $LIVE; then
            mount -t tmpfs -o size=64m pveguard-state $LIVE
            mkdir -p $LIVE/backup; mount --bind /var/lib/pveguard/backup $LIVE/backup
        fi
        $PS restore >>/run/ps.log 2>&1 || exit 1
    fi
    PATH=/run/bin:$PATH %(daemon)s >>/run/daemon.log 2>&1 || exit 1
    if [ -e $DROP ] && ! lives /run/watch.pid; then
        setsid $PS watch >>/run/ps.log 2>&1 </dev/null &
        echo $! > /run/watch.pid
    fi ;;
"stop pveguard-state-watch.service") end /run/watch.pid ;;
"stop pve-cluster.service")
    end /run/pve-cluster.pid
    [ ! -e $DROP ] || $PS save --if-enabled >>/run/ps.log 2>&1 ;;
"stop pveguard-state.service") $PS final-save >>/run/ps.log 2>&1 ;;
"stop var-lib-pve\x2dcluster-backup.mount") umount $LIVE/backup ;;
"stop var-lib-pve\x2dcluster.mount") umount $LIVE ;;
"show pveguard-rollback-"*.timer" "*) printf 'ActiveState=active\nSubState=waiting\n' ;;
"show "*)
    for unit in "$@"; do
        case $unit in
        pve-cluster.service) lives /run/pve-cluster.pid && s=active || s=inactive ;;
        pveguard-state.service) mountpoint -q $LIVE && s=active || s=inactive ;;
        pveguard-state-watch.service) lives /run/watch.pid && s=active || s=inactive ;;
        *) continue ;;
        esac
        printf 'Id=%%s\nActiveState=%%s\nResult=success\nLoadState=loaded\n\n' $unit $s
    done ;;
esac
exit 0
"""


class RamNode:
    def __init__(self, node: Any) -> None:
        self.node = node
        script = {"program": PROGRAM, "daemon": node.daemon_path}
        folder = node.root / "run/bin"
        folder.mkdir(exist_ok=True)
        for name, text in (
            ("systemctl", SYSTEMCTL % script),
            ("systemd-run", "#!/bin/sh\nexit 0\n"),
            ("pmxcfs", "#!/bin/sh\n"),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        node.sh("mkdir -p /etc/systemd/system /etc/pveguard")
        for unit in (
            r"var-lib-pve\x2dcluster.mount",
            r"var-lib-pve\x2dcluster-backup.mount",
            "pveguard-state.service",
            "pveguard-state-watch.service",
        ):
            (node.root / "etc/systemd/system" / unit).write_text("[Unit]\n")
        shutil.copyfile(DROP_IN, node.root / "etc/pveguard/pve-cluster.conf")
        (node.root / "etc/pveguard/state.json").write_text(json.dumps({"deadline_seconds": 120}))

    def ps(self, *argv: str, rc: int | None = 0) -> dict[str, Any]:
        path = f"PATH=/run/bin:{os.environ['PATH']}"
        done = self.node.run(
            "env",
            "-u",
            "SSH_CONNECTION",
            path,
            "/usr/bin/python3",
            "-IS",
            str(PROGRAM),
            *argv,
            "--json",
            timeout=300,
        )
        assert rc is None or done.returncode == rc, f"{argv}: {done.returncode} {done.stderr} {self.logs()}"
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    def systemctl(self, *argv: str) -> int:
        path = f"PATH=/run/bin:{os.environ['PATH']}"
        return int(self.node.run("env", path, "systemctl", *argv, timeout=120).returncode)

    def logs(self) -> str:
        return "\n".join(p.read_text() for p in (self.node.root / "run").glob("*.log"))

    def tree(self) -> dict[str, Any]:
        return {
            path: data
            for path, data in self.node.tree().items()
            if not path.startswith("priv/lock") and "lrm_status" not in path
        }

    def wait_saved(self) -> None:
        """Until a power cut would lose nothing."""
        harness.wait_for("all to be saved", lambda: self.ps("status", rc=None)["would_lose"] == [])

    def power_cut(self) -> None:
        pids = [int((self.node.root / f"run/{name}.pid").read_text()) for name in ("watch", "pve-cluster")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # Their locks are free, and what they were writing is written, only when they are gone.
        harness.wait_for("the end of the killed", lambda: not any(harness.alive(pid) for pid in pids))
        self.node.sh(
            "umount -l /etc/pve; umount /var/lib/pve-cluster/backup; umount -l /var/lib/pve-cluster;"
            " rm -rf /run/pveguard /run/*.pid"
        )


@contextmanager
def members_in_ram() -> Iterator[Cluster]:
    """Three members with corosync and empty databases; their watchers and daemons end with it."""
    with made() as cluster:
        cluster.reset()
        yield cluster


@pytest.fixture
def ram() -> Iterator[RamNode]:
    reason = harness.why_not()
    if reason:
        pytest.skip(reason)
    node = harness.Node()
    try:
        made = RamNode(node)
        assert made.systemctl("start", "pve-cluster.service") == 0, made.logs()
        node.sh(
            "mkdir -p /etc/pve/nodes/pve1/qemu-server /etc/pve/priv;"
            "echo 'name: a' > /etc/pve/nodes/pve1/qemu-server/100.conf; echo x > /etc/pve/storage.cfg"
        )
        yield made
    finally:
        node.close()


def test_the_whole_way(ram: RamNode) -> None:
    node = ram.node
    before = ram.tree()
    found = ram.ps("preflight")
    assert found["refusals"] == [] and found["login"]["independent"]
    done = ram.ps("enable")
    assert done["changed"] and done["state"] == "enabled" and done["downtime_seconds"] > 0
    assert ram.tree() == before
    assert ram.ps("enable")["changed"] is False

    # Changes reach the replica within the RPO; heartbeats and locks do not.
    node.sh(
        "echo two > /etc/pve/user.cfg; mkdir -p /etc/pve/priv/lock; mkdir /etc/pve/priv/lock/file-jobs_cfg"
    )
    ram.wait_saved()
    saved = ram.ps("status")["saved_root_version"]
    for _ in range(5):
        node.sh("echo beat > /etc/pve/nodes/pve1/lrm_status")
    time.sleep(3)
    status = ram.ps("status")
    assert status["saved_root_version"] == saved and status["would_lose"] == [] and status["lag_versions"] > 0

    # The same for an exporter, in RAM.
    wanted = {"mounted": 1, "ready": 1, "quorate": 1, "lag_seconds": 0, "unsaved_files": 0, "saved_root_version": saved}

    def told() -> dict[str, float]:
        text = node.sh("cat /run/pveguard/metrics.prom")
        found = re.findall(r"^pveguard_state_(\w+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found if name in wanted}

    # The file is written after the save.
    harness.wait_for("the metrics", lambda: told() == wanted)
    assert node.sh("stat -c %a /run/pveguard/metrics.prom; findmnt -no FSTYPE -T /run/pveguard") == "644\ntmpfs\n"

    # Power cut: what is older than the RPO is there.
    before = ram.tree()
    ram.power_cut()
    assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
    assert ram.tree() == before
    assert node.sh("cat /etc/pve/user.cfg") == "two\n"
    assert ram.ps("status")["state"] == "enabled"

    # A restart of the daemon, as a package upgrade does it.
    node.sh("echo three > /etc/pve/user.cfg")
    assert ram.systemctl("stop", "pve-cluster.service") == 0
    assert ram.systemctl("start", "pve-cluster.service") == 0
    assert node.sh("cat /etc/pve/user.cfg") == "three\n"

    # And back.
    before = ram.tree()
    done = ram.ps("disable")
    assert done["changed"] and done["source"] == "ram"
    assert ram.tree() == before
    assert node.run("mountpoint", "-q", "/var/lib/pve-cluster").returncode != 0
    assert node.sh("head -c 15 /var/lib/pve-cluster/config.db") == "SQLite format 3"
    assert ram.ps("status")["state"] == "disabled"


def test_one_file_through_the_real_file_system(ram: RamNode) -> None:
    node = ram.node
    ram.ps("enable")
    node.sh(
        "mkdir -p /etc/pve/priv /etc/pve/firewall; echo key > /etc/pve/priv/a; echo rule > /etc/pve/firewall/a.fw"
    )
    first = ram.ps("save", "--generation")["generation"]
    node.sh("echo other > /etc/pve/priv/a; rm -r /etc/pve/firewall; rm /etc/pve/qemu-server/100.conf")
    shown = {e["path"]: e["restoring"] for e in ram.ps("show", first)["files"]}
    assert shown == {
        "priv/a": "change",
        "firewall/a.fw": "bring back",
        "nodes/pve1/qemu-server/100.conf": "bring back",
    }
    assert ram.ps("restore-file", first, "priv/a", "--yes")["changed"]
    # What was there before is the newest generation now.
    assert [e["path"] for e in ram.ps("show", "latest")["files"]] == ["priv/a"]
    assert ram.ps("restore-file", first, "qemu-server/100.conf", "--yes")["changed"]
    assert ram.ps("restore-file", first, "firewall/a.fw", "--yes", rc=3)["error"].count("--parents")
    assert ram.ps("restore-file", first, "firewall", "--yes", "--parents")["directories"] == ["firewall"]
    assert ram.ps("restore-file", first, "firewall", "--yes")["changed"] is False
    assert ram.ps("show", first)["files"] == []
    assert node.sh("stat -c '%a %U' /etc/pve/priv/a /etc/pve/firewall/a.fw") == "600 root\n640 root\n"
    assert not node.sh("find /etc/pve -name '*.tmp.*'")
    # Beneath the mount nothing is ever written.
    ram.systemctl("stop", "pve-cluster.service")
    assert "not mounted" in ram.ps("restore-file", first, "firewall", "--yes", rc=3)["error"]
    assert node.sh("ls -A /etc/pve") == ""


def test_a_damaged_replica_fails_closed_and_one_command_fixes_it(ram: RamNode) -> None:
    ram.ps("enable")
    before = ram.tree()
    ram.power_cut()
    ram.node.sh(
        "truncate -s 5000 /var/lib/pveguard/state/config.db; rm -f /var/lib/pveguard/state/config.db-*"
    )
    assert ram.systemctl("start", "pve-cluster.service") != 0
    assert not (ram.node.pve / "storage.cfg").exists()
    assert ram.ps("status", rc=1)["fix"] == "pve-state restore --generation latest"
    ram.ps("restore", "--generation", "latest")
    assert ram.tree() == before


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_running_node_is_brought_back_and_forth(ram: RamNode, where: str) -> None:
    if where == "ram":
        ram.ps("enable")
    node, old = ram.node, ram.tree()
    name = ram.ps("save", "--generation")["generation"]
    node.sh(
        "echo y > /etc/pve/storage.cfg; rm /etc/pve/nodes/pve1/qemu-server/100.conf; echo z > /etc/pve/new.cfg"
    )
    new = ram.tree()
    done = ram.ps("restore", "--generation", name, "--take-down")
    assert ram.tree() == old and done["tree_sha256"] == done["generation_tree_sha256"]
    assert ram.ps("status")["state"] == ("enabled" if where == "ram" else "disabled")
    # The daemon goes on from there, and its changes are saved.
    node.sh("echo after > /etc/pve/user.cfg")
    if where == "ram":
        ram.wait_saved()
        ram.power_cut()
        assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
    assert node.sh("cat /etc/pve/user.cfg /etc/pve/storage.cfg") == "after\nx\n"
    ram.ps("restore", "--generation", done["former"], "--take-down")
    assert ram.tree() == new


def test_a_restore_on_which_the_daemon_does_not_start_is_undone(ram: RamNode) -> None:
    ram.ps("enable")
    name = ram.ps("save", "--generation")["generation"]
    ram.node.sh("echo y > /etc/pve/storage.cfg")
    before = ram.tree()
    script = ram.node.root / "run/bin/systemctl"
    once = "[ -e /run/once ] || { touch /run/once; exit 1; }; PATH=/run/bin"
    script.write_text(script.read_text().replace("PATH=/run/bin", once, 1))
    error = ram.ps("restore", "--generation", name, "--take-down", rc=8)["error"]
    assert "does not start" in error and "is back and runs" in error
    assert ram.tree() == before and ram.ps("status")["state"] == "enabled"


def test_the_placeholder_stops_a_real_daemon_and_names_the_way_out(ram: RamNode) -> None:
    ram.ps("enable")
    before = ram.tree()
    ram.power_cut()
    done = ram.node.try_start()
    assert done.returncode != 0 and not (ram.node.pve / "storage.cfg").exists()
    assert "systemctl restart pve-cluster" in ram.node.sh("cat /var/lib/pve-cluster/config.db")
    status = ram.ps("status", rc=1)
    assert "not the RAM file system" in status["reason"] and status["would_restore"]["problems"] == []
    assert status["fix"] == "systemctl start pve-cluster.service"
    assert ram.systemctl(*status["fix"].split()[1:]) == 0, ram.logs()
    assert ram.tree() == before


def test_a_join_in_the_steps_of_pvecm_is_not_undone(ram: RamNode) -> None:
    ram.ps("enable")
    node = ram.node
    ram.systemctl("stop", "pve-cluster.service")
    # The watcher let go, and a plain file is left: this is what makes the removal safe.
    assert node.sh("ls /var/lib/pve-cluster/config.db*").split() == ["/var/lib/pve-cluster/config.db"]
    node.sh("rm /var/lib/pve-cluster/config.db")
    assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
    assert not (node.pve / "storage.cfg").exists()
    node.sh("echo joined > /etc/pve/corosync-like.cfg")
    ram.wait_saved()
    listed = ram.ps("list", "--verify")["generations"]
    assert max(g["lineage"] for g in listed) == 2
    former = next(g for g in listed if g["lineage"] == 1)
    assert not former["problems"]
    database = node.root / "var/lib/pveguard/state/generations" / f"{former['name']}.db"
    copy = Path(f"/tmp/{former['name']}.{os.getpid()}.db")
    copy.write_bytes(database.read_bytes())
    try:
        db = sqlite3.connect(copy)
        assert db.execute("SELECT 1 FROM tree WHERE name='storage.cfg'").fetchone()
        db.close()
    finally:
        copy.unlink()


@pytest.mark.parametrize("broken", ["the daemon", "the tmpfs"])
def test_a_switch_that_fails_for_real_puts_stock_back(ram: RamNode, broken: str) -> None:
    before = ram.tree()
    script = ram.node.root / "run/bin/systemctl"
    text = script.read_text()
    if broken == "the tmpfs":
        text = text.replace("mount -t tmpfs -o size=64m", "exit 1; mount -t tmpfs -o size=64m")
    else:
        text = text.replace("    PATH=/run/bin", "    [ ! -e $DROP ] || exit 1\n    PATH=/run/bin")
    script.write_text(text)
    assert "stock was put back" in ram.ps("enable", rc=8)["error"]
    assert ram.tree() == before
    assert not (ram.node.root / "etc/systemd/system/pve-cluster.service.d/pveguard.conf").exists()
    assert ram.node.sh("cat /etc/pve/storage.cfg") == "x\n"


def test_the_exits_by_hand(ram: RamNode) -> None:
    """The two lines of docs/ram-state.md, as they stand there."""
    text = (ROOT / "docs/ram-state.md").read_text().split("### The exit by hand")[1]
    lines = [block.split("```")[0].strip() for block in text.split("```sh\n")[1:3]]
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    path = f"PATH=/run/bin:{os.environ['PATH']}"
    # The commands of the lines name the unit without its suffix.
    script = ram.node.root / "run/bin/systemctl"
    script.write_text(
        script.read_text().replace(
            'case "$*" in', 'set -- "${@/%pve-cluster/pve-cluster.service}"\ncase "$*" in', 1
        )
    )
    for line in lines:
        ram.ps("enable")
        ram.node.sh("date +%N > /etc/pve/user.cfg")
        ram.wait_saved()
        before = ram.tree()
        if line is lines[1]:
            ram.power_cut()
        done = ram.node.run("env", path, "bash", "-c", line, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ram.tree() == before
        assert ram.node.run("mountpoint", "-q", "/var/lib/pve-cluster").returncode != 0
        ram.node.sh("rm -rf /run/pveguard /var/lib/pveguard")


NOT_MET = "its Corosync has not run since the daemon started: /etc/pve is read-only"


def without_its_corosync(ram: RamNode) -> None:
    """The node becomes a member, and its daemon is started again while no Corosync runs."""
    ram.node.cluster_conf.write_text("totem {\n  cluster_name: c\n  config_version: 3\n}\nnodelist {\n}\n")
    ram.systemctl("stop", "pve-cluster.service")
    assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
    status = ram.ps("status")
    assert (status["daemon_mode"], status["met_corosync"], status["quorate"]) == ("cluster", False, False)


def test_a_member_whose_corosync_has_not_run(ram: RamNode) -> None:
    """In cluster mode and read-only: no switch-over, no file back, nothing fetched."""
    node = ram.node
    before = ram.ps("save", "--generation", "--reason", "before")["generation"]
    node.sh("echo new > /etc/pve/storage.cfg")
    without_its_corosync(ram)
    version = node.version()
    assert ram.ps("preflight", rc=3)["refusals"] == [f"{NOT_MET}; see 'systemctl status corosync'"]
    assert NOT_MET in ram.ps("enable", rc=3)["error"]
    assert NOT_MET in ram.ps("restore-file", before, "storage.cfg", "--yes", rc=3)["error"]
    assert NOT_MET in ram.ps("restore", "--resync", "--check", rc=3)["refusals"][0]
    assert node.version() == version and (node.pve / "storage.cfg").read_text() == "new\n"


def test_a_member_in_ram_whose_corosync_has_not_run(ram: RamNode) -> None:
    """Its metrics tell it, and it goes back to disk only when that is asked for twice, without a wait for quorum."""
    assert ram.ps("enable")["changed"]
    without_its_corosync(ram)
    before = ram.tree()

    def told() -> Any:
        text = (ram.node.root / "run/pveguard/metrics.prom").read_text()
        return re.findall(r"^pveguard_state_quorate (\d)", text, re.MULTILINE)

    harness.wait_for("the metrics", lambda: told() == ["0"])
    assert NOT_MET in ram.ps("disable", rc=3)["error"]
    assert ram.ps("disable", "--allow-offline-members")["changed"]
    assert ram.ps("status")["met_corosync"] is False and ram.tree() == before
