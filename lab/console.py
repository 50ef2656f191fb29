"""The root shell of a guest that needs neither network nor ssh: a small agent on its second serial port.

Requests are lines: ``+DATA`` adds a piece of the base64 of a shell command (answered by ``+``), ``!ID SECONDS`` runs
it (answered by ``ID STATUS BASE64-OF-OUTPUT``). Pieces are short because a serial line has no flow control to speak of.
"""

from __future__ import annotations

import base64
import secrets
import socket
import time
from pathlib import Path

from .errors import LabError
from .qmp import connect_unix

PIECE = 1024  # well below the 4096 bytes that a terminal holds


class Console:
    """Client of the agent in one guest; ``path`` is the socket QEMU offers for the guest's second serial port."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    def run(self, command: str, timeout: float = 60.0) -> tuple[int, str]:
        """Run a shell command as root; returns its status (124 after ``timeout`` seconds) and its output."""
        deadline = time.monotonic() + timeout + 5
        try:
            with connect_unix(self.path, 5.0) as sock:
                return self._run(sock, command, timeout, deadline)
        except OSError as error:
            raise LabError(f"{self.name}: no answer on the serial console ({error or 'timeout'})") from error

    def _run(self, sock: socket.socket, command: str, timeout: float, deadline: float) -> tuple[int, str]:
        buffer = bytearray()

        def line() -> str:
            while b"\n" not in buffer:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("timeout")
                sock.settimeout(left)
                data = sock.recv(65536)
                if not data:
                    raise OSError("closed")
                buffer.extend(data)
            text, _, rest = bytes(buffer).partition(b"\n")
            buffer[:] = rest
            return text.decode("ascii", "replace").strip()

        ident = secrets.token_hex(4)
        sock.sendall(f"\n-{ident}\n".encode())
        while line() != f"-{ident}":  # also drops answers that an earlier client did not wait for
            pass
        data = base64.b64encode(command.encode()).decode()
        for start in range(0, len(data), PIECE):
            sock.sendall(f"+{data[start : start + PIECE]}\n".encode())
            while line() != "+":
                pass
        sock.sendall(f"!{ident} {max(1, int(timeout))}\n".encode())
        while True:
            fields = line().split(" ")
            if fields[0] == ident and len(fields) >= 2:
                output = base64.b64decode(fields[2]) if len(fields) > 2 else b""
                return int(fields[1]), output.decode("utf-8", "replace")
