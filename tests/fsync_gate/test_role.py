# SPDX-License-Identifier: Apache-2.0
"""The role played against this machine: who is measured, refused and remembered, and the proof by a power cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.gates import power_ledger

from tests.write_report.test_roles import ROOT, play

from .test_power_ledger import writers

pytestmark = pytest.mark.slow
ROLE = [{"name": "fsync_gate"}]


def words(output: str) -> str:
    """Ansible breaks lines where it likes."""
    return " ".join(output.split())


def task(output: str, name: str) -> str:
    """What the task said whose name begins so, "" when it was skipped by all."""
    return output.partition(name)[2].partition("\nTASK")[0]


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "disk").mkdir()
    return {
        "fsync_gate_path": str(tmp_path / "disk"),
        "fsync_gate_duration": 0.2,
        "pveguard_reports_dir": str(tmp_path / "reports"),
    }


def result(tmp_path: Path, host: str, kind: str = "fsync_gate") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((tmp_path / "reports" / kind / f"{host}.json").read_text())
    return value


def test_who_joins_is_refused_who_stays_is_warned_a_member_is_remembered(
    tmp_path: Path, base: dict[str, Any]
) -> None:
    cache = tmp_path / "node/fsync_gate.json"
    arguments = ("-e", f"__fsync_gate_cache_file={cache}")
    hosts = {
        name: {**base, "fsync_gate_min_fsyncs": 1000000000, "pveguard_plan": {"action": name}}
        for name in ("join", "standalone", "adopt")
    }
    code, output = play(tmp_path, hosts, ROLE, "--check", *arguments)
    assert code == 2, output
    assert not cache.exists() and not (tmp_path / "reports").exists(), "check mode stores nothing"

    code, output = play(tmp_path, hosts, ROLE, *arguments)
    assert code == 2, output
    assert "fatal: [join]" in output and "1,000,000,000 (fsync_gate_min_fsyncs)" in output
    assert "ok: [standalone]" in output and "ok: [adopt]" in output and "[WARNING]" in output
    assert "changed=1" not in output
    assert not list((tmp_path / "disk").iterdir())
    for name in hosts:
        saved = result(tmp_path, name)
        assert saved["schema"] == "pveguard-fsync-gate" and saved["host"] == name
        assert saved["result"]["verdict"] == "fail" and set(saved["result"]["methods"]) == {
            "pveperf",
            "fdatasync",
        }
        assert [entry["time"] for entry in saved["history"]] == [saved["time"]]
        assert "methods" not in saved["history"][0] and saved["history"][0]["p99_ms"] > 0
    assert json.loads(cache.read_text())["result"]["time"] == result(tmp_path, "adopt")["time"]

    before = result(tmp_path, "adopt")["time"]
    time.sleep(1.1)  # the times of results have seconds
    code, output = play(tmp_path, hosts, ROLE, *arguments)
    assert "[adopt]" not in task(output, "Measure how fast"), "no member waits for another where all results hold"
    assert "ok: [adopt]" in task(output, "Take a member's last result")
    assert "[join]" not in task(output, "Take a member's last result"), "who joins is measured"
    assert result(tmp_path, "adopt")["result"]["cached"] and result(tmp_path, "adopt")["time"] == before
    assert len(result(tmp_path, "adopt")["history"]) == 1
    saved = result(tmp_path, "standalone")
    assert not saved["result"]["cached"] and len(saved["history"]) == 2
    assert saved["result"]["drift"]["since"] == saved["history"][0]["time"]


def test_check_mode_can_leave_the_disk_alone(tmp_path: Path, base: dict[str, Any]) -> None:
    code, output = play(tmp_path, {"pve1": {**base, "fsync_gate_in_check_mode": False}}, ROLE, "--check")
    assert code == 0, output
    assert "not measured in check mode (fsync_gate_in_check_mode is false)" in words(output)
    assert "ok: [pve1]" not in task(output, "Measure how fast")


def test_a_missing_path_is_a_clear_verdict(tmp_path: Path, base: dict[str, Any]) -> None:
    hosts = {"pve1": {**base, "fsync_gate_path": str(tmp_path / "none"), "pveguard_gate_enforce": "always"}}
    code, output = play(tmp_path, hosts, ROLE)
    assert code == 2 and f"{tmp_path}/none does not exist" in words(output)
    assert "Traceback" not in output and "MODULE FAILURE" not in output


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def prepared(tmp_path: Path, base: dict[str, Any], started: list[subprocess.Popen[bytes]]) -> Path:
    """A ledger whose writer was killed, as a power cut would; the file of acknowledgements."""
    notes = tmp_path / "reports/power_cut/pve1.acknowledged"
    host = {
        **base,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_user": "",
    }
    (tmp_path / "one.yml").write_text(yaml.safe_dump({"all": {"hosts": {"pve1": host}}}))
    play_file = [
        {
            "name": "Play",
            "hosts": "all",
            "gather_facts": False,
            "tasks": [{"name": "Include", "ansible.builtin.include_role": {"name": "fsync_gate"}}],
        }
    ]
    (tmp_path / "one_play.yml").write_text(yaml.safe_dump(play_file))
    argv = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        *(
            "-i",
            str(tmp_path / "one.yml"),
            str(tmp_path / "one_play.yml"),
            "-e",
            "fsync_gate_power_cut=prepare",
        ),
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
    )
    started.append(process)
    deadline = time.monotonic() + 120
    while not (notes.exists() and len(notes.read_text().splitlines()) > 50):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
        time.sleep(0.05)
    (writer,) = writers(tmp_path / "disk")
    os.kill(writer, signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert "not by the reset button" in words(output)
    return notes


def rebooted(notes: Path) -> None:
    """As if another boot had written it."""
    head, rest = notes.read_text().split("\n", 1)
    notes.write_text(json.dumps({**json.loads(head), "boot_id": "of-an-earlier-boot"}) + "\n" + rest)


@pytest.mark.campaign
def test_power_cut(tmp_path: Path, base: dict[str, Any], started: list[subprocess.Popen[bytes]]) -> None:
    hosts = {"pve1": {**base, "pveguard_gate_enforce": "always"}}
    verify = ("-e", "fsync_gate_power_cut=verify")
    code, output = play(tmp_path, hosts, ROLE, *verify)
    assert code == 2 and "fsync_gate_power_cut=prepare first" in words(output)

    notes = prepared(tmp_path, base, started)
    code, output = play(tmp_path, hosts, ROLE, *verify)
    assert code == 2 and "has not lost its power" in words(output)
    assert notes.exists() and power_ledger.exists(str(tmp_path / "disk")), "it may still be cut"

    rebooted(notes)
    code, output = play(tmp_path, hosts, ROLE, *verify, "--check")
    assert code == 0 and notes.exists() and power_ledger.exists(str(tmp_path / "disk"))
    code, output = play(tmp_path, hosts, ROLE, *verify)
    assert code == 0 and "stores what it acknowledges" in words(output), output
    assert result(tmp_path, "pve1", "power_cut")["verdict"] == "acquitted"
    assert not notes.exists() and not list((tmp_path / "disk").iterdir())

    notes = prepared(tmp_path, base, started)
    rebooted(notes)
    with (tmp_path / "disk" / power_ledger.DIRECTORY / power_ledger.FILE).open("r+b") as stream:
        stream.write(bytes(20 * power_ledger.RECORD))
    code, output = play(tmp_path, hosts, ROLE, *verify)
    assert code == 2 and "acknowledges what it has not stored" in words(output)
    assert result(tmp_path, "pve1", "power_cut")["verdict"] == "convicted"
    assert not list((tmp_path / "disk").iterdir())

    code, output = play(tmp_path, hosts, ROLE)
    assert code == 2, "a convicted disk does not pass the gate"
    assert "as a power cut proved" in words(output)
    assert result(tmp_path, "pve1")["result"]["reason"] == "lying"


def test_a_live_member_does_not_lose_its_power_by_mistake(tmp_path: Path, base: dict[str, Any]) -> None:
    hosts = {"pve1": {**base, "pveguard_plan": {"action": "adopt"}}}
    code, output = play(tmp_path, hosts, ROLE, "-e", "fsync_gate_power_cut=prepare")
    assert code == 2 and "fsync_gate_power_cut_confirm=pve1" in words(output)
    assert not list((tmp_path / "disk").iterdir())
