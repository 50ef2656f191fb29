# SPDX-License-Identifier: Apache-2.0
"""Settings of general roles, each found with where it is, who sets it, what it breaks and its undo; none on a clean node."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import PROBLEM, WARNING, Finding

from tests.findings import finding, well_said
from tests.hardening.node import JUDGES, Node, cis, clean, dev_sec
from tests.hardening.real_sshd import SSHD

#: A clean node lacks this; nobody has set it, and it breaks nothing.
OPEN_SSHD = {f"hardening-sshd-{each}" for each in ("root-password", "passwords", "loose", "weak-algorithms", "keys-only-on-pve")}
MISSING = {"hardening-accounts-root-without-factor", "hardening-firewall-off", *(OPEN_SSHD if SSHD else ())}


@pytest.mark.parametrize("release", [8, 9])
def test_a_clean_node_has_nothing_harmful(tmp_path: Path, release: int) -> None:
    node = clean(tmp_path, release)
    facts = node.facts()["hardening"]
    assert {area: each["error"] for area, each in facts.items() if not each["known"]} == {}
    assert {each.id: each.text for each in node.found()}.keys() == MISSING
    assert {each.severity for each in node.found()} == {WARNING}
    assert {argv[0] for argv in node.calls} == {"systemctl", "apt-config", "chronyc", "ip", *(("sshd", "cat") if SSHD else ())}
    node.write("/etc/pve/firewall/cluster.fw", "[OPTIONS]\nenable: 1\n")
    # With a second factor for root and the firewall on there is nothing to say but how open sshd is.
    node.write(
        "/etc/pve/priv/tfa.cfg",
        '{"users": {"root@pam": {"totp": [{"info": {"enable": true}, "entry": "x"}], "recovery": '
        '{"secret": "s", "entries": ["h1", null]}}}}',
    )
    assert node.ids() == MISSING - {"hardening-accounts-root-without-factor", "hardening-firewall-off"}


@pytest.mark.parametrize("release", [8, 9])
def test_a_look_changes_nothing(tmp_path: Path, release: int) -> None:
    node = cis(dev_sec(clean(tmp_path, release)))
    before = node.picture()
    node.look()
    assert node.picture() == before


def told(found: list[Finding], id: str, severity: str, *parts: str, undo: str = "") -> Finding:
    (each,) = [each for each in found if each.id == id and all(part in each.sentence for part in parts)]
    well_said(each)
    assert each.severity == severity, each
    assert undo in each.code, each.code
    return each


def test_settings_of_dev_sec(tmp_path: Path) -> None:
    found = dev_sec(clean(tmp_path)).found()
    finding(found, "hardening-sysctl-forwarding-off")
    told(
        found,
        "hardening-sysctl-forwarding-off",
        WARNING,
        "net.ipv4.ip_forward = 0 in /etc/sysctl.conf",
        "dev-sec",
        "SDN",
        undo="sysctl -w net.ipv4.ip_forward=1",
    )
    finding(found, "hardening-sysctl-rp-filter-strict")
    told(
        found,
        "hardening-sysctl-rp-filter-strict",
        PROBLEM,
        "rp_filter = 1 in /etc/sysctl.conf",
        "in the running kernel",
        "ring",
        undo="sysctl -w net.ipv4.conf.all.rp_filter=2",
    )
    finding(found, "hardening-sysctl-log-martians")
    modules = [each for each in found if each.id == "hardening-sysctl-module-off"]
    assert [each.severity for each in modules] == [PROBLEM, WARNING]
    assert (
        "install vfat /bin/true in /etc/modprobe.d/dev-sec.conf" in modules[0].text
        and "EFI" in modules[0].means
    )
    assert "squashfs" in modules[1].text and "udf" in modules[1].text and "set by: dev-sec" in modules[1].text
    assert "sctp" in modules[1].text and "GFS2" in modules[1].means
    finding(found, "hardening-auditd-keeps-all")
    assert finding(found, "hardening-auditd-full-stops").severity == WARNING
    hidden = finding(found, "hardening-others-hidepid")
    assert (
        "/etc/fstab" in hidden.text
        and "lxc-attach" in hidden.means
        and "remount,hidepid=0 /proc" in hidden.code
    )
    assert "umask 027 in /etc/login.defs" in finding(found, "hardening-others-umask").text
    if SSHD:
        from_all = "(from pve1 (10.0.0.11), pve2 (10.0.0.12), pve3 (10.0.0.13); /etc/ssh/sshd_config:"
        told(
            found,
            "hardening-sshd-root-locked-out",
            PROBLEM,
            f"PermitRootLogin no keeps root out {from_all}4, set by: dev-sec)",
            f"AllowUsers operator leaves root out {from_all}21, set by: dev-sec)",
            undo="sed -i '4s/^[[:space:]]*permitrootlogin/#&/I' /etc/ssh/sshd_config",
        )
        told(found, "hardening-sshd-few-tries", WARNING, "MaxAuthTries is 2", undo="systemctl reload ssh")
        finding(found, "hardening-sshd-no-include")
        told(
            found,
            "hardening-sshd-no-socket-forwarding",
            PROBLEM,
            "AllowTcpForwarding no: sshd then forwards no UNIX socket either",
            f"{from_all}23, set by: dev-sec)",
            undo="sed -i '23s/^[[:space:]]*allowtcpforwarding/#&/I' /etc/ssh/sshd_config",
        )
    of_sshd = ("root-locked-out", "few-tries", "no-include", "no-socket-forwarding")
    assert {each.id for each in found} - MISSING == {
        *(f"hardening-sshd-{each}" for each in of_sshd if SSHD),
        "hardening-sysctl-forwarding-off",
        "hardening-sysctl-rp-filter-strict",
        "hardening-sysctl-log-martians",
        "hardening-sysctl-module-off",
        "hardening-auditd-keeps-all",
        "hardening-auditd-full-stops",
        "hardening-others-hidepid",
        "hardening-others-umask",
    }


def test_settings_of_a_cis_role(tmp_path: Path) -> None:
    found = cis(clean(tmp_path)).found()
    told(
        found,
        "hardening-sysctl-rp-filter-strict",
        PROBLEM,
        "/etc/sysctl.d/60-netipv4_sysctl.conf",
        "a CIS role",
    )
    told(
        found,
        "hardening-sysctl-module-off",
        WARNING,
        "usb-storage",
        "overlay",
        "passthrough",
        undo="/etc/modprobe.d/CIS.conf",
    )
    if SSHD:
        out = finding(found, "hardening-sshd-root-locked-out")
        assert "AllowUsers vagrant leaves root out" in out.text and "PermitRootLogin no" in out.text
        assert "DisableForwarding yes" in finding(found, "hardening-sshd-no-socket-forwarding").text
        # Four tries are enough, and its algorithms leave RSA alone.
        assert not {each.id for each in found} & {"hardening-sshd-few-tries", "hardening-sshd-no-rsa"}
    lock = finding(found, "hardening-others-faillock-root")
    assert (
        lock.severity == PROBLEM and "root@pam" in lock.means and "faillock --user root --reset" in lock.code
    )
    assert "deny = 3" in finding(found, "hardening-others-faillock-few").text
    umask = finding(found, "hardening-others-umask")
    assert "umask 027 in /etc/login.defs" in umask.text and "umask 0027 in /root/.bash_profile" in umask.text
    noexec = finding(found, "hardening-others-noexec")
    assert "/tmp is mounted noexec" in noexec.text and "/var/tmp noexec in /etc/fstab" in noexec.text
    assert "mount -o remount,exec /tmp" in noexec.code and "/etc/systemd/system/tmp.mount" in noexec.code
    assert "systemctl disable --now ufw" in finding(found, "hardening-firewall-second").code
    assert "systemctl disable --now systemd-timesyncd" in finding(found, "hardening-others-time").code
    full = finding(found, "hardening-auditd-full-stops")
    assert (
        full.severity == PROBLEM and "disk_full_action = HALT" in full.text and "stops the node" in full.means
    )
    assert "-f 2" in finding(found, "hardening-auditd-panics").text
    assert "-e 2" in finding(found, "hardening-auditd-immutable").text
    assert found == sorted(
        found, key=lambda each: ["problem", "warning", "unknown", "good"].index(each.severity)
    )


def test_the_undo_takes_each_setting_of_a_file_back(tmp_path: Path) -> None:
    """Those parts of what is told that change files, done by a shell that has only sed, and nothing of them is told any more."""
    node = cis(dev_sec(clean(tmp_path / "node")))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sed").symlink_to(shutil.which("sed") or "")
    for each in node.found():
        if "sed " in each.code:
            command = re.sub(r"(?<= )/(?=(etc|root)/)", f"{node.root}/", each.code)
            assert not re.search(r" /(etc|root|boot)/", command)
            subprocess.run(
                ["/bin/bash", "-c", command],
                env={"PATH": str(tmp_path / "bin")},
                capture_output=True,
                check=False,
            )
    assert not {id for id in node.ids() if id.startswith("hardening-sshd-")} - OPEN_SSHD - {"hardening-sshd-no-include"}
    facts: dict[str, Any] = node.facts()["hardening"]
    # This node uses no IPv6.
    assert [line["key"] for line in facts["sysctl"]["set"]] == ["net.ipv6.conf.all.disable_ipv6"]
    assert facts["sysctl"]["modules"] == []
    assert facts["others"]["umask"] == [] and facts["others"]["faillock"]["root"] == []
    assert [
        each for each in facts["others"]["mounts"] + facts["others"]["hidepid"] if each["where"] != "running"
    ] == []
    assert {rule["what"] for rule in facts["auditd"]["rules"]} == set()
    assert set(facts["auditd"]["actions"].values()) == {"rotate", "syslog"}


@pytest.mark.parametrize("apply", [dev_sec, cis])
def test_what_breaks_proxmox_is_not_told_of_a_plain_host(tmp_path: Path, apply: Any) -> None:
    node: Node = apply(clean(tmp_path))
    node.active = ["chrony.service"]
    facts = {**node.facts(), "packages": {"pve-manager": None, "pve-cluster": None}}
    assert {each.id for judge in JUDGES for each in judge.of_node(facts, {})} <= OPEN_SSHD | {"hardening-sshd-no-include"}
