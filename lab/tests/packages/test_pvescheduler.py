# SPDX-License-Identifier: Apache-2.0
"""The doubles of pvescheduler and pveversion."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.packages.build import HERE
from lab.tests.doubles.harness import SECONDS, wait_for

BIN = HERE / "pve-manager/root/usr/bin"
SCHEDULER = BIN / "pvescheduler"

# Real programs with real periods.
pytestmark = pytest.mark.slow


@pytest.fixture
def pve(tmp_path: Path) -> Path:
    pve = tmp_path / "pve"
    (pve / "priv/lock").mkdir(parents=True)
    return pve


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(pve: Path, tmp_path: Path) -> Iterator[Start]:
    started = []

    def run(*prefix: str, seconds: float = 0.1) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, str(SCHEDULER)],
            env={**os.environ, "PVE_LAB_ETC_PVE": str(pve), "PVE_LAB_SCHEDULER_SECONDS": str(seconds)},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

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


def said(process: subprocess.Popen[str], text: str) -> str:
    """What it has said since the last call, once ``text`` is in it."""
    assert process.stderr is not None
    found, deadline = "", time.monotonic() + SECONDS
    while text not in found:
        left = max(0.0, deadline - time.monotonic())
        assert select.select([process.stderr], [], [], left)[0], f"it does not say {text!r} but: {found}"
        more = os.read(process.stderr.fileno(), 65536).decode()
        assert more, f"it ended without {text!r}: {found}"
        found += more
    return found


def changes_of_one_round(start: Start, tmp_path: Path) -> list[str]:
    """The calls that change files, as strace prints them, between the start and the first rest."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    calls = "mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,utimensat,chmod,fchmod"
    # -D: the program, not strace, is our child.
    process = start("strace", "-D", "-o", str(trace), "-e", f"trace={calls},rt_sigtimedwait", seconds=60)
    wait_for("its first rest", lambda: trace.exists() and "rt_sigtimedwait" in trace.read_text())
    stop(process)
    return trace.read_text().split("rt_sigtimedwait")[0].splitlines()


def test_one_minute_is_two_locks_made_and_removed(pve: Path, start: Start, tmp_path: Path) -> None:
    lines = changes_of_one_round(start, tmp_path)
    assert [(line.split("(")[0], line.split('"')[1], line.split("=")[-1].strip()) for line in lines] == [
        ("mkdirat", "priv/lock/file-jobs_cfg", "0"),
        ("unlinkat", "priv/lock/file-jobs_cfg", "0"),
        ("mkdirat", "priv/lock/file-replication_cfg", "0"),
        ("unlinkat", "priv/lock/file-replication_cfg", "0"),
    ]
    assert list((pve / "priv/lock").iterdir()) == []


def test_a_lock_that_is_held_is_asked_for_and_left_alone(pve: Path, start: Start, tmp_path: Path) -> None:
    (pve / "priv/lock/file-jobs_cfg").mkdir()
    lines = changes_of_one_round(start, tmp_path)
    assert [line.split("(")[0] for line in lines if line.endswith("= 0")] == ["utimensat", "mkdirat", "unlinkat"]
    assert [path.name for path in (pve / "priv/lock").iterdir()] == ["file-jobs_cfg"]


def test_lock_directory_is_made_where_it_is_missing(pve: Path, start: Start) -> None:
    (pve / "priv/lock").rmdir()
    (pve / "priv").rmdir()
    process = start()
    wait_for("priv/lock", (pve / "priv/lock").is_dir)
    assert "waiting" not in stop(process)


def test_takes_no_other_arguments() -> None:
    done = subprocess.run([SCHEDULER, "--list"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2 and "lab double" in done.stderr


def test_waits_quietly_for_etc_pve(pve: Path, start: Start) -> None:
    away = pve.with_name("away")
    pve.rename(away)
    process = start()
    text = said(process, "waiting for")
    time.sleep(0.5)
    assert not pve.exists()
    away.rename(pve)
    text += said(process, "going on") + stop(process)
    lines = text.splitlines()
    assert lines[0] == "starting pvescheduler: lab double for tests, it runs no job"
    assert [line.split()[0] for line in lines[1:3]] == ["waiting", f"{pve}"]
    assert lines[3:] == ["pvescheduler stopped"]


def test_nothing_is_written_where_etc_pve_is_not_mounted(tmp_path: Path) -> None:
    """As root of a mount namespace of its own, with a plain directory at /etc/pve."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    script = f"""
        mount -t tmpfs none /etc && mkdir -p /etc/pve/priv/lock || exit 9
        {SCHEDULER} 2> {tmp_path}/log &
        for i in $(seq 600); do grep -q waiting {tmp_path}/log && break; sleep 0.1; done
        sleep 0.5
        kill $!; wait $!; cat {tmp_path}/log >&2
        rmdir /etc/pve/priv/lock /etc/pve/priv && rmdir /etc/pve
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PVE_LAB_SCHEDULER_SECONDS": "0.1"},
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("mount namespaces are not allowed here")
    assert done.returncode == 0, done.stderr
    assert "not mounted" in done.stderr


# --- pveversion ---------------------------------------------------------------------------------------------


def pveversion(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    packages = {
        "pve-manager": "ii 9.1.4+lab1", "pve-cluster": "ii 9.1.6+lab1", "corosync": "rc 3.1.9-2",
    }  # fmt: skip
    tools = tmp_path / "tools"
    tools.mkdir()
    cases = "".join(f"{name}) printf '{text}';;\n" for name, text in packages.items())
    (tools / "dpkg-query").write_text(f'#!/bin/sh\nshift 3\ncase "$1" in\n{cases}*) exit 1;;\nesac\n')
    (tools / "dpkg-query").chmod(0o755)
    return subprocess.run(
        [BIN / "pveversion", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )


def test_pveversion(tmp_path: Path) -> None:
    kernel = os.uname().release
    done = pveversion(tmp_path)
    assert done.stdout == f"pve-manager/9.1.4+lab1/1ab0000000000000 (running kernel: {kernel})\n"


def test_pveversion_verbose(tmp_path: Path) -> None:
    lines = pveversion(tmp_path, "-v").stdout.splitlines()
    assert lines[1:] == [
        "pve-manager: 9.1.4+lab1 (running version: 9.1.4+lab1/1ab0000000000000)",
        "corosync: not correctly installed",
        "pve-cluster: 9.1.6+lab1",
        "pve-ha-manager: not correctly installed",
    ]


def test_pveversion_usage(tmp_path: Path) -> None:
    done = pveversion(tmp_path, "--what")
    assert done.returncode == 255 and "lab double" in done.stderr
