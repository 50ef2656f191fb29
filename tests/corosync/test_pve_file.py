# SPDX-License-Identifier: Apache-2.0
"""Files on /etc/pve: refusals everywhere, and writes on a real mount of the double."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.pmxcfs import pve_file

from lab.tests.doubles.harness import Node, why_not

from .fakes import snapshot

ROOT = Path(__file__).resolve().parents[2]
RunModule = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/pve", "/etc/pve/../passwd", "/etc/pve/a/../../x", "etc/pve/x"]
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(PveguardError, match="below /etc/pve"):
        pve_file.plan(path, b"")


def test_files_of_the_daemon_are_refused() -> None:
    with pytest.raises(PveguardError, match="made by the daemon"):
        pve_file.plan("/etc/pve/.members", b"")


def test_too_large_is_refused_before_anything_is_written() -> None:
    with pytest.raises(PveguardError, match="at most 1048576"):
        pve_file.plan("/etc/pve/x", b"a" * (1024 * 1024 + 1))


def test_a_directory_that_is_not_mounted_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "etc/pve").mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(PveguardError, match="systemctl start pve-cluster"):
        pve_file.apply("/etc/pve/datacenter.cfg", b"x\n", tmp_path)
    assert snapshot(tmp_path) == before


def test_check_mode_without_the_file_system(run_module: RunModule) -> None:
    result = run_module("pve_file", path="/etc/pve/a.cfg", content="x\n", _ansible_check_mode=True)
    assert result["changed"] is True and result["diff"]["after"] == "x\n"
    result = run_module("pve_file", path="/etc/pve/a.cfg", state="absent", _ansible_check_mode=True)
    assert result["changed"] is False
    result = run_module("pve_file", path="/etc/pve/a.cfg", content="x", secret=True, _ansible_check_mode=True)
    assert "diff" not in result
    result = run_module("pve_file", path="/etc/pve/a.cfg", content="x\n")
    assert result["failed"] and "not mounted" in result["msg"]


class Flaky:
    """An action that is refused until ``until`` seconds have been slept."""

    def __init__(self, until: float, number: int) -> None:
        self.now, self.until, self.number = 0.0, until, number

    def __call__(self) -> None:
        if self.now < self.until:
            raise OSError(self.number, os.strerror(self.number))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def try_it(self, root: Path) -> float:
        pve_file.patiently(self, root, self.sleep, lambda: self.now)
        return self.now


def test_what_a_passing_loss_of_quorum_explains_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    for number in (errno.EACCES, errno.EROFS, errno.EIO):
        assert Flaky(7, number).try_it(tmp_path) == 7
        with pytest.raises(OSError) as caught:
            (lasting := Flaky(1e9, number)).try_it(tmp_path)
        assert caught.value.errno == number and lasting.now == pve_file.PATIENCE_S
    # What it does not explain is an error at once.
    with pytest.raises(OSError) as caught:
        (at_once := Flaky(7, errno.ENOSPC)).try_it(tmp_path)
    assert caught.value.errno == errno.ENOSPC and at_once.now == 0
    # Nothing is written beneath the mount point when the daemon goes meanwhile.
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: False)
    with pytest.raises(OSError, match="not mounted any more"):
        Flaky(0, errno.EACCES).try_it(tmp_path)


def test_a_file_is_written_and_removed_when_quorum_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/pve").mkdir(parents=True)
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if now[0] < 5:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(*arguments, **more)

        return call

    monkeypatch.setattr(pve_file, "write_in_place", refusing(pve_file.write_in_place))
    assert pve_file.apply("/etc/pve/a/b.cfg", b"x\n", tmp_path, sleep, lambda: now[0]).changed and now[0] == 5
    assert (tmp_path / "etc/pve/a/b.cfg").read_bytes() == b"x\n"
    now[0] = 0.0
    monkeypatch.setattr(Path, "unlink", refusing(Path.unlink))
    assert pve_file.apply("/etc/pve/a/b.cfg", None, tmp_path, sleep, lambda: now[0]).changed and now[0] == 5
    assert not (tmp_path / "etc/pve/a/b.cfg").exists()


def test_a_lack_of_quorum_is_awaited_then_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    now, until = [0.0], [6.0]
    monkeypatch.setattr(pve_file, "has_quorum", lambda _root: now[0] >= until[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pve_file.await_writable(tmp_path, sleep, lambda: now[0])
    assert now[0] == 6
    until[0] = 1e9
    with pytest.raises(PveguardError, match="read-only because this node has no quorum"):
        pve_file.await_writable(tmp_path, sleep, lambda: now[0])
    assert now[0] == 6 + pve_file.PATIENCE_S
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: False)
    with pytest.raises(PveguardError, match="not mounted"):
        pve_file.await_writable(tmp_path, sleep, lambda: now[0])
    assert now[0] == 6 + pve_file.PATIENCE_S


def test_a_daemon_that_never_answers_is_an_error() -> None:
    with pytest.raises(OSError, match="no answer from the daemon within 0.2 s"):
        pve_file.answered(lambda: time.sleep(3600), 0.2)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        pve_file.answered(lambda: 1 / 0)


@pytest.fixture
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    made = Node()
    made.start()
    yield made
    made.close()


@pytest.mark.root
def test_on_the_real_mount(node: Node) -> None:
    def apply(path: str, content: str | None, times: int = 1) -> dict[str, Any]:
        script = (
            f"import json, sys\nsys.path.insert(0, {str(ROOT / 'module_utils')!r})\n"
            "from pveguard.pmxcfs import pve_file\n"
            "path, content, times = json.loads(sys.argv[1])\ndata = None if content is None else "
            "content.encode() * times\n"
            "try:\n    check = pve_file.plan(path, data).changed\n    done = pve_file.apply(path, data)\n"
            "    print(json.dumps({'check': check, 'changed': done.changed}))\n"
            "except Exception as error:\n    print(json.dumps({'error': str(error)}))\n"
        )
        result = node.run("/usr/bin/python3", "-B", "-c", script, json.dumps([path, content, times]))
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    changed, same = {"check": True, "changed": True}, {"check": False, "changed": False}
    assert apply("/etc/pve/priv/deep/secret.cfg", "one\n") == changed
    assert apply("/etc/pve/priv/deep/secret.cfg", "one\n") == same
    assert (node.pve / "priv/deep/secret.cfg").stat().st_mode & 0o777 == 0o600
    assert apply("/etc/pve/datacenter.cfg", "keyboard: de\n") == changed
    assert (node.pve / "datacenter.cfg").stat().st_mode & 0o777 == 0o640
    before = node.version()
    assert apply("/etc/pve/datacenter.cfg", "keyboard: en-us\n") == changed
    assert node.version() - before == 1, "a file that grows is one transaction and never empty"
    assert apply("/etc/pve/datacenter.cfg", "a\n") == changed
    assert (node.pve / "datacenter.cfg").read_text() == "a\n"
    assert "is a directory" in apply("/etc/pve/priv", "x")["error"]
    assert apply("/etc/pve/datacenter.cfg", None) == changed
    assert apply("/etc/pve/datacenter.cfg", None) == same
    assert apply("/etc/pve/large", "x", 1024 * 1024) == changed
    assert (node.pve / "large").stat().st_size == 1024 * 1024
    node.stop()
    assert "not mounted" in apply("/etc/pve/datacenter.cfg", "x")["error"]
    assert list((node.root / "etc/pve").iterdir()) == []
