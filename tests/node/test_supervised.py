"""Work in a supervised child: whoever of the two is ended, and whenever, nothing is left behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import supervised

ROOT = Path(__file__).resolve().parents[2]

#: After so many seconds of silence a process is taken for one that hangs. One that gets next to no time from a busy machine
#: (a fork and its answer took 53 s at idle priority under a load of 48) does not.
HANGS_S = 600

#: A program that makes FILE in a child and says so, and what it does then: in the child, and in the caller.
_PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {utils!r})
from pathlib import Path
from pveguard.base import supervised

def work(caller):
    Path({file!r}).write_text("x")
    os.write({told}, f"{{os.getpid()}}\\n".encode())
    {work}
    return {{}}

def clean_up():
    Path({file!r}).unlink(missing_ok=True)

with supervised.endings() as signals:
    child = supervised.Child(work, clean_up)
    try:
        {caller}
        child.run(signals, {hangs}, {hangs})
    finally:
        clean_up()
"""
_WORK_ON = "while caller.waits(): time.sleep(0.01)"
#: The caller that has the answer and never comes to the killing of its child.
_NEVER_ENDS = """
        def listen(reader, *_):
            heard = os.read(reader, 65536)
            os.write({told}, heard)
            time.sleep(3600)
        supervised._listen = listen
"""


class Program:
    def __init__(self, folder: Path, work: str, caller: str = "pass", before: str = "") -> None:
        self.file = folder / "made"
        reader, told = os.pipe()
        code = before + _PROGRAM.format(
            utils=str(ROOT / "module_utils"),
            file=str(self.file),
            hangs=HANGS_S,
            told=told,
            work=work,
            caller=caller.format(told=told).strip(),
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[told])
        os.close(told)
        # Without a buffer, so that select sees what is left.
        self._told = os.fdopen(reader, "rb", buffering=0)
        self.child = int(self.told())

    def told(self) -> bytes:
        assert select.select([self._told], [], [], HANGS_S)[0], "nothing was said in time"
        return self._told.readline()

    def nothing_is_left(self) -> None:
        _wait_until(lambda: not self.file.exists() and not Path(f"/proc/{self.child}").exists())


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*arguments: str) -> Program:
        started.append(Program(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        each._told.close()


@pytest.fixture
def default_signals() -> Iterator[None]:
    """A run of the tests under nohup ignores SIGHUP, and so would what is tested."""
    inherited = {number: signal.signal(number, signal.SIG_DFL) for number in supervised.ENDINGS}
    yield
    for number, handler in inherited.items():
        signal.signal(number, handler)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS_S
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def _run(work: Callable[[supervised.Caller], dict[str, Any]], silence_s: float = HANGS_S) -> dict[str, Any]:
    with supervised.endings() as signals:
        return supervised.Child(work, lambda: None).run(signals, silence_s, HANGS_S)


def test_the_answer_is_whole_however_long() -> None:
    assert _run(lambda caller: {"text": "." * 300_000}) == {"text": "." * 300_000}


def test_an_error_of_the_work_is_raised_here() -> None:
    def work(caller: supervised.Caller) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "whatever")

    with pytest.raises(OSError, match="No space left on device"):
        _run(work)


def test_a_child_that_is_killed_has_no_answer() -> None:
    assert _run(lambda caller: os.kill(os.getpid(), signal.SIGKILL) or {}) == {}


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, forked = os.fork, []

    def noted() -> int:
        forked.append(fork())
        return forked[-1]

    def work(caller: supervised.Caller) -> dict[str, Any]:
        threading.Event().wait()
        return {}

    monkeypatch.setattr(os, "fork", noted)
    with pytest.raises(supervised.Stalled):
        _run(work, 0.5)
    assert len(forked) == 1 and not Path("/proc", str(forked[0])).exists()


def test_progress_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes after two of the three seconds that are allowed."""
    reader, writer = os.pipe()
    caller, now, said = supervised.Caller(writer), 0.0, 0

    def heard_after_two_seconds(*_: Any) -> tuple[list[int], list[int], list[int]]:
        nonlocal now, said
        now, said = now + 2, said + 1
        if said <= 8:
            caller.progress()
        else:
            os.write(writer, b'{"result": {"done": true}}\n')
        return [reader], [], []

    monkeypatch.setattr(supervised, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(supervised, "select", SimpleNamespace(select=heard_after_two_seconds))
    try:
        assert supervised._listen(reader, supervised.Endings(), 3) == {"result": {"done": True}}
    finally:
        os.close(reader)
        os.close(writer)


def test_the_child_keeps_no_output_open() -> None:
    assert _run(lambda caller: {"to": [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]}) == {
        "to": [os.devnull] * 3
    }


@pytest.mark.slow
def test_killed_before_the_answer(program: Callable[..., Program]) -> None:
    running = program(_WORK_ON)
    running.process.kill()
    running.nothing_is_left()


@pytest.mark.slow
def test_killed_before_the_answer_told_by_progress(program: Callable[..., Program]) -> None:
    """A broken pipe ends the work where it tells of its progress."""
    running = program("while True: caller.progress(); time.sleep(0.01)")
    running.process.kill()
    running.nothing_is_left()


@pytest.mark.slow
def test_killed_after_the_answer(program: Callable[..., Program]) -> None:
    """The child has answered, and nobody may come to take note of it."""
    running = program("pass", _NEVER_ENDS)
    assert running.told() == b'{"result": {}}\n'
    status = Path(f"/proc/{running.child}/stat")
    _wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] in "SZ")
    assert running.file.exists(), "it waits to be killed by its caller, and leaves to it what it made"
    running.process.kill()
    running.nothing_is_left()


@pytest.mark.parametrize("number", supervised.ENDINGS)
@pytest.mark.usefixtures("default_signals")
def test_a_signal_ends_both(program: Callable[..., Program], number: signal.Signals) -> None:
    running = program("time.sleep(3600)")
    running.process.send_signal(number)
    assert running.process.wait(HANGS_S) == 1
    running.nothing_is_left()


def test_under_nohup_a_hangup_ends_neither(program: Callable[..., Program], tmp_path: Path) -> None:
    """The terminal sends it to all its processes: to the child as well."""
    go = tmp_path / "go"
    running = program(
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)",
        "pass",
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )
    running.process.send_signal(signal.SIGHUP)
    os.kill(running.child, signal.SIGHUP)
    go.touch()
    assert running.process.wait(HANGS_S) == 0
    running.nothing_is_left()


@pytest.mark.usefixtures("default_signals")
def test_the_first_signal_is_raised_and_no_other() -> None:
    with pytest.raises(supervised.Interrupted) as caught, supervised.endings():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in supervised.ENDINGS)


@pytest.mark.usefixtures("default_signals")
def test_a_held_signal_waits_for_the_end_of_the_clean_up() -> None:
    seen = []
    with pytest.raises(supervised.Interrupted), supervised.endings() as signals:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("cleaned up")
        seen.append("not reached")
    assert seen == ["cleaned up"]


@pytest.mark.usefixtures("default_signals")
def test_a_signal_whose_exception_was_lost_is_raised_at_the_end() -> None:
    with pytest.raises(supervised.Interrupted), supervised.endings():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except supervised.Interrupted:
            pass


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in supervised.ENDINGS]


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    before, seen = _handlers(), list[Any]()

    def outside() -> None:
        with supervised.endings() as signals:
            seen.append(_handlers())
            seen.append(supervised.Child(lambda caller: {"done": True}, lambda: None).run(signals, HANGS_S, HANGS_S))

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert seen == [before, {"done": True}] and before == _handlers()
