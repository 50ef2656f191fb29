"""Waiting for a detached unit: by its result, with few questions to systemd."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.detached import DetachedError, run_detached
from ansible.module_utils.pveguard.run import Result


class Systemd:
    """Knows one unit; ``shown`` counts how often its state was asked for since it was started, ``asked`` is called then."""

    def __init__(self, begin: Any, asked: Any = lambda systemd: None) -> None:
        self.begin, self.asked, self.state, self.shown = begin, asked, "inactive", 0

    def run(self, argv: Sequence[str], **_rest: Any) -> Result:
        if argv[0] == "systemd-run":
            self.state, self.shown = "active", 0
            self.begin(self)
        if argv[:2] == ["systemctl", "show"]:
            self.shown += 1
            self.asked(self)
            return Result(0, f"ActiveState={self.state}\n", "")
        return Result(0, "", "")


def later(seconds: float, function: Any) -> None:
    threading.Timer(seconds, function).start()


def test_systemd_is_not_asked_while_there_is_no_result(tmp_path: Path) -> None:
    def begin(systemd: Systemd) -> None:
        def end() -> None:
            systemd.state = "inactive"
            (tmp_path / "unit.json").write_text('{"changed": true}')

        later(0.3, end)

    systemd = Systemd(begin)
    done = run_detached("unit", ["true"], 300, systemd.run, tmp_path, poll_s=0.01, ask_s=200)
    assert done == {"changed": True}
    assert systemd.shown == 1


def test_a_result_is_taken_only_when_the_unit_has_ended(tmp_path: Path) -> None:
    def begin(systemd: Systemd) -> None:
        (tmp_path / "unit.json").write_text('{"error": "half way"}')

    def asked(systemd: Systemd) -> None:
        if systemd.shown == 3:
            (tmp_path / "unit.json").write_text('{"changed": false}')
            systemd.state = "inactive"

    systemd = Systemd(begin, asked)
    assert run_detached("unit", ["true"], 300, systemd.run, tmp_path, poll_s=0.01) == {"changed": False}
    assert systemd.shown == 3


def test_a_unit_that_died_without_a_result_is_noticed(tmp_path: Path) -> None:
    systemd = Systemd(lambda systemd: later(0.1, lambda: setattr(systemd, "state", "failed")))
    with pytest.raises(DetachedError, match="left no result"):
        run_detached("unit", ["true"], 300, systemd.run, tmp_path, poll_s=0.01, ask_s=0.05)


def test_the_deadline_is_kept(tmp_path: Path) -> None:
    systemd = Systemd(lambda systemd: None)
    with pytest.raises(DetachedError, match="did not end within"):
        run_detached("unit", ["true"], 0.1, systemd.run, tmp_path, poll_s=0.01, ask_s=0.05)
