# SPDX-License-Identifier: Apache-2.0
"""One grammar of Proxmox's section configurations for all who read them."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.formats import section_config
from ansible.module_utils.pveguard.ha import ha_info
from ansible.module_utils.pveguard.pmxcfs import node_traces, pmxcfs

from .test_rows import STATE

THIRD_PARTY = """\
dir: local
\tpath /var/lib/vz

rclone-backup: offsite
\tremote x

ontap_nas: prod
\tserver 192.0.2.9

DRBD: fast
\tresource r0

zfspool: tank
\tpool tank
"""


def test_a_type_is_any_text_without_white_space() -> None:
    found = section_config.parse(THIRD_PARTY)
    assert [(each.kind, each.name) for each in found.sections] == [
        ("dir", "local"),
        ("rclone-backup", "offsite"),
        ("ontap_nas", "prod"),
        ("DRBD", "fast"),
        ("zfspool", "tank"),
    ]
    assert found.strange == [] and found.sections[2].values == {"server": "192.0.2.9"}
    assert pmxcfs.custom_storages(THIRD_PARTY) == ["offsite", "prod", "fast", "tank"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "dir: a\r\n\tpath /x\r\n\r\nnfs: b\r\n\tnodes pve1\r\n",
            [("dir", "a", {"path": "/x"}), ("nfs", "b", {"nodes": "pve1"})],
        ),
        ("dir:\ta.b-c_d\t\n  path\t/x y  \n", [("dir", "a.b-c_d", {"path": "/x y"})]),
        ("dir:a\n\tshared\n", [("dir", "a", {"shared": ""})]),
        ("# dir: no\ndir: a\n# path /no\n\t# path /no\n\tpath /x\n", [("dir", "a", {"path": "/x"})]),
        ("dir: a\n\n\tpath /x\n   \n\tcontent iso\n", [("dir", "a", {"path": "/x", "content": "iso"})]),
        ("\n\n\n", []),
        ("", []),
        ("2nd.type+x: a\n", [("2nd.type+x", "a", {})]),
        ("älter: ü\n", [("älter", "ü", {})]),
        ("a:b: c\n", [("a:b", "c", {})]),
        ("dir: a\x0bb\n", []),
        # Without an id it is no section, and what follows belongs to none.
        ("nfs: a\n\tnodes pve1\ndir:\n\tnodes pve2\n", [("nfs", "a", {"nodes": "pve1"})]),
        ("nfs: a\ndir: \n\tnodes pve2\n", [("nfs", "a", {})]),
        ("nfs: a b\n\tnodes pve2\n", []),
        (" dir: a\n", []),
        ("dir: a\n\tpath /x\n\tpath /y\n", [("dir", "a", {"path": "/y"})]),
    ],
)
def test_lines(text: str, wanted: list[tuple[str, str, dict[str, str]]]) -> None:
    found = [(each.kind, each.name, each.values) for each in section_config.parse(text).sections]
    assert found == wanted
    # Everybody sees the same sections.
    names = [name for _, name, _ in wanted]
    assert pmxcfs.custom_storages(text) == names
    assert node_traces.sections(text) == [(name, values) for _, name, values in wanted]
    ids = [f"{kind}:{name}" for kind, name, _ in wanted]
    assert ha_info._resources(text)[0] == ids == STATE.resource_ids(text.encode())


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("vm: 100\n\tstate started\n", True),
        ("my-type: 1\n", True),
        ("# x\n\n", True),
        ("vm:\n", False),
        ("what is this\n", False),
    ],
)
def test_what_is_not_understood_is_no_absence_of_resources(text: str, understood: bool) -> None:
    assert ha_info._resources(text)[1] == understood
