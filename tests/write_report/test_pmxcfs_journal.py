# SPDX-License-Identifier: Apache-2.0
"""Lines of the debug log and what they are attributed to; the switch itself is in test_double_writes.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.pmxcfs import pve_file
from ansible.module_utils.pveguard.writes import pmxcfs_journal
from ansible.module_utils.pveguard.writes.pmxcfs_journal import Line, Row, Transaction


def row(inode: int, name: str, where: str = " (database.c:150:backend_write_inode)") -> str:
    return f"[database] debug: enter backend_write_inode {inode:016X} '{name}', size 0{where}"


VERSION = row(0, "__version__")
DELETE = "[database] debug: enter dbd_backend_delete_inode (database.c:199:dbd_backend_delete_inode)"


def test_transactions_end_with_the_version() -> None:
    lines = [
        "[main] notice: something else",
        row(0x2A, "x"),
        "[dcdb] debug: enter dcdb_send_message (dcdb.c:1:dcdb_send_message)",
        VERSION,
        DELETE,
        row(0x2A, "y"),
        VERSION,
        DELETE,
        VERSION,
        row(7, "cut by the end of the window"),
    ]
    assert pmxcfs_journal.transactions(lines) == [
        Transaction([(42, "x")], 0),
        Transaction([(42, "y")], 1),
        Transaction([], 1),
    ]


@pytest.mark.parametrize(
    "name", ["x", "it's", "a b", "x', size 3 (y", "lrm_status.tmp.12", "ä", "backend_write_inode 1 'z'"]
)
@pytest.mark.parametrize("where", [" (database.c:150:backend_write_inode)", " (database.c:9:other)", ""])
def test_names_and_other_releases(name: str, where: str) -> None:
    (found,) = pmxcfs_journal.transactions([row(0xBEEF, name, where), VERSION])
    assert found.rows == [(0xBEEF, name)]


SPLIT = "a\n" + row(0, "__version__") + "\nb"


@pytest.mark.parametrize("name", ["a\nb", "\n", "a\n\n'b", SPLIT, "x\n" * 150, row(0, "__version__") + "\n", "n" * 300])
@pytest.mark.parametrize("split", [False, True])
def test_a_name_of_several_lines_is_one_name(name: str, split: bool) -> None:
    """The journal holds it as one message, or as many."""
    line = row(7, name)
    found = pmxcfs_journal.parse([*(line.split("\n") if split else [line]), VERSION, row(8, "next"), VERSION])
    assert [transaction.deletes for transaction in found.transactions] == [0, 0]
    first, second = (transaction.rows for transaction in found.transactions)
    assert [inode for inode, _ in first] == [7] and second == [(8, "next")]
    # Where a line in it looks whole, the rest of the name is not told.
    if not (split and "__version__" in name):
        assert first == [(7, name)] and found.strange == 0


def test_other_lines_with_such_a_path_are_not_about_rows() -> None:
    others = [
        f"[main] debug: enter cfs_fuse_create /{VERSION} (pmxcfs.c:1:cfs_fuse_create)",
        f"[status] notice: received log {DELETE}",
    ]
    assert pmxcfs_journal.parse(others).transactions == []
    # A root row of another name is none that the daemon writes.
    strange = pmxcfs_journal.parse([row(0, "x"), "[database] debug: leave backend_write_inode", "enter backend_write_inode"])
    assert strange.transactions == [] and strange.strange == 3


NODES = {
    1: Row(0, "nodes", 1, 1),
    2: Row(1, "pve1", 2, 1),
    3: Row(1, "pve2", 3, 1),
    4: Row(2, "lrm_status", 4, 1),
    5: Row(3, "lrm_status", 5, 2),
    6: Row(0, "priv", 6, 1),
    7: Row(6, "lock", 7, 1),
    8: Row(0, "user.cfg", 8, 2),
}


def heartbeat(inode: int) -> list[Transaction]:
    """Create, write, rename over the former one."""
    temporary = "lrm_status.tmp.99"
    return [
        Transaction([(inode, temporary)]),
        Transaction([(inode, temporary)]),
        Transaction([(inode, "lrm_status")], 1),
    ]


def test_heartbeats_of_two_nodes_and_a_lock() -> None:
    after = {k: v for k, v in NODES.items() if k not in (4, 5)}
    after |= {20: Row(2, "lrm_status", 22, 1), 23: Row(3, "lrm_status", 25, 2)}
    found = [
        *heartbeat(20),
        *heartbeat(23),
        Transaction([(26, "file-replication_cfg")]),
        Transaction([], 1),
    ]
    assert pmxcfs_journal.attribute(found, NODES, [], after) == {
        ("nodes/pve1/lrm_status", 1): 3,
        ("nodes/pve2/lrm_status", 2): 3,
        ("priv/lock/file-replication_cfg", None): 2,
    }


def test_a_heartbeat_that_was_replaced_is_known_by_a_sample() -> None:
    after = {k: v for k, v in NODES.items() if k != 4} | {23: Row(2, "lrm_status", 25, 1)}
    seen = [(20, Row(2, "lrm_status", 22, 1))]
    found = [*heartbeat(20), *heartbeat(23)]
    assert pmxcfs_journal.attribute(found, NODES, seen, after) == {("nodes/pve1/lrm_status", 1): 6}
    unseen = pmxcfs_journal.attribute(found, NODES, [], after)
    assert unseen == {("?/lrm_status", None): 3, ("nodes/pve1/lrm_status", 1): 3}, "not guessed whose it was"


def test_removals_are_told_by_what_is_gone() -> None:
    after = {k: v for k, v in NODES.items() if k != 8}
    assert pmxcfs_journal.attribute([Transaction([], 1)], NODES, [], after) == {("user.cfg", None): 1}
    assert pmxcfs_journal.attribute([Transaction([], 1)] * 2, NODES, [], after) == {}, (
        "one of them is not known"
    )


def test_the_version_is_told_by_what_was_made() -> None:
    assert pmxcfs_journal.first_version([], NODES) is None
    assert pmxcfs_journal.first_version([Transaction([(8, "user.cfg")])], NODES) is None
    found = [Transaction([(8, "user.cfg")]), *heartbeat(20), *heartbeat(23)]
    assert pmxcfs_journal.first_version(found, NODES) == 19
    # The heartbeat before was half done when the log began.
    late = [*heartbeat(17)[1:], *heartbeat(20)]
    assert pmxcfs_journal.first_version(late, NODES) == 18
    # A line is missing between both.
    assert pmxcfs_journal.first_version([*heartbeat(20), *heartbeat(23)[1:], *heartbeat(27)], NODES) is None


def test_only_the_window_is_counted() -> None:
    """Two heartbeats and a lock, of which the window has the second heartbeat and the making of the lock."""
    after = {k: v for k, v in NODES.items() if k != 4} | {23: Row(2, "lrm_status", 25, 1)}
    lock = [Transaction([(26, "file-jobs_cfg")]), Transaction([], 1)]
    found = [*heartbeat(20), *heartbeat(23), *lock]
    assert pmxcfs_journal.attribute(found, NODES, [], after, range(3, 7)) == {
        ("nodes/pve1/lrm_status", 1): 3,
        ("priv/lock/file-jobs_cfg", None): 1,
    }
    assert pmxcfs_journal.attribute(found, NODES, [], after, range(7, 8)) == {("priv/lock/file-jobs_cfg", None): 1}


def test_two_writers_of_one_file_are_not_told_apart_without_samples_of_their_own() -> None:
    seen = [(8, Row(0, "user.cfg", 20, 1))]
    after = {**NODES, 8: Row(0, "user.cfg", 21, 2)}
    found = [Transaction([(8, "user.cfg")])] * 2
    assert pmxcfs_journal.attribute(found, NODES, seen, after) == {("user.cfg", None): 2}


def test_a_synchronisation_belongs_to_no_file() -> None:
    assert (
        pmxcfs_journal.attribute([Transaction([(4, "lrm_status"), (8, "user.cfg")])], NODES, [], NODES) == {}
    )


def test_the_journal_is_read_by_its_own_clock() -> None:
    asked: list[list[str]] = []
    entries: list[dict[str, Any]] = [
        {"SYSLOG_IDENTIFIER": "pmxcfs", "__MONOTONIC_TIMESTAMP": "99", "MESSAGE": "before"},
        {"SYSLOG_IDENTIFIER": "pmxcfs", "__MONOTONIC_TIMESTAMP": "100", "MESSAGE": "first"},
        {"SYSLOG_IDENTIFIER": "pmxcfs", "__MONOTONIC_TIMESTAMP": "101", "MESSAGE": [0xFF, 0x41]},
        {"SYSLOG_IDENTIFIER": "pmxcfs", "__MONOTONIC_TIMESTAMP": "102", "MESSAGE": None},
    ]

    def run(argv: Any, **_: Any) -> Result:
        asked.append(list(argv))
        return Result(0, "\n".join(json.dumps(entry) for entry in entries) + "\nno json", "")

    lines = pmxcfs_journal.read(100, 60, run)
    assert [line.message for line in lines] == ["first", "\N{REPLACEMENT CHARACTER}A", "None"]
    assert asked[0] == ["journalctl", "--sync"]
    assert asked[1] == [
        "journalctl",
        "--boot",
        "--identifier=pmxcfs",
        "--identifier=systemd-journald",
        "--since=-120s",
        "--output=json",
        "--output-fields=MESSAGE,SYSLOG_IDENTIFIER",
        "--no-pager",
    ]
    with pytest.raises(pmxcfs_journal.Unavailable, match="No journal files"):
        pmxcfs_journal.read(0, 1, lambda argv, **_: Result(1, "", "No journal files were found.\n"))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Suppressed 12 messages from pve-cluster.service", 12),
        ("Suppressed 12 messages from /system.slice/pve-cluster.service", 12),
        ("Suppressed 12 messages from cron.service", 0),
        ("Journal started", 0),
    ],
)
def test_dropped_lines(text: str, count: int) -> None:
    assert pmxcfs_journal.suppressed([Line("systemd-journald", 1, text)]) == count
    assert pmxcfs_journal.suppressed([Line("pmxcfs", 1, text)]) == 0


def test_cost_is_the_text_of_the_daemon() -> None:
    lines = [Line("pmxcfs", 1, "ä"), Line("pmxcfs", 2, "bc"), Line("systemd-journald", 3, "not counted")]
    assert pmxcfs_journal.cost(lines) == {"lines": 2, "bytes": 4}


# The way back of the switch


@pytest.mark.parametrize(("refusals", "by_the_guard"), [(3, False), (10**6, True), (10**6, False)])
def test_a_switch_that_does_not_go_back_at_once_is_tried_again_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, by_the_guard: bool
) -> None:
    switch, folder = tmp_path / "pve/.debug", tmp_path / "run"
    switch.parent.mkdir()
    switch.write_bytes(b"0\n")
    monkeypatch.setattr(pve_file, "is_mounted_at", lambda _mount: True)
    monkeypatch.setattr(pmxcfs_journal, "RESTORE_SECONDS", 2.0 if refusals < 10 else 0.3)
    real, left = pmxcfs_journal._write, [refusals]

    def write(path: Path, state: bytes) -> None:
        if state == b"0\n" and left[0]:
            left[0] -= 1
            raise PermissionError(13, "Permission denied")
        real(path, state)

    def run(argv: Sequence[str], **_: Any) -> Result:
        if argv[:2] == ["systemctl", "stop"] and by_the_guard:
            for note in folder.glob("pmxcfs-debug.*.before"):
                switch.write_bytes(note.read_bytes())
                note.unlink()
        return Result(0, "", "")

    monkeypatch.setattr(pmxcfs_journal, "_write", write)

    def measure() -> None:
        with pmxcfs_journal.switched_on(1, pve=str(switch.parent), run_dir=str(folder), run=run):
            assert switch.read_bytes() == b"1\n"

    if refusals == 3 or by_the_guard:
        measure()
        assert switch.read_bytes() == b"0\n" and not list(folder.glob("*.before"))
    else:
        with pytest.raises(pmxcfs_journal.Unavailable, match=r"could not be switched back: .*\.debug takes no writes"):
            measure()
