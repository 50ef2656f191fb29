"""The one seam through which cores run commands, so that tests can assert exact argument vectors."""

from __future__ import annotations

import os

from .errors import PveguardError

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Not at run time: programs on a node start with this, at boot and at every stop.
    from collections.abc import Mapping, Sequence
    from typing import Protocol


class CommandMissing(PveguardError):
    """The program is not installed or not on PATH."""


class Result:
    """What a command returned. ``rc`` is 124 when it was stopped by the timeout, as with timeout(1)."""

    def __init__(self, rc: int, stdout: str = "", stderr: str = "") -> None:
        self.rc, self.stdout, self.stderr = rc, stdout, stderr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.rc, self.stdout, self.stderr))

    def __repr__(self) -> str:
        return f"Result({self.rc!r}, {self.stdout!r}, {self.stderr!r})"

    @property
    def ok(self) -> bool:
        return self.rc == 0


if TYPE_CHECKING:

    class Run(Protocol):
        """Signature of :func:`run`; a fake in a test has the same one."""

        def __call__(
            self,
            argv: Sequence[str],
            *,
            input: str | None = None,
            timeout: float = 60.0,
            env: Mapping[str, str] | None = None,
        ) -> Result: ...

    class Ask(Protocol):
        """What those need who only ask: also a :func:`run` that can do no more."""

        def __call__(self, argv: Sequence[str], *, timeout: float = ...) -> Result: ...

else:
    Run = object


# Proxmox's and Debian's administration tools live in sbin, which a non-login shell may not have.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run ``argv`` without a shell and return its :class:`Result`; a non-zero code is not an exception.

    ``input`` is sent to standard input (empty when None), ``timeout`` is in seconds, ``env`` adds to the environment.
    Output is decoded as UTF-8 with replacement; the locale is always C so that it can be parsed.
    Raises :class:`CommandMissing` when the program does not exist.
    """
    import subprocess

    full_env = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(env or {})}
    full_env["PATH"] = full_env.get("PATH", "") + ":" + _PATH
    try:
        done = subprocess.run(
            list(argv),
            input=input if input is not None else "",
            capture_output=True,
            timeout=timeout,
            env=full_env,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandMissing(f"the program {argv[0]!r} is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        out = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else (error.stdout or "")
        return Result(124, out, f"{argv[0]}: no answer within {timeout:g} s")
    return Result(done.returncode, done.stdout, done.stderr)
