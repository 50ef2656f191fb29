# SPDX-License-Identifier: Apache-2.0
"""Files of others: what they say, and what is left of them after an edit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.base.systemd import properties_of
from ansible.module_utils.pveguard.diet import mounts, parts, rrdcached, smartd, write_diet

from tests.write_diet.node import STOCK_DEFAULTS, Node, options

Make = Callable[..., Node]


@pytest.mark.parametrize(
    ("shell", "value"),
    [
        ("A=1\nA=2\n", "2"),
        ("export A='x y'  # ours\n", "x y"),
        ("#A=1\n", None),
        ('A="-B \\\n  -R"\n', "-B   -R"),
        ('A="-B\n-R"\nB=1\n', "-B\n-R"),
        ('A="-B -R\n', None),
        ('A=-i\\ 900 \nB="\n', "-i 900"),
        ("A=\r\n", ""),
    ],
)
def test_assignments_are_read_as_a_shell_reads_them(tmp_path: Path, shell: str, value: str | None) -> None:
    assert parts.assignments(shell).get("A") == value
    file = tmp_path / "defaults"
    file.write_bytes(shell.replace("\r", "").encode())
    asked = subprocess.run(["sh", "-c", '. "$0"; printf %s "${A-none}"', str(file)], env={}, capture_output=True, text=True)
    if asked.returncode == 0:
        assert asked.stdout == ("none" if value is None else value)


def test_words_without_quotes_as_systemd_reads_them() -> None:
    """An EnvironmentFile needs no quotes around blanks."""
    assert parts.assignments("smartd_opts=--interval=1800 -A /x/\n") == {"smartd_opts": "--interval=1800 -A /x/"}


def test_a_block_is_replaced_and_taken_out() -> None:
    text = 'A="1"\nB=2'
    once = parts.with_block(text, ['A="9"'])
    assert once == f'{text}\n{parts.BEGIN}\nA="9"\n{parts.END}\n' and parts.with_block(once, ['A="9"']) == once
    assert parts.with_block(f"{once}C=3\n", ['A="8"']) == f'{text}\nC=3\n{parts.BEGIN}\nA="8"\n{parts.END}\n'
    assert parts.with_block(once, []) == f"{text}\n"


def test_nothing_of_others_goes_with_a_block_whose_end_is_gone() -> None:
    cut = f'A="1"\n{parts.BEGIN}\nA="9"\nB="mine"\n'
    assert parts.with_block(cut, []) == 'A="1"\nA="9"\nB="mine"\n'
    assert parts.assignments(parts.with_block(cut, ['A="8"'])) == {"A": "8", "B": "mine"}
    twice = f'{parts.BEGIN}\nA="1"\n{parts.BEGIN}\nA="2"\n{parts.END}\nB=3\n'
    assert parts.with_block(twice, []) == 'A="1"\nB=3\n'


def test_options_on_several_lines_stay(make: Make) -> None:
    node = make()
    node.write("/etc/default/rrdcached", STOCK_DEFAULTS + 'BASE_OPTIONS="-B \\\n -R"\n')
    node.start_rrdcached()
    write_diet.apply({"rrdcached": options()}, False, node.run, node.root)
    assert node.rrd is not None and {"-B", "-R", "-F"} <= set(node.rrd.argv)


@pytest.mark.parametrize("core", [mounts, rrdcached, smartd])
def test_a_file_that_cannot_be_read_is_not_written(make: Make, core: object) -> None:
    """An error of the disk is not an empty file."""
    node = make()
    node.start_rrdcached()
    facts = {**rrdcached_facts(node), "mounts": [], "original": ""}
    path = node.root / core.EDITED[0].lstrip("/")  # type: ignore[attr-defined]
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises((PveguardError, OSError), match=core.EDITED[0]):  # type: ignore[attr-defined]
        core.edited(options(), facts, node.root)  # type: ignore[attr-defined]
    path.rmdir()
    # One that is not there is empty.
    assert core.EDITED[0] in core.edited(options(), facts, node.root)  # type: ignore[attr-defined]


def rrdcached_facts(node: Node) -> dict[str, object]:
    from ansible.module_utils.pveguard.diet import measures

    return dict(measures.collect(node.run, node.root)["rrdcached"])


def test_bytes_that_are_no_utf_8_come_back(make: Make) -> None:
    node = make()
    strange = STOCK_DEFAULTS.encode() + b"# caf\xe9 \xff\xfe\x85\x0b\x0c\r\nX=\xe2\x80\xa8"
    path = node.root / "etc/default/rrdcached"
    path.write_bytes(strange)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4711, 4712)
    owner = path.stat().st_uid, path.stat().st_gid
    node.start_rrdcached()
    write_diet.apply({"rrdcached": options()}, False, node.run, node.root)
    assert path.read_bytes().startswith(strange + b"\n# pveguard") and path.stat().st_mode & 0o777 == 0o640
    assert not write_diet.apply({"rrdcached": options()}, False, node.run, node.root).changed
    write_diet.apply({"rrdcached": options(write_seconds=1800)}, False, node.run, node.root)
    assert path.read_bytes().startswith(strange + b"\n# pveguard") and path.read_bytes().count(parts.BEGIN.encode()) == 1
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    write_diet.revert(run=node.run, root=node.root)
    assert path.read_bytes() == strange and path.stat().st_mode & 0o777 == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner


@pytest.mark.parametrize("path", ["/", "/var/lib/rrdcached/journal", "/dev/disk/by-uuid/a-b", "/.hidden/x y", "/a//b/", "/ä\\b"])
def test_names_of_units(path: str) -> None:
    asked = subprocess.run(["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True)
    assert parts.mount_unit(path) == asked.stdout.strip()


def test_of_several_mounts_on_a_point_the_topmost_counts() -> None:
    mounts = [{"mount_point": "/var", "filesystem": "autofs"}, {"mount_point": "/var", "filesystem": "ext4"}]
    found = parts.mounted("/var", mounts)
    assert found is not None and found["filesystem"] == "ext4" and parts.mounted("/", mounts) is None


def test_units_are_told_from_each_other_whatever_their_names_are() -> None:
    """systemctl shows an alias under another name; fewer answers than questions say nothing."""
    shown = "Id=smartmontools.service\nLoadState=loaded\n\nId=b.service\nLoadState=not-found\n"
    def told_of(*units: str) -> dict[str, dict[str, str]]:
        return properties_of(units, ["LoadState"], lambda argv: Result(0, shown))

    told = told_of("smartd.service", "b.service")
    assert told["smartd.service"]["LoadState"] == "loaded" and told["b.service"]["LoadState"] == "not-found"
    told = told_of("a.service", "smartd.service", "b.service")
    assert told["a.service"] == told["smartd.service"] == {} and told["b.service"]["LoadState"] == "not-found"


def test_processes_of_a_unit_that_does_not_run_are_nobody_s(tmp_path: Path) -> None:
    for place, pid in (("", 1), ("systemd/system.slice/a.service", 7), ("unified", 2)):
        folder = tmp_path / "sys/fs/cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text(f"{pid}\n")
    for nothing in ({"ControlGroup": ""}, {}, None):
        assert parts.processes(nothing, tmp_path) == []
    # cgroup v1, with systemd's own hierarchy.
    assert parts.processes({"ControlGroup": "/system.slice/a.service"}, tmp_path) == [7]
