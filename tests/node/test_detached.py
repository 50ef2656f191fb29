"""Waiting for a detached unit: by its result, with few questions to systemd."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import detached
from ansible.module_utils.pveguard.base.detached import DetachedError, run_detached
from ansible.module_utils.pveguard.base.run import Result


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


class Clock:
    """The time of what waits, which goes on only by its sleeping; ``at`` has something happen meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.due = 0.0, list[tuple[float, Callable[[], None]]]()
        own = {"sleep": self.sleep, "monotonic": lambda: self.now}
        monkeypatch.setattr(detached, "time", SimpleNamespace(**{**vars(time), **own}))

    def at(self, seconds: float, happens: Callable[[], None]) -> None:
        self.due.append((seconds, happens))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [due for due in self.due if due[0] <= self.now]:
            self.due.remove(due)
            due[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_systemd_is_not_asked_while_there_is_no_result(tmp_path: Path, clock: Clock) -> None:
    result = tmp_path / "unit.json"

    def ended() -> None:
        systemd.state = "inactive"
        result.write_text('{"changed": true}')

    def begin(systemd: Systemd) -> None:
        clock.at(60, ended)

    systemd = Systemd(begin)
    assert run_detached("unit", ["true"], 300, systemd.run, tmp_path, ask_s=200) == {"changed": True}
    assert systemd.shown == 1 and 60 <= clock.now < 61


def test_a_part_of_a_result_is_none_yet(tmp_path: Path, clock: Clock) -> None:
    """Also where somebody writes it in place: an empty file is seen first, then half of it."""
    result = tmp_path / "unit.json"

    def ended() -> None:
        systemd.state = "inactive"
        result.write_text("")

    def begin(systemd: Systemd) -> None:
        clock.at(60, ended)
        clock.at(70, lambda: result.write_text('{"chan') and None)
        clock.at(80, lambda: result.write_text('{"changed": true}') and None)

    systemd = Systemd(begin)
    assert run_detached("unit", ["true"], 300, systemd.run, tmp_path, ask_s=200) == {"changed": True}
    assert systemd.shown == 1 and 80 <= clock.now < 81


@pytest.mark.parametrize("text", ["", '{"chan', "null", "[]", "7"])
def test_what_is_no_whole_object_is_no_result(tmp_path: Path, clock: Clock, text: str) -> None:
    def begin(systemd: Systemd) -> None:
        systemd.state = "inactive"
        (tmp_path / "unit.json").write_text(text)

    with pytest.raises(DetachedError, match="left no result in"):
        run_detached("unit", ["true"], 300, Systemd(begin).run, tmp_path)


def test_a_result_is_taken_only_when_the_unit_has_ended(tmp_path: Path, clock: Clock) -> None:
    def begin(systemd: Systemd) -> None:
        (tmp_path / "unit.json").write_text('{"error": "half way"}')

    def asked(systemd: Systemd) -> None:
        if systemd.shown == 3:
            (tmp_path / "unit.json").write_text('{"changed": false}')
            systemd.state = "inactive"

    systemd = Systemd(begin, asked)
    assert run_detached("unit", ["true"], 300, systemd.run, tmp_path) == {"changed": False}
    assert systemd.shown == 3


def test_a_unit_that_died_without_a_result_is_noticed(tmp_path: Path, clock: Clock) -> None:
    def died() -> None:
        systemd.state = "failed"

    systemd = Systemd(lambda systemd: clock.at(10, died))
    with pytest.raises(DetachedError, match="left no result"):
        run_detached("unit", ["true"], 300, systemd.run, tmp_path, ask_s=3)
    assert 10 <= clock.now < 14


def test_the_deadline_is_kept(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(DetachedError, match="did not end within 300 s"):
        run_detached("unit", ["true"], 300, Systemd(lambda systemd: None).run, tmp_path)
    assert 300 <= clock.now < 304
