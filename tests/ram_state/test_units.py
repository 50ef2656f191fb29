# SPDX-License-Identifier: Apache-2.0
"""The units: no ordering cycle, the right order, and hardening that systemd itself calls OK."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.pveguard.filters.noise import noise

ROLE = Path(__file__).resolve().parents[2] / "roles/ram_state"
NAMES = {
    r"var-lib-pve\x2dcluster.mount": "ram.mount",
    r"var-lib-pve\x2dcluster-backup.mount": "backup.mount",
    "pveguard-state.service": "pveguard-state.service",
    "pveguard-state-watch.service": "pveguard-state-watch.service",
}
# The order of the package's units as they are on Proxmox VE; their programs are of no matter here.
STOCK = {
    "pve-cluster.service": """[Unit]
Wants=corosync.service
Wants=rrdcached.service
Before=corosync.service cron.service
After=network.target sys-fs-fuse-connections.mount time-sync.target rrdcached.service
DefaultDependencies=no
Before=shutdown.target
Conflicts=shutdown.target
[Service]
Type=forking
ExecStart=/bin/true
PIDFile=/run/pve-cluster.pid
TimeoutStopSec=10
""",
    "corosync.service": """[Unit]
Requires=network-online.target
After=network-online.target
[Service]
ExecStart=/bin/true
""",
    "var-lib.mount": "[Mount]\nWhat=/dev/vdb\nWhere=/var/lib\nType=ext4\n",
    "cron.service": "[Service]\nExecStart=/bin/true\n",
}
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    for name, file in NAMES.items():
        text = (ROLE / "files/units" / file).read_text().replace("@NOSWAP@", "")
        (tmp_path / name).write_text(re.sub(r"/usr/local/sbin/pve-state", "/bin/true", text))
    folder = tmp_path / "pve-cluster.service.d"
    folder.mkdir()
    drop_in = (ROLE / "files/units/pve-cluster.conf").read_text()
    (folder / "pveguard.conf").write_text(drop_in.replace("/usr/local/sbin/pve-state", "/bin/true"))
    for name, text in STOCK.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@needs_systemd
def test_no_cycle_and_no_mistake(units: Path) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "pve-cluster.service",
            "multi-user.target",
            "umount.target",
        ],
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if re.search(r"pve|cycle", line)]
    assert ours == []


@needs_systemd
def test_a_cycle_would_be_found(units: Path) -> None:
    watch = units / "pveguard-state-watch.service"
    watch.write_text(watch.read_text().replace("[Unit]", "[Unit]\nBefore=pveguard-state.service"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "pve-cluster.service"],
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cycle" in done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", ["pveguard-state.service", "pveguard-state-watch.service"])
def test_exposure(units: Path, unit: str) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--threshold=30",
            str(units / unit),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_the_order_that_matters() -> None:
    def text(name: str) -> str:
        return (ROLE / "files/units" / name).read_text()

    state, watch, drop_in = (
        text("pveguard-state.service"),
        text("pveguard-state-watch.service"),
        text("pve-cluster.conf"),
    )
    assert "Before=pve-cluster.service" in state and "DefaultDependencies=no" in state
    # At shutdown the watcher stops before the daemon, the final save comes after it, the mount goes last. A restart of
    # the daemon leaves the watcher, which has nothing of the database open.
    assert re.search(r"^After=.*pve-cluster\.service", watch, re.MULTILINE) and "PartOf=" not in watch
    assert "ExecStop=" not in drop_in
    assert re.search(r"^ExecStopPost=-/usr/local/sbin/pve-state save --if-enabled$", drop_in, re.MULTILINE)
    assert re.search(r"^After=.*var-lib-pve\\x2dcluster\.mount", state, re.MULTILINE)
    assert (
        "Requires=pveguard-state.service" in drop_in and "RequiresMountsFor=/var/lib/pve-cluster" in drop_in
    )
    for name in ("ram.mount", "backup.mount"):
        assert "[Install]" not in text(name) and "DefaultDependencies=no" in text(name)
        assert "Conflicts=umount.target" in text(name) and "Before=umount.target" in text(name)
    assert "RequiresMountsFor=/var/lib/pveguard/state" in state


def test_the_metrics_can_be_written_and_outlive_the_watcher_and_an_exporter_reaches_them() -> None:
    text = (ROLE / "files/units/pveguard-state-watch.service").read_text()
    for line in ("RuntimeDirectory=pveguard", "RuntimeDirectoryMode=0755", "RuntimeDirectoryPreserve=yes"):
        assert f"\n{line}\n" in text


def test_the_role_hands_over_every_unit_file_and_says_the_program_s_defaults() -> None:
    from .conftest import load_program

    program = load_program()
    names = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__ram_state_units"]
    assert set(names) == set(NAMES)
    assert {program.MOUNT_UNIT, program.BACKUP_UNIT, program.STATE_UNIT, program.WATCH_UNIT} == set(names)
    for name, value in names.items():
        assert NAMES[name] in value
    assert {p.name for p in (ROLE / "files/units").iterdir()} == {*NAMES.values(), "pve-cluster.conf"}
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = {name: spec for entry in specs.values() for name, spec in entry["options"].items()}
    assert {name: spec["default"] for name, spec in options.items()} == defaults
    # The list of noise is written once, and the role asks for it.
    assert defaults["ram_state_noise"] == "{{ [] | pveguard_noise }}"
    for name, value in program.DEFAULTS.items():
        assert (noise([]) if name == "noise" else defaults[f"ram_state_{name}"]) == value
