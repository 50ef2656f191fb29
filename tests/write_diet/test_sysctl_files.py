# SPDX-License-Identifier: Apache-2.0
"""What another file of sysctl.d sets later would count again at every boot, so a measure is not put in place beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.diet import swap, write_diet, writeback

from tests.write_diet.node import Node

Make = Callable[..., Node]


def enable(node: Node, name: str, check: bool = False) -> write_diet.Result:
    node.write("/proc/sys/vm/swappiness", "60\n")
    node.write("/proc/sys/vm/dirty_expire_centisecs", "3000\n")
    node.write("/proc/sys/vm/dirty_writeback_centisecs", "500\n")
    return write_diet.apply({name: {"enabled": True}}, check, node.run, node.root)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("name", "path", "line", "said"),
    [
        ("swap", "/etc/sysctl.d/99-mine.conf", "vm.swappiness=60", "vm.swappiness = 60"),
        ("swap", "/usr/lib/sysctl.d/99-theirs.conf", "-vm/swappiness = 1", "vm.swappiness = 1"),
        ("writeback", "/run/sysctl.d/95-x.conf", "# more\n vm.dirty_expire_centisecs = 500", "vm.dirty_expire_centisecs = 500"),
    ],
)
def test_a_later_file_is_named_and_nothing_changes(make: Make, name: str, path: str, line: str, said: str, check: bool) -> None:
    node = make()
    node.write(path, f"{line}\n")
    before = node.picture()
    with pytest.raises(PveguardError, match=f"{path} sets {said}, and is read after .*write_diet_{name}: false"):
        enable(node, name, check)
    assert node.picture() == before


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/etc/sysctl.d/10-mine.conf", "vm.swappiness=60"),  # ours comes later
        ("/etc/sysctl.d/99-mine.conf", "vm.swappiness=10"),  # says the same
        ("/etc/sysctl.d/99-mine.conf", "#vm.swappiness=60\nvm.swappiness_of_mine=1"),
        ("/etc/sysctl.d/99-mine.conf.dpkg-old", "vm.swappiness=60"),
    ],
)
def test_others_are_no_reason(make: Make, path: str, line: str) -> None:
    node = make()
    node.write(path, f"{line}\n")
    assert enable(node, "swap").changed and node.read(swap.FILE)


def test_a_file_that_another_one_of_its_name_replaces_does_not_count(make: Make) -> None:
    node = make()
    node.write("/usr/lib/sysctl.d/99-theirs.conf", "vm.dirty_expire_centisecs = 500\n")
    node.write("/etc/sysctl.d/99-theirs.conf", "")
    assert enable(node, "writeback").changed and node.read(writeback.FILE)
