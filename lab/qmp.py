"""QEMU's machine protocol over a unix socket, and connecting to sockets whose path is longer than the kernel takes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from .errors import LabError


def connect_unix(path: Path, timeout: float) -> socket.socket:
    """Connect to a unix socket at a path of any length.

    A socket address holds 107 bytes; the directory is opened and the socket reached through /proc/self/fd instead.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            sock.close()
            raise
        return sock
    finally:
        os.close(directory)


class Qmp:
    """One connection to a QEMU monitor. Use as a context manager; ``name`` is for messages."""

    def __init__(self, path: Path, name: str, timeout: float = 60.0) -> None:
        self.name = name
        try:
            self._socket = connect_unix(path, timeout)
        except OSError as error:
            raise LabError(f"{name}: no answer from QEMU's monitor ({error})") from error
        self._reader = self._socket.makefile("rb")
        self._receive()  # the greeting
        self.execute("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._reader.readline()
        except OSError as error:
            raise LabError(f"{self.name}: QEMU's monitor did not answer in time") from error
        if not line:
            raise LabError(f"{self.name}: QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its value; events that come in between are dropped."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._send(request)
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise LabError(f"{self.name}: {command}: {message['error'].get('desc', message['error'])}")

    def _send(self, request: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LabError(f"{self.name}: QEMU's monitor is gone ({error})") from error

    def human(self, line: str) -> str:
        """Run a line of the human monitor, where an error is ordinary output."""
        text = str(self.execute("human-monitor-command", **{"command-line": line})).strip()
        if text.startswith("Error") or "Could not" in text or "not supported" in text:
            raise LabError(f"{self.name}: {line}: {text}")
        return text
