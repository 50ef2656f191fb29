# SPDX-License-Identifier: Apache-2.0
"""The measures that are off until they are switched on: each there, in a second run, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.diet import (
    fstrim,
    measures,
    smartd,
    swap,
    timers,
    write_diet,
    writeback,
    zfs_txg,
)

from tests.write_diet.node import Node, options

Make = Callable[..., Node]


def enable(node: Node, name: str, check: bool = False, **more: Any) -> write_diet.Result:
    return write_diet.apply({name: options(**more)}, check, node.run, node.root)


def facts(node: Node, name: str) -> dict[str, Any]:
    found: dict[str, Any] = measures.collect(node.run, node.root)[name]
    return found


def there_and_back(node: Node, name: str, look: Callable[[], Any], **more: Any) -> write_diet.Result:
    """On, a dry run before and a second run after it; and off again, with everything as it was."""
    before, state = node.picture(), look()
    node.calls.clear()
    foreseen = enable(node, name, True, **more)
    assert (node.picture(), look()) == (before, state) and node.changing() == []
    done = enable(node, name, **more)
    assert done.changed and (done.todo, done.files) == (foreseen.todo, foreseen.files)
    node.calls.clear()
    assert not enable(node, name, **more).changed and node.changing() == []
    seen = look()
    assert write_diet.revert(run=node.run, root=node.root).changed
    assert (node.picture(), look()) == (before, state) and not (node.root / "var/lib/pveguard/write_diet").exists()
    assert not write_diet.revert(run=node.run, root=node.root).changed
    enable(node, name, **more)
    assert look() == seen
    return done


# -- smartd

SMARTD_UNIT = "[Service]\nType=notify\nEnvironmentFile=-/etc/default/smartmontools\nExecStart=/usr/sbin/smartd -n $smartd_opts\n"


@pytest.fixture
def with_smartd(make: Make) -> Node:
    node = make()
    node.write("/usr/lib/systemd/system/smartmontools.service", SMARTD_UNIT)
    node.unit(smartd.UNIT, "/usr/lib/systemd/system/smartmontools.service", active=True)
    node.write("/etc/default/smartmontools", '# Defaults\n#smartd_opts="--interval=1800"\nsmartd_opts="-i 900 -A /x/"\n')
    node.write("/sys/fs/cgroup/system.slice/smartmontools.service/cgroup.procs", "50\n")
    start = node.do_systemctl

    def systemctl(arguments: list[str]) -> Any:
        done = start(arguments)
        if smartd.UNIT in arguments and arguments[0] == "restart":
            run_smartd(node)
        return done

    node.do_systemctl = systemctl  # type: ignore[method-assign]
    run_smartd(node)
    return node


def run_smartd(node: Node) -> None:
    given = smartd.assignments(node.read("/etc/default/smartmontools")).get("smartd_opts", "")
    node.write("/proc/50/cmdline", "\0".join(["/usr/sbin/smartd", "-n", *given.split()]) + "\0")


def test_smartd_keeps_no_files(with_smartd: Node) -> None:
    done = there_and_back(with_smartd, "smartd", lambda: with_smartd.read("/proc/50/cmdline"))
    assert done.done == ["smartd restarted"]
    assert with_smartd.read("/proc/50/cmdline").split("\0")[1:-1] == ["-n", "-i", "900", "-A", "/x/", "-s", "-", "-A", "-"]


def test_a_smartd_that_still_runs_with_what_was_set_before_is_restarted(with_smartd: Node) -> None:
    enable(with_smartd, "smartd")
    with_smartd.write("/proc/50/cmdline", "/usr/sbin/smartd\0-n\0")
    assert enable(with_smartd, "smartd").done == ["smartd restarted"] and not enable(with_smartd, "smartd").changed


def test_smartd_that_does_not_run_is_set_and_not_started(with_smartd: Node) -> None:
    with_smartd.units[smartd.UNIT]["ActiveState"] = "inactive"
    (with_smartd.root / "sys/fs/cgroup/system.slice/smartmontools.service/cgroup.procs").unlink()
    assert enable(with_smartd, "smartd").done == [] and not enable(with_smartd, "smartd").changed


def test_a_smartd_that_reads_no_options_is_left_alone(with_smartd: Node) -> None:
    with_smartd.write("/usr/lib/systemd/system/smartmontools.service", "[Service]\nExecStart=/usr/sbin/smartd -n\n")
    assert not enable(with_smartd, "smartd").changed


@pytest.mark.parametrize(
    ("given", "writes"),
    [
        ("", True),
        ("-s - -A -", False),
        ("-s- -A-", False),
        ("--savestates=- --attributelog=-", False),
        ("-s -", True),
        ("-s - -A - -s /x", True),
        ("-A", True),
    ],
)
def test_options_of_smartd(given: str, writes: bool) -> None:
    assert smartd._writes(given) is writes


# -- what the kernel is told


def test_what_nobody_syncs_is_written_less_often(make: Make) -> None:
    node = make()
    node.write("/proc/sys/vm/dirty_expire_centisecs", "3000\n")
    node.write("/proc/sys/vm/dirty_writeback_centisecs", "500\n")

    def look() -> list[str]:
        return [node.read(path).strip() for path in writeback.KEYS.values()]

    there_and_back(node, "writeback", look)
    assert look() == ["12000", "2000"] and "vm.dirty_expire_centisecs = 12000\n" in node.read(writeback.FILE)
    # A boot without the file, and a file that somebody took away.
    (node.root / writeback.FILE.lstrip("/")).unlink()
    assert enable(node, "writeback").todo == ["keep vm.dirty_expire_centisecs over a boot"]
    # The first state is the one that comes back, however often the wish changes.
    enable(node, "writeback", expire_seconds=60)
    write_diet.revert(run=node.run, root=node.root)
    assert look() == ["3000", "500"]


def test_zfs_collects_for_longer(make: Make) -> None:
    node = make()
    assert not enable(node, "zfs_txg").changed
    node.write(zfs_txg.PARAMETER, "5\n")
    there_and_back(node, "zfs_txg", lambda: node.read(zfs_txg.PARAMETER))
    assert node.read(zfs_txg.PARAMETER) == "15\n" and f"w {zfs_txg.PARAMETER} - - - - 15\n" in node.read(zfs_txg.FILE)


# -- timers


def test_fstrim_is_switched_on(make: Make) -> None:
    node = make()
    node.unit(fstrim.UNIT, "/usr/lib/systemd/system/fstrim.timer", state="disabled")
    node.link_enables(fstrim.UNIT, fstrim.LINK)
    there_and_back(node, "fstrim", lambda: node.units[fstrim.UNIT]["ActiveState"])
    assert node.units[fstrim.UNIT]["ActiveState"] == "active" and node.exists(fstrim.LINK)


def test_an_fstrim_that_is_on_or_masked_is_left_alone(make: Make) -> None:
    node = make()
    node.unit(fstrim.UNIT, "/usr/lib/systemd/system/fstrim.timer", active=True)
    assert not enable(node, "fstrim").changed
    node.units[fstrim.UNIT].update(LoadState="masked", ActiveState="inactive", UnitFileState="masked")
    assert not enable(node, "fstrim").changed


def test_packages_have_a_moment_of_their_own(make: Make) -> None:
    node = make()
    node.unit("apt-daily.timer", active=True)
    node.unit("pve-daily-update.timer", active=True)
    node.unit("man-db.timer", state="disabled")
    done = there_and_back(node, "timers", list)
    # On the way back and there again.
    assert [argv for argv in node.changing() if argv[1] != "daemon-reload"] == [
        ["systemctl", "restart", "apt-daily.timer", "pve-daily-update.timer"]
    ] * 2
    assert done.done == ["apt-daily.timer, pve-daily-update.timer restarted"]
    text = node.read("/etc/systemd/system/apt-daily.timer.d/pveguard.conf")
    assert "OnCalendar=\nOnCalendar=*-*-* 06:00\nRandomizedDelaySec=43200\nFixedRandomDelay=true\n" in text
    assert "OnCalendar" not in node.read("/etc/systemd/system/pve-daily-update.timer.d/pveguard.conf")
    assert not node.exists("/etc/systemd/system/apt-daily-upgrade.timer.d")
    assert set(timers.TIMERS) == set(timers.UNITS)


# -- swap


@pytest.fixture
def with_swap(make: Make) -> Node:
    node = make()
    node.write("/proc/sys/vm/swappiness", "60\n")
    lines = ["/dev/vg/swap none swap sw 0 0", "UUID=a-b none swap sw 0 0", "#/dev/old none swap sw", "/dev/x / ext4 defaults"]
    node.write("/etc/fstab", "\n".join(lines) + "\n")
    node.write("/proc/meminfo", "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 4000000 kB\n")
    node.swaps = {"/dev/dm-1": 1000, "/dev/sda2": 0}
    node.fstab_swaps = ("/dev/dm-1",)
    node.write("/proc/sys/kernel/random/boot_id", "first\n")
    node.show_swaps()
    return node


def test_swap_is_used_later(with_swap: Node) -> None:
    there_and_back(with_swap, "swap", lambda: (with_swap.read("/proc/sys/vm/swappiness"), sorted(with_swap.swaps)))
    assert with_swap.read("/proc/sys/vm/swappiness") == "10\n" and "vm.swappiness = 10\n" in with_swap.read(swap.FILE)
    assert len(with_swap.swaps) == 2


def test_swap_is_off_where_memory_holds_it(with_swap: Node) -> None:
    done = there_and_back(with_swap, "swap", lambda: sorted(with_swap.swaps), device="none")
    assert "switch swap on /dev/dm-1, /dev/sda2 off" in done.todo and with_swap.swaps == {}
    masks = {path for path, what in with_swap.picture().items() if what == "link /dev/null"}
    assert masks == {"etc/systemd/system/dev-vg-swap.swap", r"etc/systemd/system/dev-disk-by\x2duuid-a\x2db.swap"}
    # Wanted again, it comes back with its units.
    assert enable(with_swap, "swap").changed and sorted(with_swap.swaps) == ["/dev/dm-1", "/dev/sda2"]
    assert "link /dev/null" not in with_swap.picture().values() and not enable(with_swap, "swap").changed


def test_after_a_boot_swap_comes_back_by_fstab_and_not_by_a_name_that_a_guest_may_have_now(with_swap: Node) -> None:
    enable(with_swap, "swap", device="none")
    with_swap.write("/proc/sys/kernel/random/boot_id", "second\n")
    with_swap.fstab_swaps = ("/dev/dm-7", "/dev/sdb2")
    done = write_diet.revert(run=with_swap.run, root=with_swap.root)
    assert sorted(with_swap.swaps) == ["/dev/dm-7", "/dev/sdb2"] and "swap on /dev/dm-7 switched on" in done.done
    assert [argv for argv in with_swap.calls if argv[0] == "swapon"] == [["swapon", "--all"]]


def test_swap_that_does_not_come_back_is_told_with_the_file(with_swap: Node) -> None:
    enable(with_swap, "swap", device="none")
    with_swap.write("/proc/sys/kernel/random/boot_id", "second\n")
    with_swap.hook = lambda argv: Result(255, "", "cannot find the device for UUID=a-b") if argv[0] == "swapon" else None
    with pytest.raises(PveguardError, match="cannot find the device for UUID=a-b.*/etc/fstab"):
        write_diet.revert(run=with_swap.run, root=with_swap.root)
    # Mended, the next run ends it.
    with_swap.hook = lambda argv: None
    write_diet.revert(run=with_swap.run, root=with_swap.root)
    assert list(with_swap.swaps) == ["/dev/dm-1"] and not write_diet.revert(run=with_swap.run, root=with_swap.root).changed


@pytest.mark.parametrize("available", [900000, 1700000])
def test_swap_stays_on_where_memory_does_not_hold_it(with_swap: Node, available: int) -> None:
    with_swap.write("/proc/meminfo", f"MemTotal: 8000000 kB\nMemAvailable: {available} kB\n")
    with_swap.swaps["/dev/dm-1"] = 1000000
    with_swap.show_swaps()
    before = with_swap.picture()
    for check in (True, False):
        with pytest.raises(PveguardError, match="swap is not switched off: it holds 976 MiB"):
            enable(with_swap, "swap", check, device="none")
    assert with_swap.picture() == before and with_swap.changing() == [] and len(with_swap.swaps) == 2


def test_memory_that_fills_meanwhile_stops_it(with_swap: Node) -> None:
    """It is looked at again before each device, and what was switched off comes back."""
    before = with_swap.picture()

    def fill(argv: list[str]) -> Result | None:
        if argv == ["swapoff", "/dev/dm-1"]:
            with_swap.write("/proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 100000 kB\n")
        return None

    with_swap.hook = fill
    with pytest.raises(PveguardError, match="swap is not switched off"):
        enable(with_swap, "swap", device="none")
    assert with_swap.picture() == before and sorted(with_swap.swaps) == ["/dev/dm-1", "/dev/sda2"]
    assert with_swap.read("/proc/sys/vm/swappiness") == "60\n"


def test_zram_only_where_its_package_is_there(with_swap: Node) -> None:
    before = with_swap.picture()
    with pytest.raises(PveguardError, match="needs one of the packages systemd-zram-generator and zram-tools"):
        enable(with_swap, "swap", device="zram")
    assert with_swap.picture() == before and with_swap.changing() == []
    with_swap.write(swap.GENERATOR, "")
    with_swap.zram_units = ("dev-zram0.swap",)
    there_and_back(with_swap, "swap", lambda: sorted(with_swap.swaps), device="zram")
    assert list(with_swap.swaps) == ["/dev/zram0"] and "zram-size" in with_swap.read(swap.GENERATOR_CONF)


def test_settings_of_zram_that_are_there_stay_as_they_are(with_swap: Node) -> None:
    """Debian's package brings a configuration file, which the operator may have edited."""
    with_swap.write(swap.GENERATOR, "")
    with_swap.write(swap.GENERATOR_CONF, "[zram0]\nzram-size = ram / 8\n")
    with_swap.zram_units = ("dev-zram0.swap",)
    there_and_back(with_swap, "swap", lambda: sorted(with_swap.swaps), device="zram")
    assert list(with_swap.swaps) == ["/dev/zram0"] and with_swap.read(swap.GENERATOR_CONF) == "[zram0]\nzram-size = ram / 8\n"


def test_zram_tools_have_settings_of_their_own(with_swap: Node) -> None:
    with_swap.unit(swap.SERVICE)
    with_swap.zram_units = (swap.SERVICE,)
    there_and_back(with_swap, "swap", lambda: sorted(with_swap.swaps), device="zram")
    assert list(with_swap.swaps) == ["/dev/zram0"] and not with_swap.exists(swap.GENERATOR_CONF)
