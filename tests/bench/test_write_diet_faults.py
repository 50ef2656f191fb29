# SPDX-License-Identifier: Apache-2.0
"""The judge of a node on the write diet: what it accepts after a fault, and what it tells."""

from __future__ import annotations

import copy
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import write_diet_faults as bench
import write_diet_node
from upgrade import Run

SHORT = "-B -F -f 3600 -w 60 -z 30 -b /var/lib/rrdcached/db/ -j /var/lib/rrdcached/journal/ -l unix:/run/rrdcached.sock"
STOCK = "-B -b /var/lib/rrdcached/db/ -j /var/lib/rrdcached/journal/ -l unix:/run/rrdcached.sock"
NODE: dict[str, Any] = {
    "failed": [],
    "rrdcached": {"pid": 7, "arguments": SHORT.split(), "stats": {"QueueLength": 0}},
    "journal": ["tmpfs", "rw,nosuid,nodev,noexec,relatime,size=131072k,mode=755,inode64,noswap"],
}


def node(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(NODE) | values


def daemon(arguments: str = SHORT, **values: Any) -> dict[str, Any]:
    return {**NODE["rrdcached"], "arguments": arguments.split(), **values}


def an_rrd(sources: int, rows: list[int], last: int) -> bytes:
    """As librrd writes it on a 64-bit machine, in its documented structures."""
    head = struct.pack("<4s5s7xd3Q80x", b"RRD\0", b"0003\0", 8.642135e130, sources, len(rows), 60)
    definitions = b"".join(struct.pack("<20s20s80x", f"s{number}".encode(), b"GAUGE") for number in range(sources))
    archives = b"".join(struct.pack("<20s4x2Q80x", b"AVERAGE", count, 1) for count in rows)
    live = struct.pack("<2q", last, 0)
    rest = bytes(sources * 112 + sources * len(rows) * 80 + len(rows) * 8 + sum(rows) * sources * 8)
    return head + definitions + archives + live + rest


# --- RRD files ----------------------------------------------------------------------------------------------


def test_an_rrd_file_says_its_size_and_its_last_value(tmp_path: Path) -> None:
    rows = [1440, 1440, 1440, 570] * 2
    data = an_rrd(18, rows, 1796059189)
    # As rrdtool was seen to make the file of a guest.
    assert len(data) == 1425184 and write_diet_node.parse(data[:65536]) == (1425184, 1796059189)
    (tmp_path / "pve-vm-9.0").mkdir()
    (tmp_path / "pve-vm-9.0/100").write_bytes(data)
    assert write_diet_node.files(str(tmp_path)) == {"pve-vm-9.0/100": {"size": 1425184, "whole": 1425184, "last": 1796059189}}


@pytest.mark.parametrize("data", [b"", b"RRD\0", bytes(200), an_rrd(18, [10], 5)[:300], an_rrd(0, [10], 5), an_rrd(1, [], 5)])
def test_a_damaged_header_is_told(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="header"):
        write_diet_node.parse(data)
    (tmp_path / "a").write_bytes(data)
    found = write_diet_node.files(str(tmp_path))
    assert found == {"a": {"size": len(data), "whole": None, "last": None}}
    assert "a is not whole" in bench.file_problems({}, found)[0] and bench.loss(found, 100) == math.inf


def test_files_are_there_whole_and_as_long_as_before() -> None:
    before = {"a": {"size": 10, "whole": 10, "last": 1}, "b": {"size": 20, "whole": 20, "last": 1}}
    assert bench.file_problems(before, {**before, "new": {"size": 5, "whole": 5, "last": 2}}) == []
    assert bench.file_problems(before, {"a": before["a"]}) == ["b is gone"]
    assert "b is not whole: 19" in bench.file_problems(before, {**before, "b": {"size": 19, "whole": 20, "last": 1}})[0]
    assert bench.file_problems(before, {**before, "b": {"size": 21, "whole": 21, "last": 1}}) == ["b has 21 bytes, before 20"]


# --- bounds -------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_oldest_file() -> None:
    assert bench.loss({"a": {"last": 90}, "b": {"last": 40}}, 100.5) == 60.5
    assert bench.loss({}, 100) == math.inf, "no file is no proof"


def test_the_bound_of_a_power_cut() -> None:
    assert bench.cut_bound((60, 30, 3600), (30, 5)) == 60 + 30 + 10 + 35


@pytest.mark.parametrize(
    ("stats", "bound"),
    [
        ({"JournalBytes": 144 * 230, "UpdatesReceived": 230}, 30),  # a round is 3312 bytes: two of them in 4 KiB
        ({"JournalBytes": 200 * 230, "UpdatesReceived": 230}, 20),
        ({"JournalBytes": 0, "UpdatesReceived": 230}, 20),
        ({}, 20),
    ],
)
def test_the_bound_of_a_killed_daemon_is_its_buffer(stats: dict[str, int], bound: float) -> None:
    assert bench.kill_bound(stats, 23) == bound


# --- the node -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["-w 60 -F -z 30", "-w60 -z30 -F"])
def test_options(words: str) -> None:
    assert bench.options_of(words.split()) == {"-w": "60", "-z": "30", "-F": ""}


def test_a_node_in_order() -> None:
    assert bench.node_problems(NODE, bench.SHORT) == []
    stock = node(rrdcached=daemon(STOCK), journal=None)
    assert bench.node_problems(stock, bench.STOCK, diet=False) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (node(failed=["a.service"]), "a.service has failed"),
        (node(rrdcached=daemon(pid=None, stats=None)), "rrdcached does not run"),
        (node(rrdcached=daemon(stats=None)), "rrdcached does not answer"),
        (node(rrdcached=daemon(SHORT.replace("-w 60", "-w 61"))), "rrdcached: -w 61, wanted 60"),
        (node(rrdcached=daemon(SHORT.replace("-z 30 ", ""))), "rrdcached: -z 0, wanted 30"),
        (node(rrdcached=daemon(SHORT.replace("-F ", ""))), "rrdcached: does not write its values at a stop"),
        (node(journal=None), "rrdcached's journal is on no file system of its own"),
        (node(journal=["tmpfs", "rw,size=1024k"]), "rrdcached's journal is on ['tmpfs', 'rw,size=1024k']"),
    ],
)
def test_what_is_not_in_order(seen: dict[str, Any], said: str) -> None:
    assert bench.node_problems(seen, bench.SHORT) == [said]


def test_what_had_failed_before_is_not_held_against_it() -> None:
    assert bench.node_problems(node(failed=["a.service"]), bench.SHORT, ["a.service"]) == []


def test_stock_is_told_from_the_diet() -> None:
    said = bench.node_problems(NODE, bench.STOCK, diet=False)
    assert len(said) == 4 and "has -F" in said[2] and "journal is on" in said[3]


# --- runs on a full disk ------------------------------------------------------------------------------------

FATAL = """\
TASK [write_diet : Bound the journal, and leave it on disk] ********************
fatal: [pve1]: FAILED! =>
    changed: false
    msg: 'write diet, journald: no space left on the file system of /etc: 1024 KiB have to be free'

PLAY RECAP *********************************************************************
pve1                       : ok=18   changed=0    unreachable=0    failed=1
"""
CHANGED = "TASK [a] ****\nchanged: [pve1]\n"


def test_a_run_on_a_full_disk_changes_nothing_or_says_why() -> None:
    assert bench.full_verdict(Run(0, "ok: [pve1]\n", 1)) == ("changed nothing", [])
    words, wrong = bench.full_verdict(Run(2, FATAL, 1))
    assert wrong == [] and words.startswith("said: write diet, journald: no space left")
    assert "/etc: 1024 KiB have to be free" in words and "RECAP" not in words
    words, wrong = bench.full_verdict(Run(0, CHANGED, 1))
    assert words == "succeeded" and "changed [('pve1', 'a')]" in wrong[0]
    assert bench.full_verdict(Run(0, CHANGED, 1), may_change=True) == ("succeeded", [])


UNCLEAR = FATAL.replace("no space left on", "error:")


@pytest.mark.parametrize("output", [UNCLEAR, FATAL + "Traceback (most recent call last):\n", "ok: [pve1]\n"])
def test_an_error_that_does_not_say_why_is_none(output: str) -> None:
    words, wrong = bench.full_verdict(Run(2, output, 1))
    assert words == "failed" and "no clear error" in wrong[0]


def test_the_tasks_that_changed_something() -> None:
    run = Run(0, "TASK [one] ***\nok: [pve1]\nTASK [two (x)] ***\nchanged: [pve1]\n", 1)
    assert bench.run_changes(run) == ["two (x)"]


# --- the way back -------------------------------------------------------------------------------------------


def test_files_are_compared_by_type_mode_owner_and_content() -> None:
    before = ["/etc/a 100644 0:0 3 aa", "/etc/corosync/authkey 100644 0:0 256 bb", "/usr/bin 40755 0:0"]
    assert bench.tree_problems(before, before) == []
    after = ["/etc/a 100600 0:0 3 aa", "/etc/corosync/authkey 100400 0:0 256 bb", "/usr/bin 40755 0:0", "/etc/new 40755 0:0"]
    assert bench.tree_problems(before, after) == ["- /etc/a 100644 0:0 3 aa", "+ /etc/a 100600 0:0 3 aa", "+ /etc/new 40755 0:0"]


# --- the program --------------------------------------------------------------------------------------------


def test_the_table() -> None:
    rows = [
        {"stage": "cut", "what": "greatest loss of statistics, seconds", "seen": 71.234, "most": 135.0},
        {"stage": "cut", "what": "power cuts", "seen": 3, "most": None},
    ]
    lines = bench.text({"rows": rows, "stages": {"cut": 12.3}, "violations": ["cut: a is gone"]}).splitlines()
    assert lines[1].split() == ["cut", "greatest", "loss", "of", "statistics,", "seconds", "71.2", "135"]
    assert lines[2].split() == ["cut", "power", "cuts", "3"] and lines[-1] == "violated: cut: a is gone"


def test_what_runs_on_a_node_needs_nothing_else() -> None:
    """Its files, as it reads them on this machine; rrdcached need not be there."""
    done = subprocess.run(["/bin/sh", "-c", bench.command("nonsense")], capture_output=True, text=True)
    assert done.returncode and "KeyError: 'nonsense'" in done.stderr


def test_a_full_folder_is_filled_again_when_something_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    left = [(1 << 28) + (1 << 12)]

    class Ended(Exception):
        pass

    def allocate(fd: int, offset: int, length: int) -> None:
        if length > left[0]:
            raise OSError(28, os.strerror(28))
        left[0] -= length
        sizes.append(length)

    def pause(seconds: float) -> None:
        if len(sizes) > 2:
            raise Ended
        left[0] += 1 << 16

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(write_diet_node.time, "sleep", pause)
    with pytest.raises(Ended):
        write_diet_node.fill(str(tmp_path))
    assert sizes == [1 << 28, 1 << 12, 1 << 16] and left == [0]


@pytest.mark.parametrize("words", [["--stages", "cut,nap"], []])
def test_mistakes_of_the_caller(words: list[str]) -> None:
    argv = [sys.executable, bench.__file__, *(["--name", "x"] if words else []), *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and ("nap" in done.stderr or "--name" in done.stderr)
