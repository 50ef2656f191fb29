# SPDX-License-Identifier: Apache-2.0
"""Writers planted at known rates on a real ext4, found again in the table: bytes are counted, no time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.writes import writers

pytestmark = pytest.mark.root

KIB, MIB = 1024, 1024 * 1024
CGROUPS = Path("/sys/fs/cgroup")
#: Unit -> bytes of a write, how many, and whether each is made durable.
PLANTED = {
    "alpha.service": (64 * KIB, 192, True),
    "beta.service": (4 * KIB, 768, True),
    "gamma.service": (128 * KIB, 48, False),
}
#: Waits in its control group, writes, says so, and lives on until its input ends.
WRITER = """
import os, sys
sys.stdin.readline()
path, size, count, durable = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for _ in range(count):
    os.write(descriptor, os.urandom(size))
    if durable:
        os.fdatasync(descriptor)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """ext4 with its journal, as Debian makes it, on a loop device."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")
    image, point = tmp_path / "disk", tmp_path / "mounted"
    point.mkdir()
    with open(image, "wb") as stream:
        stream.truncate(256 * MIB)
    # What the kernel would otherwise write in the background, whenever it likes.
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


def device_of(point: Path) -> str:
    number = os.stat(point).st_dev
    return os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))


@contextlib.contextmanager
def control_group(path: Path) -> Iterator[Path]:
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield path
    finally:
        path.rmdir()


@pytest.fixture
def own_cgroups(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group that stands for the root of all, with a system.slice whose units have io counters."""
    needed = {"io", "memory"}
    try:
        has, on = ((CGROUPS / f"cgroup.{name}").read_text().split() for name in ("controllers", "subtree_control"))
    except OSError:
        pytest.skip("no cgroup v2 at /sys/fs/cgroup")
    if not needed <= set(has):
        pytest.skip("cgroup v2 does not have the controllers io and memory here")
    if not needed <= set(on):
        pytest.skip("the controllers io and memory are off, and turning them on would change the machine")
    with control_group(CGROUPS / f"pveguard-test-{os.getpid()}") as top:
        (top / "cgroup.subtree_control").write_text("+io +memory")
        with control_group(top / "system.slice") as system:
            (system / "cgroup.subtree_control").write_text("+io +memory")
            yield top


@pytest.fixture
def any_cgroups() -> Iterator[Path]:
    """A control group that only gives processes a unit: in systemd's own hierarchy of version 1, or in version 2."""
    places = [each for each in (CGROUPS, CGROUPS / "systemd", CGROUPS / "unified") if (each / "cgroup.procs").exists()]
    if not places or os.geteuid() != 0:
        pytest.skip("no control groups here")
    with control_group(places[0] / f"pveguard-test-{os.getpid()}") as top, control_group(top / "system.slice"):
        yield top


@contextlib.contextmanager
def planted(top: Path, point: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Each writer in the control group of its unit, before it has written."""
    with contextlib.ExitStack() as stack:
        found = {}
        for unit, (size, count, durable) in PLANTED.items():
            group = stack.enter_context(control_group(top / "system.slice" / unit))
            command = [sys.executable, "-c", WRITER, str(point / unit), str(size), str(count), str(durable)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(end, process)
            (group / "cgroup.procs").write_text(str(process.pid))
            found[unit] = process
        yield found


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin and process.stdout
    process.stdin.close()
    process.wait()
    process.stdout.close()


def root_of(folder: Path, mounted: str, pids: list[int]) -> Path:
    """A root whose /sys is the machine's, with these mounts and processes alone."""
    for path, text in (
        ("proc/self/mountinfo", mounted),
        ("proc/uptime", Path("/proc/uptime").read_text()),
        ("proc/sys/kernel/random/boot_id", Path("/proc/sys/kernel/random/boot_id").read_text()),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "sys").symlink_to("/sys")
    for pid in pids:
        (folder / f"proc/{pid}").symlink_to(f"/proc/{pid}")
    return folder


def write_all(processes: dict[str, subprocess.Popen[str]], point: Path) -> None:
    for process in processes.values():
        assert process.stdin and process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes.values():
        assert process.stdout and process.stdout.readline() == "done\n"
    subprocess.run(["sync", "--file-system", point], check=True)


def check(read: Callable[[], dict[str, Any]], source: str, act: Callable[[], None]) -> None:
    before = read()
    act()
    made = writers.table(before, read())
    assert made is not None and made["source"] == source
    found = {row["unit"]: row["bytes"] for row in made["rows"] if row["class"] == "service"}
    assert set(found) == set(PLANTED)
    for unit, (size, count, _) in PLANTED.items():
        assert found[unit] == pytest.approx(size * count, rel=0.05), unit
    assert made["total_bytes"] == sum(found.values()) + made["rest_bytes"], "no guests here"
    assert made["rest_bytes"] >= 0, "the journal of ext4, and what else the kernel writes for itself"


def test_by_control_group_within_five_percent(ext4: Path, own_cgroups: Path, tmp_path: Path) -> None:
    mounted = "50 22 0:26 / /cgroups rw - cgroup2 cgroup2 rw\n"
    (tmp_path / "root").mkdir()
    root = root_of(tmp_path / "root", mounted, [])
    (root / "cgroups").symlink_to(own_cgroups)
    disk = device_of(ext4)
    with planted(own_cgroups, ext4) as processes:
        check(lambda: writers.reading(root, disks=[disk]), "cgroup", lambda: write_all(processes, ext4))


def test_by_process_within_five_percent(ext4: Path, any_cgroups: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    disk = device_of(ext4)
    with planted(any_cgroups, ext4) as processes:
        root = root_of(tmp_path / "root", "", [process.pid for process in processes.values()])
        check(lambda: writers.reading(root, disks=[disk]), "proc", lambda: write_all(processes, ext4))
