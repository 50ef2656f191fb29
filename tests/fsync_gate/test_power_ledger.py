# SPDX-License-Identifier: Apache-2.0
"""A disk that lies is convicted by its ledger, an honest one never is, wherever the power goes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.gates import power_cut, power_ledger
from ansible.module_utils.pveguard.gates.power_ledger import RECORD, SLOTS, Found, judge

from tests.mounts import own_mounts
from tests.ram_state.disk import Crash, Disk, put

RUN = "0123456789abcdef" * 2
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def ledger(highest: int) -> list[int | None]:
    """The slots of an honest disk after so many records."""
    slots: list[int | None] = [None] * SLOTS
    for number in range(max(1, highest - SLOTS + 1), highest + 1):
        slots[number % SLOTS] = number
    return slots


def test_a_record_is_whole_or_not_one() -> None:
    block = power_ledger.record(RUN, 7)
    assert len(block) == RECORD and power_ledger.parse(block, RUN) == (7, 0)
    assert power_ledger.parse(block, "f" * 32) is None, "of another run"
    for torn in (block[:512] + bytes(RECORD - 512), block[:2048] + power_ledger.record(RUN, 6)[2048:], b""):
        assert power_ledger.parse(torn, RUN) is None


@pytest.mark.parametrize("highest", [1, 5, SLOTS - 1, SLOTS, SLOTS + 1, 5000])
def test_verdicts(highest: int) -> None:
    good = ledger(highest)
    assert judge(Found(good, False), highest)["verdict"] == "acquitted"
    # Written, and on its way to the controller when the power went.
    assert judge(Found(good, False), max(1, highest - 3))["verdict"] == "acquitted"
    # The record that was being written tore the one it replaced.
    torn = list(good)
    torn[(highest + 1) % SLOTS] = None
    assert judge(Found(torn, False), highest)["verdict"] == "acquitted"

    lost = list(good)
    lost[highest % SLOTS] = highest - SLOTS if highest > SLOTS else None
    found = judge(Found(lost, False), highest)
    assert (found["verdict"], found["lost"]) == ("convicted", 1)
    assert f"{highest}; the highest found is {highest - 1}" in found["evidence"]
    if highest > 2:
        hole = list(good)
        hole[(highest - 1) % SLOTS] = None
        assert judge(Found(hole, False), highest)["verdict"] == "convicted"


def test_what_proves_nothing_and_what_proves_all() -> None:
    assert judge(Found(ledger(5), False), 0)["verdict"] == "inconclusive"
    assert judge(Found(ledger(5), True), 5)["verdict"] == "inconclusive"
    gone = judge(None, 2000)
    assert (gone["verdict"], gone["lost"]) == ("convicted", SLOTS)


def test_on_a_real_file_system(tmp_path: Path) -> None:
    descriptor = power_ledger.create(str(tmp_path), RUN)
    for number in range(1, SLOTS + 11):
        power_ledger.append(descriptor, RUN, number)
    with pytest.raises(OSError, match="written by another run"):
        power_ledger.remove(str(tmp_path))
    found = power_ledger.read(str(tmp_path), RUN)
    assert found == Found(ledger(SLOTS + 10), False)
    power_ledger.stop(descriptor, RUN)
    found = power_ledger.read(str(tmp_path), RUN)
    assert found is not None and found.stopped
    os.close(descriptor)
    assert power_ledger.remove(str(tmp_path)) and not power_ledger.remove(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert power_ledger.read(str(tmp_path), RUN) is None


@pytest.fixture
def disk() -> Iterator[Disk]:
    pytest.importorskip("fuse", exc_type=OSError)
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    made = Disk(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
def test_power_that_fails_at_any_write(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk notes every write and fsync; the cut is made in the notes, so that each of these is one of many."""
    slots = 64  # so that the ledger goes around several times
    monkeypatch.setattr(power_ledger, "SLOTS", slots)
    descriptor = power_ledger.create(str(disk.path), RUN)
    acknowledged_at = [disk.count]
    for number in range(1, 301):
        power_ledger.append(descriptor, RUN, number)
        acknowledged_at.append(disk.count)
    os.close(descriptor)
    changes = disk.changes()
    chance = random.Random(4)

    def verdict(files: dict[str, bytes | None], acknowledged: int) -> str:
        shutil.rmtree(tmp_path / "after", ignore_errors=True)
        (tmp_path / "after").mkdir()
        put(files, tmp_path / "after")
        return str(judge(power_ledger.read(str(tmp_path / "after"), RUN), acknowledged)["verdict"])

    for _ in range(60):
        cut = chance.randint(acknowledged_at[1], len(changes))
        acknowledged = max(n for n, count in enumerate(acknowledged_at) if count <= cut)
        honest = Crash()
        for change in changes[:cut]:
            honest.feed(change)
        for choose in (None, chance):
            assert verdict(honest.files(choose), acknowledged) == "acquitted", (cut, acknowledged)

        # From some record on, fsync was acknowledged and did nothing.
        lost = chance.randint(1, min(10, acknowledged))
        lying = Crash()
        for change in changes[: acknowledged_at[acknowledged - lost]]:
            lying.feed(change)
        assert verdict(lying.files(None), acknowledged) == "convicted", (cut, acknowledged, lost)


class Ext4:
    """An ext4 in an image in memory, on a loop device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.image, self.point = folder, folder / "disk.img", folder / "mnt"
        self.point.mkdir()
        with self.image.open("wb") as stream:
            stream.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        subprocess.run(["mount", "-o", "loop", self.image, self.point], check=True)

    def cut(self, name: str) -> Path:
        """The image as it is at this moment, which is what a device without a cache of its own would hold."""
        copy = self.folder / name
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        return copy

    def after(self, image: Path, acknowledged: int) -> dict[str, Any]:
        point = self.folder / "after"
        point.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        try:
            return power_cut.verify(str(point), RUN, "of-an-earlier-boot", acknowledged)
        finally:
            subprocess.run(["umount", point], check=True)


@pytest.fixture
def ext4() -> Iterator[Ext4]:
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    with own_mounts():  # an image is mounted more than once
        made = Ext4(folder)
        yield made
        subprocess.run(["umount", made.point], check=True)
    shutil.rmtree(folder)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_device_that_is_cut(ext4: Ext4) -> None:
    descriptor = power_ledger.create(str(ext4.point), RUN)
    for number in range(1, 301):
        power_ledger.append(descriptor, RUN, number)
    early = ext4.cut("early.img")
    for number in range(301, 601):
        power_ledger.append(descriptor, RUN, number)
    now = ext4.cut("now.img")
    os.close(descriptor)

    honest = ext4.after(now, 600)
    assert honest["verdict"] == "acquitted" and honest["acknowledged"] == 600, honest
    assert "ext4" in honest["message"] and "600" in honest["message"]

    # The device acknowledged 300 more flushes and dropped what they were for.
    lying = ext4.after(early, 600)
    assert (lying["verdict"], lying["lost"], lying["highest"]) == ("convicted", 300, 300)
    assert "301 to 600" in lying["message"]
    # A second look finds no ledger: the first one removed it.
    assert ext4.after(now, 600)["lost"] == 600


# --- the controller's side


def local(tmp_path: Path, seconds: float, **more: Any) -> dict[str, Any]:
    return power_cut.watch(
        {"host": "here", "local": True},
        str(tmp_path / "disk"),
        str(tmp_path / "reports/here.acknowledged"),
        seconds,
        name="here",
        python=sys.executable,
        **more,
    )


def test_without_a_cut_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with pytest.raises(PveguardError, match=r"not cut within 0\.3 s \(fsync_gate_power_cut_minutes\)"):
        local(tmp_path, 0.3)
    assert not list((tmp_path / "disk").iterdir()) and not list((tmp_path / "reports").iterdir())


def test_a_node_that_cannot_write_says_why(tmp_path: Path) -> None:
    with pytest.raises(PveguardError, match="disk: No such file or directory"):
        local(tmp_path, 5)
    with pytest.raises(PveguardError, match="no record was acknowledged"):
        power_cut.watch(
            {"host": "here", "executable": "false"}, "/x", str(tmp_path / "reports/here"), 5, name="here"
        )


def test_a_controller_that_goes_away_leaves_a_mark(tmp_path: Path) -> None:
    """Nobody listens any more: the writer stops by itself and says so in the ledger, which then proves nothing."""
    (tmp_path / "disk").mkdir()
    source = Path(power_ledger.__file__).read_text()
    argv = [sys.executable, "-", str(tmp_path / "disk"), RUN, "60"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin and writer.stdout
        writer.stdin.write(source.encode())
        writer.stdin.close()
        head = json.loads(writer.stdout.readline())
        assert head["run"] == RUN and head["boot_id"] == power_ledger.boot_id()
        assert [int(writer.stdout.readline()) for _ in range(3)] == [1, 2, 3]
        writer.stdout.close()
        assert writer.wait(120) == 0
    found = power_ledger.read(str(tmp_path / "disk"), RUN)
    assert found is not None and found.stopped
    assert judge(found, 3)["verdict"] == "inconclusive"


def test_acknowledgements_of_a_controller_that_was_stopped(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    head = {"run": RUN, "boot_id": "b", "path": "/var/lib", "slots": SLOTS, "host": "pve1"}
    notes.write_text(json.dumps(head) + "\n1\n2\n3\n")
    wanted = {"run": RUN, "boot_id": "b", "path": "/var/lib", "acknowledged": 3}
    assert power_cut.acknowledged(str(notes)) == wanted
    notes.write_text(
        notes.read_text() + json.dumps({"ended": "the connection ended", "acknowledged": 3}) + "\n"
    )
    assert power_cut.acknowledged(str(notes)) == wanted
    for text in ("", "no JSON", "[]\n1\n"):
        notes.write_text(text)
        assert power_cut.acknowledged(str(notes)) == {}
    assert power_cut.acknowledged(str(tmp_path / "none")) == {}


def test_ssh_is_told_what_ansible_is_told() -> None:
    argv = power_cut.ssh_argv(
        {
            "host": "192.0.2.11",
            "port": 2222,
            "user": "admin",
            "key": "/keys/id",
            "arguments": ["-o UserKnownHostsFile='/a b/known'", None, ""],
            "become": True,
        },
        ["/usr/bin/python3", "-", "/var/lib/a b", RUN, "60"],
    )
    assert argv[0] == "ssh" and argv[-2] == "192.0.2.11"
    assert argv[-1] == f"sudo -n -- /usr/bin/python3 - '/var/lib/a b' {RUN} 60"
    for words in (
        ["-p", "2222"],
        ["-l", "admin"],
        ["-i", "/keys/id"],
        ["-o", "UserKnownHostsFile=/a b/known"],
    ):
        assert any(argv[at : at + 2] == words for at in range(len(argv))), words
    assert argv.index("ControlMaster=no") < argv.index("UserKnownHostsFile=/a b/known"), (
        "the first one counts"
    )
    assert power_cut.ssh_argv({"host": "x", "local": True}, ["a"]) == ["a"]


def test_prepare_refuses_what_would_prove_nothing(tmp_path: Path) -> None:
    assert power_cut.prepare(str(tmp_path))["path"] == str(tmp_path)
    with pytest.raises(PveguardError, match="is not a directory"):
        power_cut.prepare(str(tmp_path / "none"))
    if MEMORY:
        with pytest.raises(PveguardError, match="is in memory"):
            power_cut.prepare(MEMORY)
        found = power_cut.prepare(f"{MEMORY}/none", nearest_parent=True)
        assert not found["path"].startswith(MEMORY)


def writers(folder: Path) -> list[int]:
    """Processes that write a ledger in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:3] == [b"-", str(folder).encode()]:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    # The disk of a busy machine is silent for seconds too.
    ("number", "silence_s", "ended"),
    [(signal.SIGKILL, 60, "the connection ended"), (signal.SIGSTOP, 8, "no answer for 8 s")],
    ids=["ended", "silent"],
)
def test_watch_until_the_node_is_gone(
    tmp_path: Path, number: signal.Signals, silence_s: float, ended: str
) -> None:
    """Over something like ssh, which gives its last argument to a shell. A node without power may just fall silent."""
    disk = tmp_path / "a disk"
    disk.mkdir()
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "a login message"\nfor last; do :; done\nexec sh -c "exec $last"\n')
    ssh.chmod(0o755)
    notes = tmp_path / "reports/pve1.acknowledged"

    def cut() -> int:
        deadline = time.monotonic() + 60
        while not notes.exists() or len(notes.read_text().splitlines()) < 30:
            assert time.monotonic() < deadline, "too few records"
            time.sleep(0.02)
        (writer,) = writers(disk)
        os.kill(writer, number)
        return writer

    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut)
        result = power_cut.watch(
            {"host": "pve1", "executable": str(ssh)}, str(disk), str(notes), 60,
            name="pve1", python=sys.executable, silence_s=silence_s,
        )  # fmt: skip
        writer = cutting.result()
    assert result["ended"] == ended and result["acknowledged"] >= 29
    assert power_cut.acknowledged(str(notes)) == {
        "run": result["run"],
        "boot_id": power_ledger.boot_id(),
        "path": str(disk),
        "acknowledged": result["acknowledged"],
    }
    if number == signal.SIGKILL:
        found = power_cut.verify(str(disk), result["run"], "of-an-earlier-boot", result["acknowledged"])
        assert found["verdict"] == "acquitted"
    with pytest.raises(ProcessLookupError):  # killed with the connection, or by us
        for _ in range(3000):
            os.kill(writer, 0)
            time.sleep(0.02)
