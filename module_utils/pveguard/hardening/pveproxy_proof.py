# SPDX-License-Identifier: Apache-2.0
"""Whether pveproxy takes a connection from here, and with which TLS: what a browser and another member's pveproxy need."""

from __future__ import annotations

import socket
import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any

PORT = 8006
#: For one connection.
SECONDS = 10.0


def ask(
    address: str, port: int, ciphers: str = "", highest: str = "", seconds: float = SECONDS
) -> dict[str, Any]:
    """``{address, version, cipher, error, absent}`` of one handshake and a word of HTTP; ``absent``: nothing listens there.
    ``ciphers`` (of TLS 1.2) and ``highest`` (a version of TLS) are what is offered; the certificate is not judged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    found: dict[str, Any] = {"address": address, "version": "", "cipher": "", "error": "", "absent": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ciphers:
                context.set_ciphers(ciphers)
            if highest:
                context.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[
                    highest
                ]
        with socket.create_connection((address, port), timeout=seconds) as plain:
            with context.wrap_socket(plain) as client:
                found["version"], found["cipher"] = str(client.version()), str((client.cipher() or ("",))[0])
                client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
                # In TLS 1.3 a server that does not want the client may say so after the handshake.
                if not client.recv(16):
                    found["error"] = "it hung up without an answer"
    except OSError as error:
        found["error"] = str(error) or type(error).__name__
        # What hangs up was there.
        found["absent"] = not isinstance(error, (ssl.SSLError, ConnectionResetError, BrokenPipeError))
    return found


def until(
    address: str, port: int, seconds: float = 120.0, alive: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """The same once something listens; after ``seconds``, or once it is not ``alive`` any more, what was said last."""
    deadline = time.monotonic() + seconds
    while (found := ask(address, port))["absent"] and time.monotonic() < deadline and alive():
        time.sleep(0.2)
    return found


def takes(address: str, port: int, ciphers: str, highest: str = "1.2") -> bool | None:
    """Whether it agrees to a handshake with these; None where this machine's own OpenSSL cannot offer them."""
    try:
        found = ask(address, port, f"{ciphers}:@SECLEVEL=0" if ciphers else "", highest)
    except (ssl.SSLError, ValueError):
        return None
    if "NO_CIPHERS_AVAILABLE" in found["error"] or "No cipher can be selected" in found["error"]:
        return None
    return bool(found["version"])
