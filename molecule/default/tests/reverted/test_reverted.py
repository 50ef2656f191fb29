# SPDX-License-Identifier: Apache-2.0
"""After revert.yml a node is stock again, and its configuration is what it was."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

GONE = (
    "/usr/local/sbin/pve-state",
    "/etc/pveguard",
    "/etc/systemd/system/pveguard-state.service",
    "/etc/systemd/system/pveguard-state-watch.service",
    r"/etc/systemd/system/var-lib-pve\x2dcluster.mount",
    "/etc/systemd/system/pve-cluster.service.d/pveguard.conf",
)


@pytest.fixture(scope="module")
def look(everywhere: Any) -> dict[str, Any]:
    found = everywhere("look.py")
    assert isinstance(found, dict)
    return found


def test_database_is_on_disk(look: dict[str, Any]) -> None:
    for name, node in look.items():
        assert node["mounts"]["/var/lib/pve-cluster"] is None, name


def test_cluster_works_and_configuration_is_complete(look: dict[str, Any]) -> None:
    assert {(node["quorate"], node["members"]) for node in look.values()} == {(True, len(look))}
    assert len({node["rows_sha256"] for node in look.values()}) == 1
    for name, node in look.items():
        assert node["markers"]["molecule-reboot"], name


def test_ha_is_back(look: dict[str, Any]) -> None:
    for name, node in look.items():
        for unit in ("pve-ha-lrm.service", "pve-ha-crm.service", "watchdog-mux.service"):
            assert node["units"][unit]["ActiveState"] == "active", f"{name}: {unit}"
        for unit in ("pve-ha-lrm.service", "pve-ha-crm.service"):
            assert node["units"][unit]["UnitFileState"] == "enabled", f"{name}: {unit}"


def test_units_and_programs_are_gone(nodes: dict[str, Host]) -> None:
    for name, host in nodes.items():
        left = host.run("ls -d " + " ".join(f"'{path}'" for path in GONE) + " 2>/dev/null").stdout
        assert left == "", name
