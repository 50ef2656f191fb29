# SPDX-License-Identifier: Apache-2.0
"""After revert.yml a node is stock again, and its configuration is what it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
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


#: Files of other packages that pveguard edits or adds to; all else of /etc is the cluster's own.
SETTINGS = re.compile(r"/(etc/(default|systemd|sysctl\.d|modprobe\.d|tmpfiles\.d|udev)|usr/local/s?bin)(/|$)|/etc/fstab")


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


def test_files_of_others_are_as_they_were(ephemeral: Path, everywhere: Any) -> None:
    """Content, mode and owner of each, as before the first run; and none is there that was not."""
    for name, fingerprint in everywhere("fingerprint.py").items():
        before = json.loads((ephemeral / "before" / f"{name}.json").read_text())["files"]
        was, now = ({path: it for path, it in each.items() if SETTINGS.match(path)} for each in (before, fingerprint["files"]))
        assert len(was) > 20
        assert {path: (was.get(path), now.get(path)) for path in {*was, *now} if was.get(path) != now.get(path)} == {}, name


def test_statistics_are_stored_as_before(everywhere: Any) -> None:
    for name, node in everywhere("statistics.py").items():
        assert node["answers"] and node["journal"] is None, name
        assert not {"-w", "-z", "-f", "-F"} & set(node["arguments"]), f"{name}: {node['arguments']}"
