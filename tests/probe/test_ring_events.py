# SPDX-License-Identifier: Apache-2.0
"""What the journal says of the ring, as counts: each line once, nothing that is not an event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.writes import ring_events

# Of corosync 3.1.7 and 3.1.9, as its journal has them; of the daemon, as its users publish them.
SAID = [
    ("corosync", "  [KNET  ] link: host: 3 link: 0 is down"),
    ("corosync", "  [KNET  ] host: host: 3 (passive) best link: 0 (pri: 1)"),
    ("corosync", "  [KNET  ] host: host: 3 has no active links"),
    ("corosync", "  [TOTEM ] Token has not been received in 2737 ms "),
    ("corosync", "  [TOTEM ] A processor failed, forming new configuration: token timed out (3650ms)"),
    ("corosync", "  [QUORUM] Sync members[2]: 1 2"),
    ("corosync", "  [QUORUM] Sync left[1]: 3"),
    ("corosync", "  [TOTEM ] A new membership (1.2d) was formed. Members left: 3"),
    ("corosync", "  [TOTEM ] Failed to receive the leave message. failed: 3"),
    ("corosync", "  [QUORUM] Members[2]: 1 2"),
    ("corosync", "  [MAIN  ] Completed service synchronization, ready to provide service."),
    ("pmxcfs", "[dcdb] notice: members: 1/1147, 2/1060"),
    ("pmxcfs", "[status] notice: members: 1/1147, 2/1060"),
    ("corosync", "  [KNET  ] rx: host: 3 link: 0 is up"),
    ("corosync", "  [TOTEM ] A new membership (1.31) was formed. Members joined: 3"),
    ("corosync", "  [TOTEM ] Retransmit List: 5 6 7"),
    ("pmxcfs", "[status] notice: starting data syncronisation"),
    ("pmxcfs", "[dcdb] notice: starting data syncronisation"),
    ("pmxcfs", "[dcdb] notice: received sync request (epoch 1/1147/00000004)"),
    ("pmxcfs", "[dcdb] notice: received all states"),
    ("pmxcfs", "[dcdb] notice: leader is 1/1147"),
    ("pmxcfs", "[dcdb] notice: synced members: 1/1147, 2/1060"),
    ("pmxcfs", "[dcdb] notice: waiting for updates from leader"),
    ("pmxcfs", "[dcdb] notice: update complete - trying to commit (got 12 inode updates)"),
    ("pmxcfs", "[dcdb] notice: all data is up to date"),
    ("pmxcfs", "[status] notice: all data is up to date"),
    ("pmxcfs", "[dcdb] notice: leader is 2/1060"),
    ("pmxcfs", "[dcdb] notice: cpg_send_message retried 42 times"),
    ("corosync", "  [CFG   ] Config reload requested by node 2"),
    ("systemd", "corosync said: [TOTEM ] Retransmit List: 5"),
]


def lines(said: Sequence[tuple[str, str]] = SAID) -> list[ring_events.Line]:
    return [ring_events.Line(who, 1_000_000 * number, text) for number, (who, text) in enumerate(said, 5)]


def test_every_event_is_counted_once() -> None:
    found = ring_events.summary(ring_events.events(lines(), 5_000_000), 60.0)
    assert {kind: count for kind, count in found["counts"].items() if count} == {
        "membership": 2, "token_late": 1, "token_lost": 1, "retransmit": 1, "link_down": 1, "link_up": 1, "reload": 1, "sync": 1,
        "leader": 2, "updates": 1, "up_to_date": 1, "held_up": 1,
    }  # fmt: skip
    assert (found["joined"], found["left"], found["updates_received"]) == ([3], [3], 12)
    assert (found["leaders"], found["leader_changes"]) == ([1, 2], 1)
    assert found["events"][0] == {
        "seconds": 0.0, "source": "corosync", "kind": "link_down", "text": "[KNET  ] link: host: 3 link: 0 is down",
    }  # fmt: skip


def test_who_comes_and_goes_at_once() -> None:
    text = "[TOTEM ] A new membership (1.40) was formed. Members joined: 3 4 left: 2"
    found = ring_events.summary(ring_events.events(lines([("corosync", text)])), 1.0)
    assert (found["joined"], found["left"]) == ([3, 4], [2])


def test_a_quiet_ring_is_said_to_be_quiet() -> None:
    found = {**ring_events.summary([], 600.0), "from": "a", "to": "b"}
    assert ring_events.quiet(found) and ring_events.figures(found) == []
    assert "quiet" in ring_events.lines("watch1", found)[1]
    assert "not known: no journal" in ring_events.lines("watch1", None, "no journal")[0]


def test_more_events_than_are_kept_stay_in_the_counts() -> None:
    storm = [("corosync", "[TOTEM ] Retransmit List: 5")] * (ring_events.MOST_EVENTS + 7)
    found = ring_events.summary(ring_events.events(lines(storm)), 1.0)
    assert found["counts"]["retransmit"] == ring_events.MOST_EVENTS + 7 and len(found["events"]) == ring_events.MOST_EVENTS
    assert found["notes"] == ["7 more events are only in the counts"]


def place(root: Path, boot: str) -> Path:
    path = root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{boot}\n")
    return root


def test_only_what_came_after_the_mark_counts(tmp_path: Path) -> None:
    place(tmp_path, "one")
    mark = ring_events.mark(tmp_path)

    def journal(argv: Sequence[str], **_: Any) -> Result:
        if "--sync" in argv:
            return Result(0, "", "")
        assert "--identifier=corosync" in argv and "--identifier=pmxcfs" in argv
        rows = [(mark["monotonic_us"] - 1, 1), (mark["monotonic_us"] + 1, 2)]
        entries = [
            {"SYSLOG_IDENTIFIER": "corosync", "__MONOTONIC_TIMESTAMP": str(at), "MESSAGE": f"[TOTEM ] Retransmit List: {text}"}
            for at, text in rows
        ]
        return Result(0, "\n".join(map(json.dumps, entries)), "")

    found = ring_events.collect(mark, journal, tmp_path)
    assert found["counts"]["retransmit"] == 1 and found["events"][0]["text"].endswith(": 2")


def test_a_reboot_in_the_window_is_said(tmp_path: Path) -> None:
    mark = ring_events.mark(place(tmp_path, "one"))
    place(tmp_path, "two")
    with pytest.raises(PveguardError, match="rebooted in the window"):
        ring_events.collect(mark, root=tmp_path)
