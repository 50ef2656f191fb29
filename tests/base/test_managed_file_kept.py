# SPDX-License-Identifier: Apache-2.0
"""Files that are put back byte for byte, whoever ends the run and whenever."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import atomic, managed_file
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.managed_file import (
    FileSpec,
    apply,
    drifted,
    original,
    plan,
    plan_revert,
    revert,
)

NAME = "write_diet.atime"


def put(root: Path, path: str, data: bytes, mode: int = 0o644) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)
    return file


def picture(root: Path) -> dict[str, Any]:
    """Everything below a root but the store: what a revert has to bring back."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        if path.is_relative_to(root / "var/lib/pveguard") or path in (root / "var", root / "var/lib"):
            continue
        status = os.lstat(path)
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return found


def test_a_revert_brings_back_content_mode_and_owner_and_what_was_not_there(tmp_path: Path) -> None:
    put(tmp_path, "/etc/fstab", b"no utf-8: \xff\xfe\r\nno newline", 0o640)
    os.chown(tmp_path / "etc/fstab", os.geteuid(), os.getegid() if os.geteuid() else 8)
    put(tmp_path, "/etc/default/gone", b"removed by the run", 0o600)
    before = picture(tmp_path)
    specs = [
        FileSpec("/etc/fstab", "ours\n"),
        FileSpec("/etc/new.d/deep/ours.conf", "ours\n", "0600"),
        FileSpec("/etc/default/gone", present=False),
        FileSpec("/etc/link", link="/run/x"),
    ]
    foreseen = plan(specs, NAME, tmp_path)
    assert picture(tmp_path) == before and not (tmp_path / "var").exists()
    assert apply(specs, NAME, tmp_path) == foreseen
    assert [change.what for change in foreseen] == ["content", "created", "removed", "created"]
    assert apply(specs, NAME, tmp_path) == []
    apply([FileSpec("/etc/fstab", "ours, second\n")], NAME, tmp_path)
    assert original(NAME, "/etc/fstab", tmp_path) == b"no utf-8: \xff\xfe\r\nno newline"
    assert original(NAME, "/etc/new.d/deep/ours.conf", tmp_path) is None
    written = picture(tmp_path)
    foreseen = plan_revert(NAME, tmp_path)
    assert picture(tmp_path) == written
    assert revert(NAME, tmp_path) == foreseen and len(foreseen) == 4
    assert picture(tmp_path) == before and not (tmp_path / "var/lib/pveguard/managed").exists()
    assert revert(NAME, tmp_path) == [] and managed_file.names(tmp_path) == []


def test_a_kept_original_is_for_root_alone(tmp_path: Path) -> None:
    put(tmp_path, "/etc/a/secret", b"x", 0o644)
    apply([FileSpec("/etc/a/secret", "y")], NAME, tmp_path)
    store = tmp_path / managed_file.STORE / NAME
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.iterdir()} == {0o600}


@pytest.mark.parametrize("bad", ["/etc/link", "/etc/folder", "/etc/fifo"])
def test_what_is_no_regular_file_is_refused_and_nothing_is_written(tmp_path: Path, bad: str) -> None:
    put(tmp_path, "/etc/real", b"keep")
    (tmp_path / "etc/link").symlink_to("real")
    (tmp_path / "etc/folder").mkdir()
    os.mkfifo(tmp_path / "etc/fifo")
    with pytest.raises(PveguardError, match=f"^{bad}: is (a symbolic link|a directory|no regular file), a regular file was"):
        apply([FileSpec("/etc/first", "x"), FileSpec(bad, "x")], NAME, tmp_path)
    assert not (tmp_path / "etc/first").exists() and not (tmp_path / "var").exists()
    assert (tmp_path / "etc/real").read_bytes() == b"keep"


@pytest.mark.parametrize("bad", ["/etc/pve/x", "/etc/../etc/pve/x", "//etc/x", "/etc/to-pve/x", "x"])
def test_a_path_that_is_not_what_it_seems_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/to-pve").symlink_to("pve")
    with pytest.raises(PveguardError):
        apply([FileSpec(bad, "x")], NAME, tmp_path)
    assert list((tmp_path / "etc/pve").iterdir()) == []


def _edit(root: Path) -> None:
    put(root, "/etc/a", b"theirs")


def _chmod(root: Path) -> None:
    (root / "etc/a").chmod(0o600)


def _remove(root: Path) -> None:
    (root / "etc/a").unlink()


def _link(root: Path) -> None:
    (root / "etc/a").unlink()
    (root / "etc/a").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "told"), [(_edit, "another content"), (_chmod, "mode 0600"), (_remove, "it is gone"), (_link, "symbolic link")]
)
def test_a_change_by_somebody_is_told_and_a_revert_refuses_it(
    tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    put(tmp_path, "/etc/a", b"original")
    put(tmp_path, "/etc/b", b"original")
    apply([FileSpec("/etc/a", "ours"), FileSpec("/etc/b", "ours")], NAME, tmp_path)
    assert drifted(NAME, tmp_path) == {}
    change(tmp_path)
    assert list(drifted(NAME, tmp_path)) == ["/etc/a"] and told in drifted(NAME, tmp_path)["/etc/a"]
    theirs = picture(tmp_path)
    with pytest.raises(PveguardError, match="somebody changed what pveguard wrote, and nothing was changed now: /etc/a"):
        revert(NAME, tmp_path)
    assert picture(tmp_path) == theirs
    revert(NAME, tmp_path, drift="overwrite")
    assert (tmp_path / "etc/a").read_bytes() == b"original" and not (tmp_path / "etc/a").is_symlink()
    assert (tmp_path / "etc/b").read_bytes() == b"original"


def test_a_run_overwrites_what_somebody_changed_says_so_and_keeps_it(tmp_path: Path) -> None:
    put(tmp_path, "/etc/a", b"original")
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    _edit(tmp_path)
    with pytest.raises(PveguardError, match="somebody changed"):
        apply([FileSpec("/etc/a", "ours")], NAME, tmp_path, drift="refuse")
    (change,) = apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    assert (change.drift, change.before, change.after) == ("another content", "theirs", "ours")
    assert (tmp_path / managed_file.STORE / NAME / "etc%2Fa.changed").read_bytes() == b"theirs"
    revert(NAME, tmp_path)
    assert (tmp_path / "etc/a").read_bytes() == b"original"


def test_one_file_is_managed_for_one_name_alone(tmp_path: Path) -> None:
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    with pytest.raises(PveguardError, match=f"/etc/a: is managed for {NAME} already"):
        apply([FileSpec("/etc/a", "other")], "node_hardening", tmp_path)
    assert (tmp_path / "etc/a").read_text() == "ours"
    assert managed_file.names(tmp_path, of="write_diet") == [NAME] and managed_file.names(tmp_path, of="write") == []


def test_a_damaged_original_is_never_put_back(tmp_path: Path) -> None:
    put(tmp_path, "/etc/a", b"original")
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    put(tmp_path, f"/{managed_file.STORE}/{NAME}/etc%2Fa.original", b"orig")
    with pytest.raises(PveguardError, match="missing or damaged"):
        revert(NAME, tmp_path)
    assert (tmp_path / "etc/a").read_bytes() == b"ours"


class _Cut(BaseException):
    """The power."""


class _Power:
    """Counts what reaches the disk (a rename, an unlink, an fsync, a new folder) and cuts before the one with this number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cut_at: int | None = None) -> None:
        self.done: list[str] = []
        for name in ("rename", "unlink", "fsync", "mkdir", "symlink", "rmdir"):
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name), cut_at))

    def _counting(self, name: str, real: Callable[..., Any], cut_at: int | None) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if cut_at is not None and len(self.done) >= cut_at:
                raise _Cut
            place = arguments[1 if name in ("rename", "symlink") else 0]
            where = os.readlink(f"/proc/self/fd/{place}") if name == "fsync" else os.fspath(place)
            self.done.append(f"{name} {where}")
            return real(*arguments, **more)

        return call


SPECS = [FileSpec("/etc/a", "ours"), FileSpec("/etc/new/b", "ours"), FileSpec("/etc/c", present=False)]


def _before(root: Path) -> dict[str, Any]:
    put(root, "/etc/a", b"original a", 0o600)
    put(root, "/etc/c", b"original c", 0o640)
    return picture(root)


def _steps(work: Callable[[Path], Any], root: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        power = _Power(patch)
        work(root)
    return len(power.done)


def _cut(work: Callable[[Path], Any], root: Path, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Cut):
        _Power(patch, at)
        work(root)


def test_a_power_cut_at_any_step_leaves_old_or_new_and_a_revert_that_works(tmp_path: Path) -> None:
    def do(root: Path) -> None:
        apply(SPECS, NAME, root)

    _before(tmp_path / "count")
    steps = _steps(do, tmp_path / "count")
    assert steps > 20
    for at in range(steps):
        root = tmp_path / str(at)
        before = _before(root)
        _cut(do, root, at)
        assert (root / "etc/a").read_bytes() in (b"original a", b"ours")
        finished = tmp_path / f"{at}-again"
        os.system(f"cp -a {root} {finished}")
        assert drifted(NAME, finished) == {}, at
        do(finished)
        assert (finished / "etc/new/b").read_bytes() == b"ours" and not (finished / "etc/c").exists()
        for tree in (root, finished):
            revert(NAME, tree)
            left = {path: value for path, value in picture(tree).items() if not Path(path).name.startswith(".")}
            assert left.items() >= before.items(), at
            # Before its note is written a folder that was made cannot be told from others.
            assert set(left) - set(before) <= {"etc/new"}, at


def test_a_power_cut_at_any_step_of_a_revert_is_finished_by_the_next(tmp_path: Path) -> None:
    _before(tmp_path / "count")
    apply(SPECS, NAME, tmp_path / "count")
    for at in range(_steps(lambda root: revert(NAME, root), tmp_path / "count")):
        root = tmp_path / str(at)
        before = _before(root)
        apply(SPECS, NAME, root)
        _cut(lambda root: revert(NAME, root), root, at)
        again = tmp_path / f"{at}-again"
        os.system(f"cp -a {root} {again}")
        apply(SPECS, NAME, again)
        for tree in (root, again):
            revert(NAME, tree)
            left = {path: value for path, value in picture(tree).items() if not Path(path).name.startswith(".")}
            assert left.items() >= before.items() and set(left) - set(before) <= {"etc/new"}, at


def test_a_power_cut_in_a_second_change_is_nobody_s_drift(tmp_path: Path) -> None:
    second = [FileSpec("/etc/a", "ours, second")]
    _before(tmp_path / "count")
    apply(SPECS, NAME, tmp_path / "count")
    for at in range(_steps(lambda root: apply(second, NAME, root), tmp_path / "count")):
        root = tmp_path / str(at)
        before = _before(root)
        apply(SPECS, NAME, root)
        _cut(lambda root: apply(second, NAME, root), root, at)
        assert drifted(NAME, root) == {}, at
        revert(NAME, root)
        assert picture(root).items() >= before.items(), at


def test_the_original_and_its_note_are_durable_before_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "/etc/a", b"original")
    power = _Power(monkeypatch)
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    store = tmp_path / managed_file.STORE / NAME
    order = [
        f"rename {store}/etc%2Fa.original",
        f"fsync {store}",
        f"rename {store}/etc%2Fa.json",
        f"fsync {store}",
        f"rename {tmp_path}/etc/a",
        f"fsync {tmp_path}/etc",
    ]
    places = iter(power.done)
    assert all(step in places for step in order), power.done
    # Each content reaches the disk before its name, and each new folder with the one above it.
    for number, step in enumerate(power.done):
        if step.startswith("rename"):
            assert power.done[number - 1].startswith("fsync") and "/." in power.done[number - 1], step
        if step.startswith("mkdir"):
            assert power.done[number + 1] == f"fsync {Path(step.split()[1]).parent}"


def test_what_a_cut_left_beside_a_file_goes_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = put(tmp_path, "/etc/a", b"original")
    with monkeypatch.context() as cut:
        for name in ("rename", "unlink"):
            cut.setattr(atomic.os, name, lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            atomic.write_atomic(place, b"ou")
    # And the name that an earlier release gave it.
    put(tmp_path, "/etc/.a.k3j_x9ab", b"ou")
    assert len(list((tmp_path / "etc").iterdir())) == 3
    put(tmp_path, "/etc/.a.notes", b"somebody's")
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "etc").iterdir()) == [".a.notes", "a"]


def test_the_note_says_what_an_operator_needs(tmp_path: Path) -> None:
    put(tmp_path, "/etc/a", b"original", 0o640)
    apply([FileSpec("/etc/a", "ours")], NAME, tmp_path)
    note = json.loads((tmp_path / managed_file.STORE / NAME / "etc%2Fa.json").read_text())
    assert note["path"] == "/etc/a" and note["original"]["mode"] == "0640"
    assert (tmp_path / managed_file.STORE / NAME / "etc%2Fa.original").read_bytes() == b"original"
    assert atomic.read_or_none(tmp_path / "etc/a") == b"ours"


def test_what_an_undo_puts_back_twice_is_still_ours(tmp_path: Path) -> None:
    """The undo of an unconfirmed change writes the former content past this core."""
    first, second = FileSpec("/etc/a", "first"), FileSpec("/etc/a", "second")
    apply([first], NAME, tmp_path)
    for _ in range(3):
        apply([second], NAME, tmp_path)
        put(tmp_path, "/etc/a", b"first")
    assert drifted(NAME, tmp_path) == {}
    assert revert(NAME, tmp_path) and not (tmp_path / "etc/a").exists()


def test_what_somebody_wrote_does_not_become_ours(tmp_path: Path) -> None:
    apply([FileSpec("/etc/a", "first")], NAME, tmp_path)
    put(tmp_path, "/etc/a", b"theirs")
    apply([FileSpec("/etc/a", "second")], NAME, tmp_path)
    put(tmp_path, "/etc/a", b"theirs")
    assert drifted(NAME, tmp_path) == {"/etc/a": "another content"}
