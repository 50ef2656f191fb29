# SPDX-License-Identifier: Apache-2.0
"""What is said of HA on a node, by whoever asks."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import GOOD, PROBLEM, WARNING
from ansible.module_utils.pveguard.ha import ha_findings
from ansible.module_utils.pveguard.ha.ha_findings import findings

from tests.findings import finding


def test_resources_that_nothing_recovers() -> None:
    bare = finding(findings(resources=["vm:1", "vm:2"], unattended=["vm:1", "vm:2"]), "ha-masked-with-resources")
    assert bare.severity == PROBLEM and "nothing recovers them" in bare.text
    masked = findings(resources=["vm:1"], unattended=["vm:1"], masked=["pve-ha-lrm", "pve-ha-crm"])
    named = finding(masked, "ha-masked-with-resources")
    assert "pve-ha-lrm and pve-ha-crm are masked" in named.text and "ha-manager remove vm:1" in named.sentence
    # Masks outlive the package; and nothing else is worth a word beside it.
    assert len(findings(installed=False, unattended=["vm:1"], returned=["x"], watchdog_armed=True)) == 1


def test_resources_beside_a_state_in_ram() -> None:
    found = finding(findings(resources=["ct:7"], state_in_ram=True, on=True), "ha-resources-with-ram-state")
    assert found.severity == WARNING and "ha-manager remove ct:7" in found.code


def test_ha_that_is_used_is_good() -> None:
    assert finding(findings(resources=["ct:7"], on=True, watchdog_armed=True), "ha-in-use").severity == GOOD


def test_ha_that_nobody_uses() -> None:
    found = findings(on=True, running=["pve-ha-lrm.service"], watchdog_armed=True)
    assert "pve-ha-lrm.service" in finding(found, "ha-running-unused").text
    assert finding(found, "ha-watchdog-armed").severity == WARNING and len(found) == 2


def test_ha_that_came_back_is_not_told_twice() -> None:
    (only,) = found = findings(on=True, returned=["pve-ha-crm.service"])
    assert finding(found, "ha-returned") is only and "pve-ha-crm.service" in only.text


def test_ha_that_is_off() -> None:
    assert finding(findings(), "ha-off").severity == GOOD
    (only,) = found = findings(watchdog_until_reboot=True)
    assert finding(found, "ha-watchdog-until-reboot") is only and "nowayout" in only.text
    assert findings(installed=False) == []


@pytest.mark.parametrize(
    ("ha", "state", "unattended"),
    [
        ({}, "not installed", []),
        ({"installed": True, "enabled": True, "resources": ["vm:1"]}, "on", []),
        ({"installed": True, "managers_off": True, "resources": ["vm:1"], "unattended": ["vm:1"]}, "partly off", ["vm:1"]),
        ({"installed": True, "disabled": True, "resources": ["vm:1"]}, "off", ["vm:1"]),
    ],
)
def test_states_of_the_facts(ha: dict[str, Any], state: str, unattended: list[str]) -> None:
    assert (ha_findings.state(ha), ha_findings.nothing_recovers(ha)) == (state, unattended)


def test_everyone_takes_the_same_view() -> None:
    """Facts of node_info, and the database on the node itself."""
    ha = {"installed": True, "disabled": True, "resources": ["vm:1"], "unattended": ["vm:1"]}
    units = {"pve-ha-lrm.service": {"active": "inactive"}, "watchdog-mux.service": {"active": "active"}}
    by_facts = ha_findings.of_facts({"ha": ha, "units": units, "ram_state": {"state": "enabled"}})
    by_status = ha_findings.of_status(["vm:1"], ["pve-ha-lrm"])
    assert [each.id for each in by_facts] == [each.id for each in by_status] == ["ha-masked-with-resources"]
    assert [each.id for each in ha_findings.of_status(["vm:1"], [])] == ["ha-resources-with-ram-state"]
    used = {"installed": True, "enabled": True, "resources": ["vm:1"]}
    in_ram = {"ha": used, "units": units, "ram_state": {"state": "enabled"}}
    assert [each.id for each in ha_findings.of_facts(in_ram)] == ["ha-resources-with-ram-state"]
