# SPDX-License-Identifier: Apache-2.0
"""The one parser of mountinfo, and what both of its users make of it."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.pveguard.base.mountinfo import mountinfo
from ansible.module_utils.pveguard.disk import block_writes
from ansible.module_utils.pveguard.pmxcfs import mount

LINES = (
    b"22 1 8:2 / / rw,relatime - ext4 /dev/sda2 rw\n"
    b"36 22 0:32 / /etc/pve rw,nosuid shared:3 master:1 - fuse /dev/fuse rw,user_id=0\n"
    b"40 22 0:40 / /srv/a\\040\\134b rw - tmpfs  rw,size=1k\n"
    b"41 22 0:41 / /srv/\xff rw - zfs tank\\040x rw\n"
    b"broken\n\n"
)


def written(root: Path) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_bytes(LINES)
    return root


def test_every_field_of_a_mount(tmp_path: Path) -> None:
    found = mountinfo(str(written(tmp_path)))
    assert [each["mount_point"] for each in found] == ["/", "/etc/pve", "/srv/a \\b", "/srv/\udcff"]
    assert found[1] == {
        "number": "0:32", "mount_point": "/etc/pve", "mount_options": "rw,nosuid", "filesystem": "fuse", "source": "/dev/fuse",
        "filesystem_options": "rw,user_id=0",
    }  # fmt: skip
    # A source may be empty.
    assert found[2]["source"] == "" and found[2]["filesystem_options"] == "rw,size=1k"
    assert mountinfo(str(tmp_path / "nothing here")) == []


def test_its_users(tmp_path: Path) -> None:
    root = str(written(tmp_path))
    assert mount.on_top("/etc/pve", mount.mounts(root)) == ("/etc/pve", "fuse", "/dev/fuse", "rw,user_id=0")
    (tmp_path / "etc/pve").mkdir(parents=True)
    found = block_writes.device_behind("/etc/pve", root)
    assert (found["mount_options"], found["filesystem"]) == ("rw,nosuid,user_id=0", "fuse")


def test_names_that_are_not_utf8_can_be_told(tmp_path: Path) -> None:
    root = written(tmp_path)
    (root / "srv/\udcff").mkdir(parents=True)
    found = block_writes.device_behind("/srv/\udcff", root)
    assert (found["mount_point"], found["source"]) == ("/srv/\ufffd", "tank x")
