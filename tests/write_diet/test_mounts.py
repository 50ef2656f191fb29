# SPDX-License-Identifier: Apache-2.0
"""Access times and commits: fstab keeps every other byte, and the kernel says what is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result, run
from ansible.module_utils.pveguard.diet import measures, mounts, write_diet

from tests.mounts import own_mounts
from tests.write_diet.node import Node, options

Make = Callable[..., Node]
FSTAB = (
    "# <file system> <mount point> <type> <options>\r\n"
    "UUID=abc\t/   ext4\terrors=remount-ro,relatime 0 1   # root\n"
    "/dev/vg/var /var xfs defaults\n"
    "/dev/vg/log /var/log ext4\n"
    "/dev/vg/data /mnt/data ext4 defaults 0 2\n"
    "//server/share /var/share cifs username=a,password=s\\040cret 0 0\n"
    "/dev/vg/swap none swap sw 0 0\n"
    "not a line"
)


@pytest.fixture
def node(make: Make) -> Node:
    node = make()
    node.write("/etc/fstab", FSTAB)
    node.mounts += [
        "30 29 8:2 / /var rw,nosuid,relatime shared:2 - xfs /dev/vg/var rw,attr2",
        "31 30 8:3 / /var/log rw,noatime - ext4 /dev/vg/log rw,commit=30",
        "32 29 8:4 / /mnt/data rw,relatime - ext4 /dev/vg/data rw",
        "33 30 0:40 / /var/share rw,relatime - cifs //server/share rw",
    ]
    node.show_mounts()
    return node


def enable(node: Node, check: bool = False, **more: Any) -> write_diet.Result:
    return write_diet.apply({"mounts": options(**more)}, check, node.run, node.root)


def remounts(node: Node) -> list[list[str]]:
    return [argv for argv in node.calls if argv[0] == "mount"]


def test_only_the_options_of_the_lines_in_question_change(node: Node) -> None:
    before, live = node.picture(), list(node.mounts)
    foreseen = enable(node, True)
    assert node.picture() == before and node.changing() == []
    done = enable(node)
    assert done.todo == foreseen.todo == [
        "mount / with noatime instead of relatime",
        "mount /var with noatime instead of relatime",
        "mount /var/log with noatime instead of nothing lasting",
    ]
    wanted = FSTAB.replace("remount-ro,relatime", "remount-ro,noatime").replace("xfs defaults\n", "xfs defaults,noatime\n")
    wanted = wanted.replace("/var/log ext4\n", "/var/log ext4 defaults,noatime\n")
    assert (node.root / "etc/fstab").read_bytes() == wanted.encode()
    # The device and all options of the mount: nothing of fstab comes along.
    assert remounts(node) == [
        ["mount", "-o", "remount,bind,rw,noatime", "/dev/sda1", "/"],
        ["mount", "-o", "remount,bind,rw,nosuid,noatime", "/dev/vg/var", "/var"],
    ]
    # systemd makes units of fstab.
    assert node.calls.index(["systemctl", "daemon-reload"]) < node.calls.index(remounts(node)[0])
    assert not enable(node).changed
    write_diet.revert(run=node.run, root=node.root)
    assert node.picture() == before and node.mounts == live
    assert not write_diet.revert(run=node.run, root=node.root).changed


def test_a_password_in_fstab_is_no_fact_and_in_no_diff(node: Node) -> None:
    assert "cret" not in str(measures.collect(node.run, node.root))
    for result in (enable(node, True), enable(node), write_diet.revert(run=node.run, root=node.root)):
        (shown,) = write_diet.diff(result.files)
        assert "cret" not in str(shown) and "username=a,password=***" in shown["before"] and "noatime" in str(shown)


def test_the_commit_interval_is_for_ext4_and_by_choice(node: Node) -> None:
    before, live = node.picture(), list(node.mounts)
    enable(node, atime="keep", commit_seconds=20)
    text = node.read("/etc/fstab")
    assert "errors=remount-ro,relatime,commit=20 0 1" in text and "/var/log ext4 defaults,commit=20" in text
    assert "xfs defaults\n" in text and "noatime" not in text
    assert remounts(node) == [
        ["mount", "-o", "remount,rw,relatime,commit=20", "/dev/sda1", "/"],
        ["mount", "-o", "remount,rw,noatime,commit=20", "/dev/vg/log", "/var/log"],
    ]
    assert not enable(node, atime="keep", commit_seconds=20).changed
    write_diet.revert(run=node.run, root=node.root)
    # 5 s are ext4's own, which it does not show.
    assert node.picture() == before and node.mounts == live


def test_the_file_system_below_a_mount_that_is_read_only_stays_writable(node: Node) -> None:
    """A bind mount, for instance: ``remount,ro`` would be for the file system."""
    node.mounts[0] = "29 1 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw"
    node.show_mounts()
    enable(node, commit_seconds=20)
    assert [argv[-1] for argv in remounts(node) if "commit" in str(argv)] == ["/var/log"]
    assert "remount-ro,noatime 0 1" in node.read("/etc/fstab") and not enable(node, commit_seconds=20).changed


def test_relatime_that_nobody_has_to_write_down(node: Node) -> None:
    enable(node, atime="relatime")
    # The kernel's default needs no word; what was mounted otherwise is mounted again.
    assert (node.root / "etc/fstab").read_bytes() == FSTAB.encode()
    assert [argv[-1] for argv in remounts(node)] == ["/var/log"]
    write_diet.revert(run=node.run, root=node.root)
    assert "31 30 8:3 / /var/log rw,noatime - ext4 /dev/vg/log rw,commit=30" in node.mounts


def test_a_remount_that_the_kernel_does_not_show_is_taken_back(node: Node) -> None:
    before = node.picture()
    node.hook = lambda argv: Result(0) if argv[0] == "mount" else None
    with pytest.raises(PveguardError, match="still to be done: mount / with noatime instead of relatime"):
        enable(node)
    assert node.picture() == before


def test_what_somebody_added_to_fstab_since_outlives_a_change_that_fails(node: Node) -> None:
    enable(node)
    mine = "/dev/vg/images /var/lib/images ext4 defaults 0 2\n"
    node.write("/etc/fstab", mine + node.read("/etc/fstab"))
    before = node.read("/etc/fstab")
    node.hook = lambda argv: Result(32, "", "mount: bad option") if "commit=20" in str(argv) else None
    with pytest.raises(PveguardError, match="bad option.*/etc/fstab.*as it was before this run"):
        enable(node, commit_seconds=20)
    assert node.read("/etc/fstab") == before
    # It is still known as somebody's, and the next run does it.
    with pytest.raises(PveguardError, match="somebody changed what pveguard wrote.*/etc/fstab"):
        write_diet.revert(run=node.run, root=node.root)
    node.hook = lambda argv: None
    enable(node, commit_seconds=20)
    assert mine in node.read("/etc/fstab") and node.read("/etc/fstab").count("commit=20") == 2
    assert not enable(node, commit_seconds=20).changed


def test_a_host_whose_root_is_not_in_fstab(make: Make) -> None:
    node = make()
    assert not enable(node).changed
    node.write("/etc/fstab", "tank/root / zfs defaults 0 0\n")
    node.mounts = ["29 1 0:30 / / rw,relatime - zfs rpool/ROOT rw"]
    node.show_mounts()
    assert not enable(node).changed and not node.changing()


@contextmanager
def file_system(image: Path, point: Path) -> Iterator[None]:
    with image.open("wb") as handle:
        handle.truncate(16 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop,nosuid", image, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.root
def test_a_real_ext4_is_remounted_and_back(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is mounted really, and the mount command of the machine."""
    with own_mounts(), file_system(tmp_path / "image", tmp_path / "point"):
        node = make("none")
        point = str(tmp_path / "point")
        monkeypatch.setattr(mounts, "SYSTEM", (point,))
        (node.root / "proc/self/mountinfo").unlink()
        (node.root / "proc/self/mountinfo").symlink_to("/proc/thread-self/mountinfo")
        # Its noexec is not mounted, and must not come along.
        fstab = f"/dev/nothing {point} ext4 noexec 0 2\n"
        node.write("/etc/fstab", fstab)

        def on_node(argv: Any, **rest: Any) -> Result:
            return run(argv, **rest) if argv[0] == "mount" else node.run(argv, **rest)

        def shown() -> str:
            (line,) = [line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if f" {point} " in line]
            return line.split(" ", 5)[5]

        before = shown()
        wanted = {"mounts": options(commit_seconds=30)}
        assert write_diet.apply(wanted, False, on_node, node.root).changed
        assert shown().startswith("rw,nosuid,noatime") and shown().endswith("commit=30") and "noexec" not in shown()
        assert not write_diet.apply(wanted, False, on_node, node.root).changed
        write_diet.revert(run=on_node, root=node.root)
        assert shown() == before and node.read("/etc/fstab") == fstab
    assert not os.path.ismount(tmp_path / "point")
