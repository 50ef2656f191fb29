# SPDX-License-Identifier: Apache-2.0
"""pvecm founds a cluster, joins it and takes a node off: what each leaves behind. Nodes in namespaces, real corosync."""

from __future__ import annotations

import gzip
import stat
import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lab import cluster
from lab.tests.doubles.harness import PVECM, RUN_AT, Node, wait_for
from tests.corosync.nodes import PATH, Member
from tests.corosync.test_membership import members as plain_members

__all__ = ["plain_members"]  # the fixture
pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def members(plain_members: Callable[[int], Member]) -> Callable[[int], Member]:
    def make(number: int) -> Member:
        node = plain_members(number)
        (node.root / "run/bin/pvecm").symlink_to(f"{RUN_AT}/usr/bin/pvecm")
        (node.root / "run/lock").mkdir()
        node.sh("mkdir -p /run/n/etc/ssh; echo PermitRootLogin prohibit-password > /etc/ssh/sshd_config")
        return node

    return make


def pvecm(node: Member, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node.tool("pvecm", *arguments, timeout=300)


def founded(node: Member) -> Member:
    done = pvecm(node, "create", "pvelab", "--link0", node.address)
    assert done.returncode == 0, done.stderr
    wait_for("quorum", node.writable)
    assert pvecm(node, "updatecerts").returncode == 0
    return node


def join(seed: Member, node: Member) -> subprocess.CompletedProcess[str]:
    """``pvecm add``, with an ssh that goes straight into the other node."""
    ssh = node.root / "run/bin/ssh"
    ssh.write_text(
        '#!/bin/sh\nwhile [ "$1" != root@10.77.0.1 ]; do shift; done; shift\n'
        f'exec nsenter -t {seed.pid} -m -u -i -n -- env PATH={PATH} "$@"\n'
    )
    ssh.chmod(0o755)
    return pvecm(node, "add", seed.address, "--link0", node.address)


def mode(node: Node, path: str) -> int:
    return stat.S_IMODE((node.root / path).stat().st_mode)


def test_what_create_add_and_delnode_leave_behind(members: Callable[[int], Member]) -> None:
    assert PVECM.exists()
    one, two = founded(members(1)), members(2)
    assert mode(one, "etc/corosync/authkey") == 0o400
    assert "token_coefficient: 125" in one.host_conf.read_text()

    (two.pve / "of-two").write_text("t")
    done = join(one, two)
    assert done.returncode == 0, done.stderr
    assert mode(two, "etc/corosync/authkey") == 0o644, "readable by everybody"
    assert one.authkey() == two.authkey()
    assert "PermitRootLogin yes" in (two.root / "etc/ssh/sshd_config").read_text().splitlines()
    assert "prohibit" not in (two.root / "etc/ssh/sshd_config").read_text()
    (backup,) = (two.state / "backup").glob("config-*.sql.gz")
    assert "'of-two'" in gzip.decompress(backup.read_bytes()).decode()
    left = ["pve-ssl.key", "pve-ssl.pem", "ssh_known_hosts", "lxc", "qemu-server", "openvz", "priv"]
    wait_for("equal members", lambda: one.shared_rows() == two.shared_rows())
    tree = one.tree()
    assert all(f"nodes/pve2/{name}" in tree for name in left)
    assert join(one, two).returncode == 255, "it is a member"

    lock = one.pve / "priv/lock/file-corosync_conf"
    assert lock.is_dir(), (
        "a cluster of one has no quorum once its second node is listed, so the lock could not be given back"
    )
    lock.rmdir()

    two.stop_daemons()
    wait_for("the loss of quorum", lambda: not one.quorate())
    assert pvecm(one, "expected", "1").returncode == 0
    wait_for("quorum", one.writable)
    done = pvecm(one, "delnode", "pve2")
    assert done.returncode == 0, done.stderr
    assert "Could not kill node" in done.stdout
    assert "pve2" not in one.cluster_conf.read_text()
    assert "config_version: 3" in one.cluster_conf.read_text()
    tree = one.tree()
    assert all(f"nodes/pve2/{name}" in tree for name in left), "with its keys"
    for name in ("pve2", "pve1", "pve9"):
        assert pvecm(one, "delnode", name).returncode == 255


def test_what_refuses_a_join(members: Callable[[int], Member]) -> None:
    one, two = founded(members(1)), members(2)
    assert pvecm(one, "create", "another").returncode == 255
    assert "config_version: 1\n" in one.cluster_conf.read_text()
    two.sh("mkdir -p /etc/pve/nodes/pve2/lxc; touch /etc/pve/nodes/pve2/lxc/100.conf")
    done = join(one, two)
    assert done.returncode == 255 and "virtual guests" in done.stderr
    two.sh("rm /etc/pve/nodes/pve2/lxc/100.conf")
    two.host_conf.write_text("totem {\n}\n")
    done = join(one, two)
    assert done.returncode == 255 and "already exists" in done.stderr
    assert not (two.root / "etc/corosync/authkey").exists()
    assert "pve2" not in one.cluster_conf.read_text()


def test_the_profile_of_a_cluster_leaves_what_add_leaves(
    members: Callable[[int], Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = members(2)
    machine = SimpleNamespace(name="pve2", number=2)

    def do(on: object, command: str, timeout: float = 0) -> str:
        if "authkey" in command and "base64 -d" in command:
            done = node.tool("bash", "-c", "set -e\n" + command.partition("printf")[0])
            assert done.returncode == 0, done.stderr
        return "a2V5"

    monkeypatch.setattr(cluster, "_do", do)
    monkeypatch.setattr(cluster, "_wait", lambda *arguments: None)
    cluster.add(machine, machine, [1], 2)  # type: ignore[arg-type]
    assert mode(node, "etc/corosync/authkey") == 0o644
    assert (node.root / "etc/corosync/authkey").read_bytes() == b"key"
    assert (node.root / "etc/ssh/sshd_config").read_text() == "PermitRootLogin yes\n"
