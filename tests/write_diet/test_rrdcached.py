# SPDX-License-Identifier: Apache-2.0
"""RRD files are written late, and no value is lost by it, whatever starts the daemon."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import managed_file
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.diet import (
    measures,
    parts,
    rrd_flush,
    rrdcached,
    rrdcached_restart,
    write_diet,
)
from ansible.module_utils.pveguard.diet.parts import mount_unit

from tests.write_diet.node import JOURNAL, NATIVE, STOCK_DEFAULTS, Node, Rrdcached, options

UNIT = mount_unit(JOURNAL)
Make = Callable[..., Node]


def enable(node: Node, check: bool = False, **more: Any) -> write_diet.Result:
    return write_diet.apply({"rrdcached": options(**more)}, check, node.run, node.root)


def facts(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = measures.collect(node.run, node.root)["rrdcached"]
    return found


def started(make: Make, kind: str = "sysv") -> Node:
    node = make(kind)
    node.start_rrdcached()
    return node


def running(node: Node) -> dict[str, Any]:
    assert node.rrd is not None
    return rrdcached.parse(node.rrd.argv[1:])


def update(node: Node, *values: str) -> None:
    assert node.rrd is not None
    for value in values:
        node.rrd.update(value)


@pytest.mark.parametrize("kind", ["sysv", "unit"])
def test_files_are_written_late_and_the_journal_is_in_ram(make: Make, kind: str) -> None:
    node = started(make, kind)
    done = enable(node)
    assert done.changed and len(done.todo) == 2
    now = running(node)
    assert (now["write_s"], now["jitter_s"], now["flush_s"], now["flushes"]) == (3600, 600, 7200, True)
    assert now["journal"].rstrip("/") == JOURNAL and UNIT in node.memory
    assert facts(node)["journal_tmpfs_bytes"] == 128 * 1024 * 1024
    again = enable(node)
    assert not again.changed and again.files == [] and again.done == []


@pytest.mark.parametrize("kind", ["sysv", "unit"])
@pytest.mark.parametrize("journal", ["tmpfs", "none", "disk"])
def test_no_value_is_lost_on_the_way_there_and_back(make: Make, kind: str, journal: str) -> None:
    node = started(make, kind)
    before = node.picture()
    update(node, "a", "b", "c")
    enable(node, journal=journal)
    assert node.values.missing == []
    # What lies beneath the mount would be read again, much later.
    assert [*(node.root / f"beneath-{UNIT}").glob("*")] == []
    update(node, "d", "e", "f")
    node.reboot()
    update(node, "g", "h", "i")
    write_diet.revert(run=node.run, root=node.root)
    assert node.values.missing == []
    assert node.picture() == before and not node.memory
    assert running(node) == rrdcached.parse(node.command()[1:]) and running(node)["write_s"] == 300
    # Nothing beneath the mount is read a second time, and nothing is left beside it.
    assert {path.name for path in (node.root / "var/lib/rrdcached").iterdir()} == {"db", "journal"}
    assert not write_diet.revert(run=node.run, root=node.root).changed


@pytest.mark.parametrize("kind", ["sysv", "unit"])
def test_without_the_flush_before_a_stop_values_would_be_lost(make: Make, kind: str) -> None:
    """The double shows the loss that the flush program is there for."""
    node = started(make, kind)
    enable(node)
    update(node, "a", "b", "c")
    dropin = node.root / rrdcached.DROP_IN.lstrip("/")
    dropin.write_text(dropin.read_text().replace("ExecStop=-/usr/bin/python3", "#"))
    node.reboot()
    assert node.values.missing == ["b", "c"]


@pytest.mark.root
def test_the_journal_stays_that_of_the_daemon_s_user(make: Make) -> None:
    """DAEMON_USER: a file of root's it could neither read nor remove."""
    node = started(make)
    journal = node.root / JOURNAL.lstrip("/") / "rrd.journal.1"
    update(node, "a")
    os.chown(journal, 4711, 4712)
    seen: list[tuple[int, int]] = []
    start = node.start_rrdcached

    def look_and_start() -> None:
        seen.append((journal.stat().st_uid, journal.stat().st_gid))
        start()

    node.start_rrdcached = look_and_start  # type: ignore[method-assign]
    node.hook = lambda argv: None
    enable(node)
    assert seen == [(4711, 4712)]


def test_a_daemon_that_is_killed_finds_its_journal_in_ram(make: Make) -> None:
    node = started(make)
    enable(node)
    update(node, "a", "b")
    node.kill_rrdcached()
    assert facts(node)["running"] is None and rrdcached.differs(options(), facts(node)) == ["start rrdcached, which does not run"]
    assert enable(node).changed
    assert node.values.missing == [] and running(node)["write_s"] == 3600
    assert not enable(node).changed


@pytest.mark.parametrize("kind", ["sysv", "unit"])
def test_a_daemon_that_is_down_is_asked_at_its_own_socket(make: Make, kind: str) -> None:
    """Debian's defaults say /var/run; while nothing runs no command line tells."""
    node = make(kind)
    (node.root / "var/run").mkdir(parents=True)
    node.write("/etc/default/rrdcached", STOCK_DEFAULTS.replace("=/run/", "=/var/run/"))
    node.write("/usr/lib/systemd/system/rrdcached.service", NATIVE.replace(":/run/", ":/var/run/"))
    node.native = NATIVE.replace(":/run/", ":/var/run/")
    node.start_rrdcached()
    enable(node)
    files = node.picture()
    update(node, "a")
    node.kill_rrdcached()
    assert enable(node).todo == ["start rrdcached, which does not run"] and node.picture() == files
    assert not enable(node).changed and node.values.missing == []


@pytest.mark.parametrize("address", ["/var/run/rrdcached.sock", "/run/other.sock"])
def test_one_that_is_killed_comes_back_on_the_socket_that_its_start_names(make: Make, address: str) -> None:
    """Debian's file says /var/run; the drop-in that is written without a daemon is the one that is wanted with it."""
    node = make()
    (node.root / "var/run").symlink_to("../run")
    node.write("/etc/default/rrdcached", STOCK_DEFAULTS.replace("/run/rrdcached.sock", address))
    node.start_rrdcached()
    enable(node)
    update(node, "a", "b")
    before = node.picture()
    node.kill_rrdcached()
    done = enable(node)
    assert done.changed and done.files == [] and node.picture() == before
    assert node.values.missing == [] and running(node)["write_s"] == 3600 and not enable(node).changed


def test_the_socket_of_a_unit_that_does_not_run_is_the_one_of_its_command(make: Make) -> None:
    node = make("unit")
    assert facts(node)["socket"] == "/run/rrdcached.sock"
    node.write("/usr/lib/systemd/system/rrdcached.service", NATIVE.replace("/run/rrdcached.sock", "/run/other.sock"))
    assert facts(node)["running"] is None and facts(node)["socket"] == "/run/other.sock"
    assert " /run/other.sock\n" in rrdcached.owned(options(), facts(node))[rrdcached.DROP_IN]


def test_one_that_was_stopped_before_stays_stopped(make: Make) -> None:
    node = make()
    assert not enable(node).changed and node.rrd is None and node.changing() == []


def test_a_node_without_rrdcached_has_nothing_to_do(make: Make) -> None:
    node = make("none")
    assert not enable(node).changed and facts(node)["installed"] is False and node.changing() == []


def test_check_mode_says_what_the_run_does_and_does_nothing(make: Make) -> None:
    node = started(make)
    before = node.picture()
    foreseen = enable(node, check=True)
    assert node.picture() == before and node.changing() == [] and not (node.root / "run/pveguard").exists()
    done = enable(node)
    assert (foreseen.todo, [change.path for change in foreseen.files]) == (done.todo, [change.path for change in done.files])
    assert {change.path for change in foreseen.files} == {
        rrdcached.DEFAULTS,
        rrdcached.DROP_IN,
        rrdcached.PROGRAM,
        f"/etc/systemd/system/{UNIT}",
    }
    foreseen = write_diet.revert(True, run=node.run, root=node.root)
    done = write_diet.revert(run=node.run, root=node.root)
    assert [change.path for change in foreseen.files] == [change.path for change in done.files] and foreseen.todo == done.todo


def test_the_file_of_the_start_script_keeps_every_line(make: Make) -> None:
    node = started(make)
    text = 'BASE_OPTIONS="-B -R -f 600 -F"  # ours\r\nX=\xff'
    (node.root / "etc/default/rrdcached").write_bytes(STOCK_DEFAULTS.encode() + text.encode("latin-1"))
    enable(node)
    now = (node.root / "etc/default/rrdcached").read_bytes()
    assert now.startswith(STOCK_DEFAULTS.encode() + text.encode("latin-1") + b"\n# pveguard")
    assert b'BASE_OPTIONS="-B -R -F -f 7200"\n' in now
    assert facts(node)["base_options"] == "-B -R -f 600 -F" and not enable(node).changed


def test_another_wish_replaces_the_block(make: Make) -> None:
    node = started(make)
    enable(node)
    assert enable(node, write_seconds=1800, jitter_seconds="9999", journal_mib=16).changed
    assert (running(node)["write_s"], running(node)["jitter_s"], running(node)["flush_s"]) == (1800, 1800, 3600)
    assert node.read("/etc/default/rrdcached").count("pveguard write_diet: begin") == 1
    assert facts(node)["journal_tmpfs_bytes"] == 16 * 1024 * 1024
    assert enable(node, journal="none").changed and running(node)["journal"] is None and not node.memory
    assert not node.exists(f"/etc/systemd/system/{UNIT}")
    assert enable(node, journal="disk").changed and running(node)["journal"].rstrip("/") == JOURNAL and not node.memory
    assert enable(node).changed and UNIT in node.memory


def test_a_switch_that_is_off_takes_the_measure_back(make: Make) -> None:
    node = started(make)
    before = node.picture()
    enable(node)
    off = {"rrdcached": {"enabled": False}}
    assert write_diet.apply(off, False, node.run, node.root).todo == ["take the measure rrdcached back"]
    assert node.picture() == before and running(node)["write_s"] == 300
    assert not write_diet.apply(off, False, node.run, node.root).changed


def test_a_daemon_that_does_not_take_it_is_put_back_and_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that ignores the file: what runs is looked at, not what was written."""
    node = started(make)
    before = node.picture()
    update(node, "a")
    stock = node.command()
    monkeypatch.setattr(node, "command", lambda: stock)
    with pytest.raises(PveguardError, match="still to be done: write RRD files every 3600 to 4200 s.*taken back"):
        enable(node)
    assert node.picture() == before and not node.memory and node.values.missing == []
    assert not (node.root / "run/pveguard/write_diet/rrdcached").exists() and not facts(node)["kept"]


def test_a_start_that_fails_is_put_back_and_told(make: Make) -> None:
    node = started(make)
    before = node.picture()
    update(node, "a", "b")
    failed: list[str] = []

    def fail_once(argv: list[str]) -> Result | None:
        if argv[:2] == ["systemctl", "start"] and "rrdcached.service" in argv and not failed:
            failed.append("once")
            return Result(1, "", "Job for rrdcached.service failed.")
        return None

    node.hook = fail_once
    with pytest.raises(PveguardError, match="Job for rrdcached.service failed.*taken back"):
        enable(node)
    assert node.picture() == before and not node.memory and node.values.missing == []
    assert running(node)["write_s"] == 300


@pytest.mark.parametrize("written", range(5))
def test_a_disk_that_is_full_leaves_nothing_in_between(make: Make, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """However many of the files still found room; the last one is a copy of the journal, on another file system."""
    node = started(make)
    before = node.picture()
    update(node, "a", "b")
    room = [written]

    def full(real: Callable[..., None]) -> Callable[..., None]:
        def write(path: Any, *rest: Any) -> None:
            if "var/lib/pveguard" not in str(path):
                room[0] -= 1
                if room[0] < 0:
                    raise OSError(28, "No space left on device", str(path))
            real(path, *rest)

        return write

    monkeypatch.setattr(managed_file, "write_atomic", full(managed_file.write_atomic))
    monkeypatch.setattr(rrdcached_restart.shutil, "copy2", full(rrdcached_restart.shutil.copy2))

    def elsewhere(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(rrdcached_restart.os, "link", elsewhere)
    with pytest.raises(PveguardError, match="No space left on device.*(as it was before|taken back|Run again)"):
        enable(node)
    assert node.rrd is not None and running(node)["write_s"] in (300, 3600)
    if written < 4:
        assert node.picture() == before and not facts(node)["kept"] and not facts(node)["pending"]
    monkeypatch.undo()
    assert enable(node).changed and not enable(node).changed
    assert node.values.missing == [] and running(node)["write_s"] == 3600
    write_diet.revert(run=node.run, root=node.root)
    assert node.picture() == before


def test_a_daemon_that_does_not_write_its_values_is_not_stopped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = started(make)
    before = node.picture()
    monkeypatch.setattr(Rrdcached, "answer", lambda self, command: "-1 no\n")
    with pytest.raises(PveguardError, match="did not write its values, so it was not restarted"):
        enable(node)
    assert ["systemctl", "stop", "rrdcached.service"] not in node.calls
    monkeypatch.undo()
    # It could not be restarted for the way back either; the files are as they were, and the next run ends it.
    assert node.picture() == before and facts(node)["pending"]
    assert enable(node).changed and not facts(node)["pending"]


def test_a_journal_that_would_not_fit_is_refused_before_anything_is_changed(make: Make) -> None:
    node = started(make)
    before = node.picture()
    with (node.root / JOURNAL.lstrip("/") / "rrd.journal.9").open("wb") as handle:
        handle.truncate(9 * 1024 * 1024)
    for check in (True, False):
        with pytest.raises(PveguardError, match="raise write_diet_rrdcached_journal_mib"):
            enable(node, check, journal_mib=8)
    assert node.picture() == before and node.changing() == []


def test_a_tmpfs_of_somebody_s_stays_his(make: Make) -> None:
    node = started(make)
    node.mounts.append(f"90 29 0:99 / {JOURNAL} rw - tmpfs theirs rw,size=4096k")
    node.show_mounts()
    enable(node)
    assert running(node)["flushes"] and not node.exists(f"/etc/systemd/system/{UNIT}") and not enable(node).changed


def test_a_tmpfs_that_somebody_made_by_a_unit_stays_his(make: Make) -> None:
    node = started(make)
    node.write(f"/etc/systemd/system/{UNIT}", f"[Mount]\nWhat=mine\nWhere={JOURNAL}\nType=tmpfs\nOptions=size=64m\n")
    node.do_systemctl(["start", UNIT])
    before = node.picture()
    for journal in ("tmpfs", "none", "disk"):
        enable(node, journal=journal)
        assert UNIT in node.memory and node.read(f"/etc/systemd/system/{UNIT}").startswith("[Mount]\nWhat=mine\n")
        assert not enable(node, journal=journal).changed
    write_diet.revert(run=node.run, root=node.root)
    assert node.picture() == before and UNIT in node.memory


def test_a_journal_behind_a_link_is_refused_before_anything_is_changed(make: Make) -> None:
    """systemd mounts on no symbolic link."""
    node = make()
    place = node.root / JOURNAL.lstrip("/")
    place.rmdir()
    (node.root / "mnt").mkdir()
    place.symlink_to(node.root / "mnt")
    node.start_rrdcached()
    before = node.picture()
    for check in (True, False):
        with pytest.raises(PveguardError, match=f"{JOURNAL} is reached by a symbolic link.*write_diet_rrdcached_journal: none"):
            enable(node, check)
    assert node.picture() == before and node.changing() == []
    assert enable(node, journal="none").changed


def test_a_node_without_a_journal_gets_none(make: Make) -> None:
    node = make()
    node.write("/etc/default/rrdcached", STOCK_DEFAULTS.replace("JOURNAL_PATH=", "#JOURNAL_PATH="))
    node.start_rrdcached()
    enable(node)
    assert running(node)["journal"] is None and not node.memory and not enable(node).changed


def test_what_was_interrupted_is_finished(make: Make) -> None:
    node = started(make)
    enable(node)
    (node.root / "run/pveguard/write_diet").mkdir(parents=True, exist_ok=True)
    (node.root / "run/pveguard/write_diet/rrdcached").touch()
    assert enable(node).todo == ["finish the measure rrdcached, which was interrupted"]
    assert not enable(node).changed


@pytest.mark.parametrize("booted", [True, False])
def test_a_journal_that_a_power_cut_left_beside_is_not_read_later(make: Make, booted: bool) -> None:
    """Values that are older than those in the file would stop the newer ones that come after them. A run that was ended in this
    boot has nothing older there.
    """
    node = started(make)
    aside = node.root / "var/lib/rrdcached/.journal.pveguard"
    aside.mkdir()
    (aside / "rrd.journal.0").write_text("beside\n")
    if not booted:
        (node.root / "run/pveguard/write_diet").mkdir(parents=True)
        (node.root / "run/pveguard/write_diet/rrdcached").touch()
    enable(node)
    assert ("beside" in node.values.written) is not booted and not aside.exists()


def test_a_file_that_an_upgrade_has_put_back_is_written_again(make: Make) -> None:
    node = started(make)
    enable(node)
    node.write("/etc/default/rrdcached", STOCK_DEFAULTS)
    assert enable(node).todo == ["set for the next start of rrdcached what it runs with"] and not enable(node).changed


def test_what_is_not_pveguard_s_is_not_thrown_away(make: Make) -> None:
    node = started(make)
    enable(node)
    node.write("/etc/default/rrdcached", node.read("/etc/default/rrdcached") + "# mine\n")
    with pytest.raises(PveguardError, match="somebody changed what pveguard wrote"):
        write_diet.revert(run=node.run, root=node.root)
    assert running(node)["write_s"] == 3600
    write_diet.revert(drift="overwrite", run=node.run, root=node.root)
    assert node.read("/etc/default/rrdcached") == STOCK_DEFAULTS


def test_a_guest_s_rrdcached_is_not_the_node_s(make: Make) -> None:
    node = started(make)
    node.write("/sys/fs/cgroup/lxc/101/ns/system.slice/rrdcached.service/cgroup.procs", "77\n")
    node.write("/proc/77/cmdline", "/usr/bin/rrdcached\0-w\0" "7\0")
    assert facts(node)["running"]["write_s"] == 300


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("-w 5m -z 3m -f 1h", {"write_s": 300, "jitter_s": 180, "flush_s": 3600}),
        ("-w 300 -w 3600", {"write_s": 3600}),
        ("-j /x", {"journal": "/x", "flushes": False}),
        ("-j /x -F", {"journal": "/x", "flushes": True}),
        ("", {"journal": None, "flushes": True, "write_s": 300}),
        ("-l unix:/a -l 1.2.3.4", {"socket": "/a"}),
        ("--nonsense", {"write_s": 300}),
    ],
)
def test_command_lines(arguments: str, found: dict[str, Any]) -> None:
    assert found.items() <= rrdcached.parse(arguments.split()).items()


def test_files_of_the_header_say_what_a_flush_writes(tmp_path: Path) -> None:
    """The header of a file with 18 sources and 8 archives, as rrdtool creates it for a guest: 1425184 bytes, of which a flush
    after 66 minutes was seen to change 13 pages.
    """
    rows = [(1440, 1), (1440, 30), (1440, 360), (570, 10080)] * 2
    head = b"RRD\0" + b"0003\0".ljust(12, b"\0") + bytes(8) + b"".join(n.to_bytes(8, "little") for n in (18, 8, 60)) + bytes(80)
    head += bytes(18 * 120)
    for count, steps in rows:
        head += b"AVERAGE".ljust(24, b"\0") + count.to_bytes(8, "little") + steps.to_bytes(8, "little") + bytes(80)
    guest = tmp_path / "db/pve-vm-9.0/100"
    guest.parent.mkdir(parents=True)
    guest.write_bytes(head.ljust(1425184, b"\0"))
    for number in range(101, 120):
        (guest.parent / str(number)).symlink_to(guest)
    found = rrdcached.weigh(tmp_path / "db", {"write_s": 3600, "jitter_s": 600})
    assert (found["files"], found["bytes"]) == (20, 20 * 1425184)
    assert 10 * 4096 <= found["flush_bytes"] / 20 <= 16 * 4096
    often = rrdcached.weigh(tmp_path / "db", {"write_s": 300, "jitter_s": 0})
    assert 5 * 4096 <= often["flush_bytes"] / 20 < found["flush_bytes"] / 20
    (tmp_path / "db/other").write_bytes(b"no RRD")
    assert rrdcached.weigh(tmp_path / "db", {})["files"] == 21


@pytest.mark.parametrize("slow", [False, True])
def test_the_flush_waits_until_nothing_waits_any_more(tmp_path: Path, slow: bool) -> None:
    """After a long flush there is another one, for what has come meanwhile."""
    lengths = iter([3, 2, 0, 1, 0])
    asked: list[str] = []
    path = str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        connection = server.accept()[0]
        lines = connection.makefile("r")
        connection.sendall(b"2 Statistics follow\n") if lines.readline() == "STATS\n" else None
        connection.sendall(b"QueueLength: 9\nUpdatesWritten: 5\n")
        for line in lines:
            asked.append(line.strip())
            if line == "FLUSHALL\n":
                connection.sendall(b"0 Started flush.\n")
                continue
            connection.sendall(f"2 Statistics follow\nQueueLength: {next(lengths)}\nUpdatesWritten: 25\n".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    waits: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += 5 if slow and len(waits) < 3 else 0

    assert rrd_flush.flush(path, clock=lambda: now[0], sleep=sleep) == 20
    assert (asked.count("FLUSHALL"), len(waits)) == ((2, 3) if slow else (1, 2))
    thread.join(10)
    server.close()


def test_a_flush_that_does_not_end_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    node = started(make)
    monkeypatch.setattr(
        Rrdcached, "answer", lambda self, command: "1 x\nQueueLength: 7\n" if command == "STATS" else "0 Started flush.\n"
    )
    clock = iter(range(0, 10000, 100))
    path = str(node.root / "run/rrdcached.sock")
    with pytest.raises(OSError, match="7 files still wait to be written after 240 s"):
        rrd_flush.flush(path, clock=lambda: next(clock), sleep=lambda seconds: None)
    assert rrd_flush.main([str(node.root / "nowhere")]) == 1 and "was not flushed" in capsys.readouterr().err


# -- a disk that is full


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """From its nth call on, managed_file writes nothing below /etc and /usr; the list says what it was asked for."""
    real, asked = managed_file.write_atomic, []

    def write(path: Any, *rest: Any, **more: Any) -> None:
        if "/var/lib/pveguard/" not in str(path):
            asked.append(str(path))
            if len(asked) == number:
                no_space()
        real(path, *rest, **more)

    monkeypatch.setattr(managed_file, "write_atomic", write)
    return asked


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_no_file_is_left_of_a_measure_that_could_not_be_written(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    node = started(make)
    before, pid = node.picture(), node.rrd
    asked = fail_at(monkeypatch, number)
    with pytest.raises(PveguardError, match="write diet, rrdcached: .*No space left on device.* as it was before"):
        enable(node)
    assert len(asked) >= number and node.picture() == before and node.rrd is pid
    assert not facts(node)["kept"] and not facts(node)["pending"]
    monkeypatch.undo()
    assert enable(node).changed and not enable(node).changed


@pytest.mark.parametrize("number", [1, 2])
def test_a_measure_that_is_on_stays_as_it_was_where_another_wish_cannot_be_written(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    node = started(make)
    enable(node)
    before, pid = node.picture(), node.rrd
    asked = fail_at(monkeypatch, number)
    with pytest.raises(PveguardError, match=r"No space left on device.* as it was before"):
        enable(node, write_seconds=1800, journal_mib=16)
    assert len(asked) >= number and node.picture() == before and node.rrd is pid
    monkeypatch.undo()
    assert not enable(node).changed
    assert enable(node, write_seconds=1800, journal_mib=16).changed and running(node)["write_s"] == 1800
    write_diet.revert(run=node.run, root=node.root)
    assert running(node)["write_s"] == 300


@pytest.mark.parametrize(("number", "space"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EOPNOTSUPP, True)])
def test_space_is_tried_and_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, space: bool) -> None:
    assert parts.has_space(tmp_path, 4096) and list(tmp_path.iterdir()) == []

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    assert parts.has_space(tmp_path, 4096) is space
    # A file system without files that have no name.
    assert parts.has_space(tmp_path / "nowhere", 4096)


def test_a_full_disk_is_told_before_anything_is_changed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = started(make)
    before = node.picture()
    monkeypatch.setattr(parts, "has_space", lambda folder, size: False)
    with pytest.raises(PveguardError, match="rrdcached: no space left on the file system of /.*1024 KiB have to be free"):
        enable(node)
    assert node.picture() == before and node.changing() == [] and not (node.root / "run/pveguard").exists()
    monkeypatch.undo()
    enable(node)
    before = node.picture()
    monkeypatch.setattr(parts, "has_space", lambda folder, size: False)
    with pytest.raises(PveguardError, match="no space left"):
        write_diet.revert(run=node.run, root=node.root)
    with pytest.raises(PveguardError, match="no space left"):
        write_diet.apply({"rrdcached": {"enabled": False}}, False, node.run, node.root)
    assert node.picture() == before and facts(node)["kept"] and not enable(node).changed


def test_a_journal_that_cannot_be_carried_along_does_not_leave_the_node_without_rrdcached(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = started(make)
    before = node.picture()
    enable(node)
    update(node, "a", "b", "c")
    monkeypatch.setattr(rrdcached_restart, "_copy", no_space)
    off = {"rrdcached": {"enabled": False}}
    with pytest.raises(PveguardError, match="rrdcached: .*No space left on device"):
        write_diet.apply(off, False, node.run, node.root)
    assert node.rrd is not None and node.values.missing == []
    monkeypatch.undo()
    # The next run ends what was begun.
    assert write_diet.apply(off, False, node.run, node.root).changed
    assert not node.memory and running(node)["write_s"] == 300 and node.picture() == before
    assert not write_diet.apply(off, False, node.run, node.root).changed


def test_a_killed_daemon_is_started_again_on_a_full_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be written for that: its journal stays where it is."""
    node = started(make)
    enable(node)
    update(node, "a", "b")
    node.kill_rrdcached()
    monkeypatch.setattr(parts, "has_space", lambda folder, size: False)
    monkeypatch.setattr(rrdcached_restart, "_copy", no_space)
    assert enable(node).changed and node.values.missing == [] and UNIT in node.memory
    monkeypatch.undo()
    node.mounts = [line.replace("size=131072k", "size=4096k") for line in node.mounts]
    node.show_mounts()
    assert enable(node).changed and facts(node)["journal_tmpfs_bytes"] == 128 * 1024 * 1024, "one of another size is mounted anew"
