"""Files in one call: only what differs is written, refusals write nothing, check mode tells the truth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.managed_file import FileSpec, apply, plan

from tests.conftest import RunModule
from tests.loading import load_module


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


def test_the_module_keeps_and_reverts_a_role_with_its_measures(run_module: RunModule, tmp_path: Path) -> None:
    module = load_module("managed_file")
    vars(module)["ROOT"] = tmp_path
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").write_text("original")
    for name, path in (("diet", "/etc/a"), ("diet.atime", "/etc/b"), ("dieter", "/etc/c")):
        assert run_module(module, kept_for=name, files=[{"path": path, "content": "ours"}])["changed"]
    back = {"state": "reverted", "kept_for": "diet"}
    assert run_module(module, **back, _ansible_check_mode=True)["changed_paths"] == ["/etc/a", "/etc/b"]
    assert (tmp_path / "etc/a").read_text() == "ours"
    assert run_module(module, **back)["changed_paths"] == ["/etc/a", "/etc/b"]
    assert run_module(module, **back)["changed"] is False
    assert (tmp_path / "etc/a").read_text() == "original" and (tmp_path / "etc/c").read_text() == "ours"


def test_the_module_tells_what_somebody_changed_and_reverts_nothing_by_itself(
    run_module: RunModule, tmp_path: Path
) -> None:
    module = load_module("managed_file")
    vars(module)["ROOT"] = tmp_path
    mine = {"kept_for": "diet", "files": [{"path": "/etc/a", "content": "ours"}]}
    assert run_module(module, **mine)["drifted"] == {}
    (tmp_path / "etc/a").write_text("theirs")
    refused = run_module(module, state="reverted", kept_for="diet")
    assert refused["failed"] and "/etc/a: another content" in refused["msg"] and "drift: overwrite" in refused["msg"]
    done = run_module(module, **mine)
    assert done["drifted"] == {"/etc/a": "another content"} and "somebody changed it" in str(done["warnings"])
    assert run_module(module, state="reverted")["msg"] == "say with kept_for what is to be reverted"
    assert (tmp_path / "etc/a").read_text() == "ours"
