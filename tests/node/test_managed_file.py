"""Files in one call: only what differs is written, refusals write nothing, check mode tells the truth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.managed_file import FileSpec, apply, plan


def test_created_changed_mode_and_removed_are_told_apart_and_a_second_run_is_silent(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old\n")
    (tmp_path / "gone").write_text("x")
    (tmp_path / "mode").write_text("same")
    os.chmod(tmp_path / "mode", 0o600)
    specs = [
        FileSpec(str(tmp_path / "deep/new"), "new\n", "0755"),
        FileSpec(str(tmp_path / "old"), "new\n"),
        FileSpec(str(tmp_path / "mode"), "same"),
        FileSpec(str(tmp_path / "gone"), present=False),
        FileSpec(str(tmp_path / "never"), present=False),
    ]
    foreseen = [(change.path, change.what) for change in plan(specs)]
    assert sorted(os.listdir(tmp_path)) == ["gone", "mode", "old"]  # planning wrote nothing
    assert [(change.path, change.what) for change in apply(specs)] == foreseen
    assert [what for _, what in foreseen] == ["created", "content", "mode", "removed"]
    assert (tmp_path / "deep/new").stat().st_mode & 0o777 == 0o755
    assert apply(specs) == []
    assert sorted(os.listdir(tmp_path)) == ["deep", "mode", "old"]


@pytest.mark.parametrize("bad", ["/etc/pve/storage.cfg", "relative"])
def test_a_refused_path_leaves_the_others_unwritten(tmp_path: Path, bad: str) -> None:
    with pytest.raises(PveguardError, match=bad):
        apply([FileSpec(str(tmp_path / "first"), "x"), FileSpec(bad, "x")])
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("keep")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(PveguardError, match="symbolic link"):
        apply([FileSpec(str(tmp_path / "link"), "x")])
    assert (tmp_path / "target").read_text() == "keep"


def test_a_secret_stays_out_of_the_diff(tmp_path: Path) -> None:
    (change,) = plan([FileSpec(str(tmp_path / "key"), "hunter2", "0600", secret=True)])
    assert "hunter2" not in change.after


def test_a_link_is_made_moved_and_removed_but_nobody_else_s(tmp_path: Path) -> None:
    spec = FileSpec(str(tmp_path / "deep/link"), link="/run/target")
    assert [(c.what, c.before, c.after) for c in plan([spec])] == [("created", "", "link to /run/target\n")]
    assert not (tmp_path / "deep").exists()
    apply([spec])
    assert os.readlink(tmp_path / "deep/link") == "/run/target" and apply([spec]) == []
    moved = FileSpec(spec.path, link="/run/other")
    assert [c.what for c in apply([moved])] == ["content"] and os.readlink(spec.path) == "/run/other"
    assert os.listdir(tmp_path / "deep") == ["link"]
    assert apply([FileSpec(spec.path, present=False, link="/run/target")]) == []
    assert [c.what for c in apply([FileSpec(spec.path, present=False, link="/run/other")])] == ["removed"]
    assert os.listdir(tmp_path / "deep") == []
    (tmp_path / "deep/link").write_text("somebody's")
    with pytest.raises(PveguardError, match="a symbolic link to /run/target was expected"):
        apply([spec])
    assert apply([FileSpec(spec.path, present=False, link="/run/target")]) == []
    assert (tmp_path / "deep/link").read_text() == "somebody's"
