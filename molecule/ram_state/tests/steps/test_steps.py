# SPDX-License-Identifier: Apache-2.0
"""What happens to a protected node in its life, in this order; after each step it is healthy again without a hand."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lab import cluster
from lab.labs import Lab
from lab.packages import build

STATUS = "/usr/local/sbin/pve-state status --json"
Wait = Callable[..., None]


def status(host: Host) -> dict[str, Any]:
    found = json.loads(host.run(STATUS).stdout)
    assert isinstance(found, dict)
    return found


def saved(wait: Wait, node: str) -> None:
    """Wait until a power cut would lose nothing on a node."""
    wait(node, f"{STATUS} | grep -q '\"would_lose\": \\[\\]'", 60)


def test_the_nodes_run_from_ram(look: Any, nodes: dict[str, Host]) -> None:
    look()
    for name, host in nodes.items():
        assert host.mount_point("/var/lib/pve-cluster").filesystem == "tmpfs", name
        assert host.service("pveguard-state-watch").is_running, name


def test_no_unit_was_ordered_in_a_cycle(nodes: dict[str, Host]) -> None:
    for name, host in nodes.items():
        assert "ordering cycle" not in host.run("journalctl -b --no-pager -o cat _PID=1").stdout, name


def test_a_restart_of_the_daemon_keeps_the_change_before_it(nodes: dict[str, Host], look: Any) -> None:
    done = nodes["pve2"].run(
        "echo before the restart > /etc/pve/molecule-restart && systemctl restart pve-cluster.service"
    )
    assert done.rc == 0, done.stderr
    seen = look("pve2")["pve2"]
    assert nodes["pve2"].file("/etc/pve/molecule-restart").content_string == "before the restart\n"
    # The RAM file system outlived the daemon: nothing was restored.
    assert not seen["status"]["restore"] or seen["status"]["restore"]["source"] != "found"


def test_an_upgrade_of_the_package_on_all_nodes_at_once_keeps_the_state(
    nodes: dict[str, Host], look: Any, console: Any, tmp_path: Path
) -> None:
    """As unattended upgrades may do it."""
    if "+lab" not in nodes["pve1"].package("pve-cluster").version:
        pytest.skip("the lab has real packages, of which there is one version")
    before = look()
    package = next(p for p in build.find_packages() if p.name == "pve-cluster")
    deb = build.build_deb(package, tmp_path, "+lab2")
    data = base64.b64encode(deb.read_bytes()).decode()
    for name, host in nodes.items():
        # A unit of its own: it does not end with the connection.
        started = host.run(
            f"echo {data} | base64 -d > /root/{deb.name} && systemd-run --quiet --unit=molecule-upgrade "
            f"--property=RemainAfterExit=yes --setenv=DEBIAN_FRONTEND=noninteractive "
            f"apt-get -q -y install /root/{deb.name}"
        )
        assert started.rc == 0, f"{name}: {started.stderr}"
    for name, host in nodes.items():
        ended = host.run(
            "for i in $(seq 300); do systemctl is-active --quiet molecule-upgrade.service && "
            "[ $(systemctl show -P SubState molecule-upgrade.service) = exited ] && exit 0; "
            "systemctl is-failed --quiet molecule-upgrade.service && break; sleep 1; done; "
            "journalctl --no-pager -u molecule-upgrade.service; exit 1"
        )
        assert ended.rc == 0, f"{name}: {ended.stdout}"
        assert host.package("pve-cluster").version.endswith("+lab2"), name
    after = look()
    for name, host in nodes.items():
        assert host.mount_point("/var/lib/pve-cluster").filesystem == "tmpfs", name
        assert after[name]["rest_sha256"] == before[name]["rest_sha256"], name


def test_a_read_only_disk_is_loud_and_the_daemon_goes_on(
    nodes: dict[str, Host], wait: Wait, look: Any
) -> None:
    host = nodes["pve1"]
    # What the kernel does on an error (errors=remount-ro), to all file systems at once.
    host.run("sync; echo u > /proc/sysrq-trigger")
    wait("pve1", "grep -q ' / ext4 ro' /proc/mounts && grep -q ' /var/lib ext4 ro' /proc/mounts", 30)
    try:
        assert host.run("echo while read-only > /etc/pve/molecule-read-only").rc == 0
        wait("pve1", f'{STATUS} | grep -q \'"state": "failed"\'', 60)
        assert "/var/lib/pveguard/state" in status(host)["reason"]
        restarted = host.run("systemctl restart pve-cluster.service")
        assert restarted.rc == 0, restarted.stderr
        wait("pve1", "test -s /etc/pve/molecule-read-only", 60)
    finally:
        host.run("mount -o remount,rw /; mount -o remount,rw /var/lib")
    saved(wait, "pve1")
    look("pve1")


def test_a_full_disk_is_loud_and_what_is_live_goes_on(nodes: dict[str, Host], wait: Wait, look: Any) -> None:
    host = nodes["pve3"]
    host.run(
        "for i in 1 2 3 4 5 6; do set -- $i $(stat -f -c '%f %S' /var/lib); "
        "fallocate -l $(($2 * $3 * 9 / 10)) /var/lib/molecule-filler-$1; done; cat /dev/zero > /var/lib/molecule-filler"
    )
    try:
        assert host.run("dd if=/dev/zero of=/var/lib/molecule-filler-end bs=64k count=1 status=none").rc != 0
        assert host.run("dd if=/dev/urandom of=/etc/pve/molecule-full bs=128k count=6 status=none").rc == 0
        wait("pve3", f'{STATUS} | grep -q \'"state": "failed"\'', 60)
        found = status(host)
        assert "molecule-full" in found["would_lose"]
        assert host.run("echo small >> /etc/pve/molecule-full-too").rc == 0
    finally:
        host.run("rm -f /var/lib/molecule-filler*")
    saved(wait, "pve3")
    look("pve3")


def test_without_the_ram_file_system_the_daemon_does_not_start(
    nodes: dict[str, Host], wait: Wait, look: Any
) -> None:
    host = nodes["pve2"]
    drop_in = "/etc/systemd/system/pve-cluster.service.d/pveguard.conf"
    host.run("echo kept > /etc/pve/molecule-placeholder")
    done = host.run(
        "systemctl stop pve-cluster.service pveguard-state.service && "
        r"systemctl stop 'var-lib-pve\x2dcluster-backup.mount' 'var-lib-pve\x2dcluster.mount' && "
        f"mv {drop_in} /root/ && systemctl daemon-reload"
    )
    assert done.rc == 0, done.stderr
    try:
        assert host.file("/var/lib/pve-cluster/config.db").content.startswith(b"This is not a database.")
        assert host.run("systemctl start pve-cluster.service").rc != 0
        assert host.run("mountpoint -q /etc/pve").rc != 0
        found = status(host)
        assert (found["state"], found["fix"]) == ("failed", "pve-state disable")
        assert "placeholder" in found["reason"]
    finally:
        host.run(
            f"systemctl stop pve-cluster.service; mv /root/pveguard.conf {drop_in}; systemctl daemon-reload"
        )
    assert host.run("systemctl reset-failed pve-cluster.service; systemctl start pve-cluster.service").rc == 0
    look("pve2")
    assert host.file("/etc/pve/molecule-placeholder").content_string == "kept\n"


def test_an_old_generation_on_one_node_never_rolls_back_running_members(
    nodes: dict[str, Host], wait: Wait, look: Any
) -> None:
    made = nodes["pve3"].run("/usr/local/sbin/pve-state save --generation --reason molecule --json")
    generation = json.loads(made.stdout)["generation"]
    old = look("pve3")["pve3"]["status"]["root_version"]
    for number in range(5):
        assert nodes["pve1"].run(f"echo new {number} > /etc/pve/molecule-mirror").rc == 0
    done = nodes["pve3"].run(
        f"systemctl stop pve-cluster.service && /usr/local/sbin/pve-state restore --generation {shlex.quote(generation)}"
    )
    assert done.rc == 0, done.stderr
    seen = look()
    for name, host in nodes.items():
        assert host.file("/etc/pve/molecule-mirror").content_string == "new 4\n", name
        assert seen[name]["status"]["root_version"] > old, name
        assert seen[name]["rest_sha256"] == seen["pve1"]["rest_sha256"], name


def test_a_node_leaves_and_joins_in_the_steps_of_pvecm(
    lab: Lab, nodes: dict[str, Host], console: Any, wait: Wait, look: Any
) -> None:
    before = look("pve3")["pve3"]
    version = int(nodes["pve1"].check_output("sed -n 's/^ *config_version: //p' /etc/corosync/corosync.conf"))
    # Leave: the node goes back to local mode by hand, then it is taken off the list.
    console(
        "pve3",
        "set -e; systemctl stop pve-cluster.service corosync.service\n"
        "pmxcfs -l; rm /etc/pve/corosync.conf; rm -r /etc/corosync/*\n"
        "pid=$(cat /run/pve-cluster.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.2; done\n"
        "systemctl start pve-cluster.service",
    )
    conf = shlex.quote(cluster.corosync_conf([1, 2], version + 1))
    wait("pve1", "test -w /etc/pve/storage.cfg && corosync-quorumtool -s | grep -q 'Quorate: *Yes'")
    console(
        "pve1",
        f"printf %s {conf} > /etc/pve/corosync.conf.new && mv /etc/pve/corosync.conf.new /etc/pve/corosync.conf",
    )
    wait("pve1", f"corosync-cmapctl -g totem.config_version | grep -q '= {version + 1}$' || "
                 "{ corosync-cfgtool -R >/dev/null; false; }")  # fmt: skip
    alone = look("pve3", members=1)["pve3"]
    saved(wait, "pve3")
    assert nodes["pve3"].run("test -e /etc/pve/corosync.conf").rc != 0
    assert nodes["pve3"].file("/etc/pve/storage.cfg").content_string
    kept = json.loads(nodes["pve3"].run("/usr/local/sbin/pve-state list --verify --json").stdout)[
        "generations"
    ]
    assert any(g["mode"] == "member" and not g["problems"] for g in kept)
    assert alone["rest_sha256"] != before["rest_sha256"]

    # What one of the two sides writes alone: the cluster's is to win.
    assert nodes["pve3"].run("echo alone > /etc/pve/molecule-alone").rc == 0
    assert nodes["pve1"].run("echo meanwhile > /etc/pve/molecule-meanwhile").rc == 0

    cluster.add(lab.machine("pve1"), lab.machine("pve3"), [1, 2], version + 2)
    seen = look()
    for name, host in nodes.items():
        assert host.file("/etc/pve/molecule-meanwhile").content_string == "meanwhile\n", name
        assert host.run("test -e /etc/pve/molecule-alone").rc != 0, name
        assert seen[name]["rest_sha256"] == seen["pve1"]["rest_sha256"], name
    # The dump of the join is on disk, and what the node held alone is in its history.
    assert nodes["pve3"].run("ls /var/lib/pveguard/backup/*.sql.gz").rc == 0
    saved(wait, "pve3")
    kept = json.loads(nodes["pve3"].run("/usr/local/sbin/pve-state list --verify --json").stdout)[
        "generations"
    ]
    # Those of the time alone are history: a member refuses to start from them.
    assert [g["name"] for g in kept if not g["verified"]] == []
    assert all(g["restorable"] == (g["mode"] == "member") for g in kept)
    assert {"standalone", "member"} <= {g["mode"] for g in kept}
    assert kept[0]["mode"] == "member"
