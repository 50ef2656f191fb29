"""Lab only: keep the bytecode of what Python imports from zip files, as it does for other imports.

Ansible sends each module as a zip file of sources, which Python compiles at every call: 0.1 s on a real processor, half of
the seconds that a call takes on an emulated one. The name of a file is the hash of the source, so a source that changed
has another one. Kept in /run: nothing here outlives a boot, and a power cut leaves no half-written file.
"""

from __future__ import annotations

import _imp
import marshal
import os
import sys
import zipimport

TYPE_CHECKING = False
if TYPE_CHECKING:  # not at the start of every Python
    from types import CodeType

FOLDER = f"/run/lab-zip-bytecode/{sys.implementation.cache_tag}"
_compile = getattr(zipimport, "_compile_source", None)


def _compile_source(pathname: str, source: bytes) -> CodeType:
    path = f"{FOLDER}/{int.from_bytes(_imp.source_hash(0, source), 'little'):016x}-{len(source)}"
    try:
        with open(path, "rb") as file:
            return marshal.loads(file.read())  # type: ignore[no-any-return]
    except (OSError, EOFError, ValueError, TypeError):
        pass
    code: CodeType = _compile(pathname, source)  # type: ignore[misc]  # it is there, or nobody calls this
    if os.geteuid() == 0:
        temporary = f"{path}.{os.getpid()}"
        try:
            os.makedirs(FOLDER, 0o755, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(marshal.dumps(code))
            os.rename(temporary, path)
        except OSError:
            pass
    return code


# What zipimport does inside is no promise: without it, imports are as slow as before.
if _compile is not None:
    zipimport._compile_source = _compile_source  # type: ignore[attr-defined]
