# SPDX-License-Identifier: Apache-2.0
"""Paths and what they are for, and sums by class and by node."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.writes import write_classes
from hypothesis import given
from hypothesis import strategies as st

KNOWN = {
    "nodes/pve1/lrm_status": "ha",
    "ha/manager_status": "ha",
    "ha/resources.cfg": "ha",
    "priv/lock/ha_agent_pve1_lock": "ha",
    "priv/lock/ha_manager_lock": "ha",
    "priv/lock/file-jobs_cfg": "locks",
    "priv/lock/storage-nfs": "locks",
    "priv/lock": "locks",
    "nodes/pve1/tasks/index": "logs",
    "nodes/pve1/qemu-server/100.conf": "guests",
    "nodes/pve1/lxc/101.conf": "guests",
    "storage.cfg": "storage",
    "priv/storage/backup.pw": "storage",
    "user.cfg": "users",
    "priv/token.cfg": "users",
    "authkey.pub": "users",
    "nodes/pve1/pve-ssl.pem": "certificates",
    "pve-root-ca.pem": "certificates",
    "priv/pve-root-ca.srl": "certificates",
    "priv/authorized_keys": "certificates",
    "sdn/zones.cfg": "sdn",
    "firewall/100.fw": "firewall",
    "nodes/pve1/host.fw": "firewall",
    "corosync.conf": "corosync",
    "corosync.conf.new": "corosync",
    "jobs.cfg": "jobs",
    "replication.cfg": "jobs",
    "datacenter.cfg": "other",
    "nodes/pve1/config": "other",
}


@pytest.mark.parametrize(("path", "name"), KNOWN.items())
def test_classes(path: str, name: str) -> None:
    assert write_classes.classify(path).name == name
    assert write_classes.classify(f"{path}.tmp.4711").name == name, "a file that is going to replace it"


NAMES = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789._-'", min_size=1, max_size=12)


@given(st.lists(NAMES, min_size=1, max_size=5).map("/".join))
def test_every_path_has_one_class_with_a_label(path: str) -> None:
    kind = write_classes.classify(path)
    assert kind.name in write_classes.LABELS and kind.label and kind.name != "unattributed"
    assert write_classes.classify(f"{path}.tmp.1") == kind


@given(st.sampled_from(sorted(KNOWN)), NAMES)
def test_patterns_are_anchored(path: str, folder: str) -> None:
    """What lies in a folder of the same name somewhere else is not the file that is known."""
    assert write_classes.classify(f"{folder}~/{path}").name in ("other", "logs")


def file(path: str | None, count: int, writer: int | None = 1, exact: bool = True) -> dict[str, Any]:
    kind = write_classes.classify(path)
    return {
        "path": path,
        "class": kind.name,
        "label": kind.label,
        "writer": writer,
        "node": None if writer is None else f"pve{writer}",
        "transactions_at_least": count,
        "exact": exact,
    }


def test_sums_by_class_name_what_was_seen() -> None:
    files = [
        file("nodes/pve1/lrm_status", 36),
        file("nodes/pve2/lrm_status", 36, writer=2),
        file("priv/lock/file-jobs_cfg", 2),
        file("priv/lock/storage-nfs", 3, exact=False),
    ]
    assert write_classes.by_class(files, 80, 60) == [
        {
            "class": "ha",
            "label": "HA heartbeat (lrm_status)",
            "transactions": 72,
            "transactions_per_minute": 72.0,
            "exact": True,
        },
        {
            "class": "locks",
            "label": "locks",
            "transactions": 5,
            "transactions_per_minute": 5.0,
            "exact": False,
        },
        {
            "class": "unattributed",
            "label": "not attributed to a file",
            "transactions": 3,
            "transactions_per_minute": 3.0,
            "exact": False,
        },
    ]
    assert write_classes.by_class(files, None, None)[-1]["class"] == "locks", (
        "nothing is guessed without a total"
    )


def test_sums_by_writer_are_exact_only_when_all_is_explained() -> None:
    files = [file("a", 3), file("b", 4, writer=2)]
    assert [
        (w["node_id"], w["node"], w["transactions"], w["exact"])
        for w in write_classes.by_writer(files, 7, 60)
    ] == [
        (2, "pve2", 4, True),
        (1, "pve1", 3, True),
    ]
    assert not any(w["exact"] for w in write_classes.by_writer(files, 8, 60))
    nameless = write_classes.by_writer([*files, file("c", 1, writer=None)], 8, 60)
    assert [(w["node"], w["exact"]) for w in nameless] == [("pve2", False), ("pve1", False)]
