# SPDX-License-Identifier: Apache-2.0
"""pvecm, the unit and the other files of the package."""

from __future__ import annotations

import configparser
import json
import os

import pytest

from lab.tests.doubles.harness import IS_DOUBLE, PACKAGE, Node

pytestmark = pytest.mark.skipif(not IS_DOUBLE, reason="files of the double")
PVECM = "/run/double/usr/bin/pvecm"
KEYS = "/root/.ssh/authorized_keys"


@pytest.mark.root
def test_updatecerts_makes_folders_and_shares_keys(node: Node) -> None:
    (node.root / KEYS[1:]).write_text("ssh-ed25519 AAAA one\n\nssh-ed25519 BBBB two\n")
    node.sh(f"{PVECM} updatecerts --silent")
    folders = [
        "nodes/pve1/qemu-server",
        "nodes/pve1/lxc",
        "nodes/pve1/openvz",
        "nodes/pve1/priv",
        "priv/lock",
        "priv/acme",
        "sdn",
        "mapping",
        "firewall",
        "ha",
    ]
    assert all((node.pve / folder).is_dir() for folder in folders)
    files = ["nodes/pve1/pve-ssl.key", "nodes/pve1/pve-ssl.pem", "nodes/pve1/ssh_known_hosts", "vzdump.cron"]
    assert all((node.pve / file).is_file() for file in files)
    assert node.sh(f"readlink {KEYS}") == "/etc/pve/priv/authorized_keys\n"
    assert node.sh(f"cat {KEYS}") == "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
    before = node.version()
    node.sh(f"{PVECM} updatecerts --silent")
    assert node.version() == before, "a second run writes nothing"


@pytest.mark.root
def test_updatecerts_merges_keys(node: Node) -> None:
    node.sh("mkdir /etc/pve/priv; echo 'ssh-ed25519 AAAA one' > /etc/pve/priv/authorized_keys")
    (node.root / KEYS[1:]).write_text("ssh-ed25519 AAAA one\nssh-ed25519 CCCC three\n")
    node.sh(f"{PVECM} updatecerts")
    assert node.sh(f"cat {KEYS}") == "ssh-ed25519 AAAA one\nssh-ed25519 CCCC three\n"


@pytest.mark.root
def test_updatecerts_keeps_keys_where_nothing_can_be_written(empty_node: Node) -> None:
    node = empty_node
    (node.root / KEYS[1:]).write_text("ssh-ed25519 AAAA one\n")
    assert node.run(PVECM, "updatecerts", "--silent").returncode != 0  # not mounted
    node.host_conf.write_text("totem {\n config_version: 1\n}\n")
    node.start()
    result = node.run(PVECM, "updatecerts")
    assert result.returncode != 0
    assert "not writable" in result.stderr
    assert not os.path.islink(node.root / KEYS[1:])
    assert node.sh(f"cat {KEYS}") == "ssh-ed25519 AAAA one\n"


@pytest.mark.root
def test_other_commands_are_refused_by_name(node: Node) -> None:
    for command in (
        ["create"],
        ["add", "--link0", "10.77.0.1"],
        ["nodes"],
        ["delnode"],
        [],
        ["expected", "x"],
        ["updatecerts", "--nonsense"],
    ):
        result = node.run(PVECM, *command)
        assert result.returncode == 255
        assert "lab double" in result.stderr
    assert node.run(PVECM, "status").returncode == 2
    assert "does not exist" in node.run(PVECM, "delnode", "pve2").stderr


def test_unit() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (PACKAGE / "root/usr/lib/systemd/system/pve-cluster.service").read_text()
    parser.read_string(text)
    unit, service = parser["Unit"], parser["Service"]
    assert unit["DefaultDependencies"] == "no"
    for line in (
        "Wants=corosync.service",
        "Wants=rrdcached.service",
        "Before=corosync.service",
        "After=network.target",
        "After=sys-fs-fuse-connections.mount",
        "After=time-sync.target",
        "After=rrdcached.service",
    ):
        assert f"\n{line}\n" in text
    assert "RequiresMountsFor" not in text
    assert service["Type"] == "forking"
    assert service["Restart"] == "on-failure"
    assert service["TimeoutStopSec"] == "10"
    assert service["PIDFile"] == "/run/pve-cluster.pid"
    assert not [key for key in service if key.startswith("ExecStartP")], "pveproxy's start does what is to be done"


def test_the_unit_of_pveproxy_shares_keys_and_makes_directories() -> None:
    text = (PACKAGE.parent / "pve-manager/root/usr/lib/systemd/system/pveproxy.service").read_text()
    for line in ("After=pve-cluster.service", "ExecStartPre=-/usr/bin/pvecm updatecerts --silent"):
        assert f"\n{line}\n" in text
    control = json.loads((PACKAGE.parent / "pve-manager/control.json").read_text())
    assert "pveproxy.service" in control["units"]


def test_control() -> None:
    control = json.loads((PACKAGE / "control.json").read_text())
    assert control["name"] == "pve-cluster"
    assert control["version"] == "9.1.6"
    assert "lab double" in control["description"].splitlines()[0]
    for name in ("pmxcfs", "pvecm"):
        assert os.access(PACKAGE / "root/usr/bin" / name, os.X_OK)
