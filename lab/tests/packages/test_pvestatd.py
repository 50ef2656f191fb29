# SPDX-License-Identifier: Apache-2.0
"""The double of pvestatd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from lab.packages.build import HERE
from lab.tests.doubles import conftest  # noqa: F401  (makes pmxcfs_lab importable)
from lab.tests.doubles.harness import SECONDS
from pmxcfs_lab import rrd

PROGRAM = HERE / "pve-manager/root/usr/bin/pvestatd"
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; its file has no suffix."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = spec_from_loader("pvestatd", SourceFileLoader("pvestatd", str(PROGRAM)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def inlet(tmp_path: Path) -> Iterator[rrd.Inlet]:
    inlet = rrd.Inlet(str(tmp_path / "s"))
    yield inlet
    inlet.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(settings: str) -> subprocess.Popen[str]:
        (tmp_path / "conf").write_text(settings)
        places = {"PVE_LAB_STATISTICS": str(tmp_path / "conf"), "PVE_LAB_STATISTICS_SOCKET": str(tmp_path / "s")}
        started.append(subprocess.Popen([PROGRAM], env={**os.environ, **places}, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def stop(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0
    return errors


def received(inlet: rrd.Inlet) -> list[rrd.Record]:
    """The records of the next datagram."""
    with socket.socket(fileno=os.dup(inlet.fd)) as waiting:
        waiting.settimeout(SECONDS)
        records, wrong = rrd.parse(waiting.recv(rrd.DATAGRAM).decode())
    assert not wrong
    return records


def test_a_round_is_a_record_of_the_node_of_each_guest_and_of_each_storage(inlet: rrd.Inlet, start: Start) -> None:
    process = start("guests=100 200\nstorages=local\nseconds=0.2\n")
    name = os.uname().nodename.split(".")[0]
    first, second = received(inlet), received(inlet)
    keys = [f"pve-node-9.0/{name}", "pve-vm-9.0/100", "pve-vm-9.0/200", f"pve-storage-9.0/{name}/local"]
    assert [record.key for record in first] == [record.key for record in second] == keys
    assert Path(f"/proc/{process.pid}/comm").read_text() == "pvestatd-double\n"
    said = stop(process)
    assert "lab double" in said and "2 guests" in said and said.endswith("pvestatd stopped\n")


def test_without_guests_there_are_still_the_node_and_its_storages(inlet: rrd.Inlet, start: Start) -> None:
    start("guests=\n")
    assert Counter(record.kind for record in received(inlet)) == {"pve-node-9.0": 1, "pve-storage-9.0": 2}


def test_two_hundred_guests_arrive(inlet: rrd.Inlet, start: Start) -> None:
    start(f"guests={' '.join(str(number) for number in range(100, 300))}\n")
    assert Counter(record.kind for record in received(inlet))["pve-vm-9.0"] == 200


def test_a_round_too_great_for_a_datagram_is_several(program: ModuleType) -> None:
    lines = [f"{number} {'x' * 300}" for number in range(1000)]
    packed = program.datagrams(lines)
    assert b"".join(packed).decode().splitlines() == lines
    assert len(packed) > 1 and max(map(len, packed)) <= program.DATAGRAM <= rrd.DATAGRAM


def test_values_are_repeatable_move_and_are_as_long_as_real_ones(program: ModuleType) -> None:
    settings = program.Settings("guests=100 101")
    one, again, later = (program.records("pve1", settings, now) for now in (1000, 1000, 1010))
    assert one == again

    def values(line: str) -> str:
        return line.partition(":")[2]

    assert all(values(left) != values(right) for left, right in zip(one, later, strict=True))
    assert values(one[1]) != values(one[2]), "each guest has its own"
    assert all(100 < len(line) < 300 for line in one if "storage" not in line)


def test_waits_for_pmxcfs(inlet: rrd.Inlet, start: Start) -> None:
    inlet.close()
    process = start("seconds=0.05\n")
    assert process.stderr is not None
    assert "starting" in process.stderr.readline() and "waiting for pmxcfs" in process.stderr.readline()
    later = rrd.Inlet(inlet.path)
    assert received(later) and "going on" in process.stderr.readline()
    later.close()
    stop(process)


@pytest.mark.parametrize("line", ["guest=1", "guests", "seconds=0", "seconds=soon"])
def test_a_mistake_in_the_settings_is_said(line: str, start: Start) -> None:
    process = start(f"{line}\n")
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1 and repr(line) in errors


def test_takes_no_other_arguments() -> None:
    done = subprocess.run([PROGRAM, "--list"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2 and "lab double" in done.stderr


def test_the_unit_runs_only_where_the_lab_asked_for_statistics() -> None:
    unit = (HERE / "pve-manager/root/usr/lib/systemd/system/pvestatd.service").read_text()
    assert "ConditionPathExists=/etc/pvestatd-lab.conf" in unit and "lab double" in unit
    assert '"/etc/pvestatd-lab.conf"' in PROGRAM.read_text()
