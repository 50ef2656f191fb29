"""Work in a child process, for what may hang in a system call, and what it leaves behind is removed whoever is ended.

Two parts, which go together. :func:`endings` turns the first signal that would end this process into an exception, so
that its clean-up runs. :class:`Child` works in a forked process and answers over a pipe:

- the child is killed by a signal, or hangs: this process learns it from the pipe or from the silence and cleans up;
- this process is killed, whatever it was doing: the pipe breaks, and the child cleans up. It waits for that after its
  answer too, until it is killed by the one who has the answer. The pipe tells it, not its parent's process id: a
  process that is killed loses its files before its children see another parent.

Only when both are killed at once something is left, which is the next run's to remove.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: The signals that ask a process to end.
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Ends what the child says, and stands before it for each sign of progress.
_END, _PROGRESS = b"\n", b"."
#: Seconds until a child that was killed is gone, where the caller does not say.
_KILL_S = 5.0


class Interrupted(BaseException):
    """The signal ``number`` asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stalled(Exception):
    """The child gave no sign of life for as long as it was given."""


class Endings:
    """What :func:`endings` yields. ``number`` is the signal that asked this process to end; None as long as none did."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._held = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if not self._held:
                raise Interrupted(number)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal came.

        An exception out of a signal handler is lost where it strikes in what Python runs by itself, around a fork or in
        a finalizer; whoever waits for long asks now and then.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal is only noted inside, and raised at the end."""
        former, self._held = self._held, True
        before = self.number
        try:
            yield
        finally:
            self._held = former
        if before is None and not self._held:
            self.check()


@contextmanager
def endings() -> Iterator[Endings]:
    """The first signal of :data:`ENDINGS` raises :class:`Interrupted` inside; more of them change nothing.

    A signal that is ignored, as SIGHUP under nohup, stays ignored. Outside the main thread, where Python installs no
    handlers, nothing changes.
    """
    seen = Endings()
    previous: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDINGS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, seen._handle)
        yield seen
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
    seen.check()


class Caller:
    """What the work in the child knows of the process that waits for it."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._poll = select.poll()
        self._poll.register(writer, 0)

    def waits(self) -> bool:
        """Whether it is still there. As cheap as getppid, a third of a microsecond: it may stand in a measured loop."""
        return not self._poll.poll(0)

    def progress(self) -> None:
        """Tell it that the work goes on; raises BrokenPipeError, which ends the work, when it is gone."""
        os.write(self._writer, _PROGRESS)

    def _answer(self, answer: dict[str, Any]) -> None:
        """Hand over the answer and wait: for being killed, or for the end of the caller."""
        left = json.dumps(answer).encode() + _END
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(self._writer, left) :]
            self._poll.poll()


class Child:
    """``work`` in a forked process, whose ``clean_up`` runs there when this process is killed.

    ``work`` gets a :class:`Caller` and returns what JSON can hold; an OSError out of it is raised here again. Cleaning
    up in each other case is up to the caller of :meth:`run`. ``hung``, after it: the child could not even be killed, so
    what it uses must not be touched.
    """

    def __init__(self, work: Callable[[Caller], dict[str, Any]], clean_up: Callable[[], object]) -> None:
        self._work = work
        self._clean_up = clean_up
        self.hung = False

    def run(self, signals: Endings, silence_s: float, kill_s: float) -> dict[str, Any]:
        """What the work returned; {} when it was ended before.

        Raises :class:`Stalled` when it neither told of progress nor answered for ``silence_s`` seconds, or could not be
        killed within ``kill_s``; OSError as the work did; and :class:`Interrupted`. The child is gone then, unless
        :attr:`hung`.
        """
        reader, writer = os.pipe()
        # An exception out of a signal handler is lost where it strikes in what Python runs around a fork.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
        try:
            child = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reader)
            os.close(writer)
            raise
        if child == 0:
            os.close(reader)
            self._serve(writer, mask)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(writer)
            answer = _listen(reader, signals, silence_s)
        finally:
            with signals.held():
                os.kill(child, signal.SIGKILL)
                self.hung = not _ended(child, kill_s)
                os.close(reader)
        if self.hung:
            raise Stalled
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        result: dict[str, Any] = answer.get("result", {})
        return result

    def _serve(self, writer: int, mask: Iterable[int]) -> None:
        """Body of the child; never returns."""
        answer: dict[str, Any] = {}
        try:
            for number in ENDINGS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # The caller's output must not stay open on behalf of a child that hangs.
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            caller = Caller(writer)
            try:
                answer = {"result": self._work(caller)}
            except BrokenPipeError:
                pass
            except OSError as error:
                answer = {"errno": error.errno or errno.EIO}
            caller._answer(answer)
            self._clean_up()
        finally:
            os._exit(0)


def ask(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What ``work`` returns, from a :class:`Child` that leaves nothing behind; {} when it was ended before.

    Raises :class:`Stalled` after ``seconds`` without an answer, OSError as the work did, and SystemExit when a signal asks this
    process to end.
    """
    try:
        with endings() as signals:
            return Child(lambda _caller: work(), lambda: None).run(signals, seconds, _KILL_S)
    except Interrupted as interrupted:
        raise SystemExit(128 + interrupted.number) from None


def _listen(reader: int, signals: Endings, silence_s: float) -> dict[str, Any]:
    """What the child says at its end; {} when it was ended before."""
    text, heard = b"", time.monotonic()
    while (left := heard + silence_s - time.monotonic()) > 0:
        signals.check()
        if not select.select([reader], [], [], min(1.0, left))[0]:
            continue
        chunk = os.read(reader, 65536)
        text, heard = text + chunk, time.monotonic()
        if not chunk or text.endswith(_END):
            value = text.lstrip(_PROGRESS)
            answer: dict[str, Any] = json.loads(value) if value.endswith(_END) else {}
            return answer
    raise Stalled


def _ended(child: int, within_s: float) -> bool:
    """Wait for a killed process. One in a call that does not come back cannot be waited for."""
    end = time.monotonic() + within_s
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
