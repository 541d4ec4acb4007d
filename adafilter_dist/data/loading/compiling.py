"""Functions that numba compiles, and their code kept for the next process.

numba can keep code too, with an index that points to numbered files. Processes that start together
may mix them up, and one that is killed between the two writes leaves an index that points to older
code: then a process runs code of another CPU, or of the sources before an update. A torn file or a
full disk ends the process there. Here a file's name is a hash of all that its code depends on, and
the file has a checksum: what is damaged is compiled again, what cannot be written is not kept. What
no process has read for 90 days, that of earlier versions, is removed when new code is kept.

Importing this module imports numba; ImportError where NUMBA_DISABLE_JIT is set.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from adafilter_dist.system.cache_folder import cache_folder

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

_HERE = Path(__file__).parent
# numba compiles what a function calls into it: the code depends on all of them.
_COMPILED = (
    *("antialias.py", "area_resize.py", "compiling.py", "evaluation_decoder.py"),
    *("libjpeg.py", "numba_backend.py", "read_ahead.py"),
)
_SOURCES = [(_HERE / name).read_bytes() for name in _COMPILED]
_DEPENDS_ON = [
    *(hashlib.sha256(source).hexdigest() for source in _SOURCES),
    *(numba.__version__, llvmlite.__version__, platform.python_implementation()),
    platform.python_version(),
]

_DAY = 86400.0
_UNREAD_DAYS = 90
_NAME = re.compile(r"[\w.]+-[0-9a-f]{32}\.code(\.[0-9a-f]{16}\.tmp)?")


def compiled(function: Callable[..., Any], signature: Any = None) -> Any:
    """The function, compiled by numba, without Python's lock; for one ``signature``, if given.

    Compiled on its first call, or now for a signature. Then it is for callers that are compiled
    too: they find it by the types of arguments. For a call from Python numba looks by the numbers
    that it gives to types, and two threads may make it give one type two numbers: then it converts
    no arguments, and raises TypeError.
    """
    dispatcher = numba.njit(nogil=True)(function)
    dispatcher._cache = _Kept(function)
    if signature is not None:
        dispatcher.compile(signature)
        dispatcher.disable_compile()
    return dispatcher


class _Kept:
    """Takes the place of numba's cache of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        """Where numba's statistics say that code is kept."""
        return str(next(_folders()))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The code for types of arguments, None where none is kept."""
        target.refresh()
        name = self._name(signature, target.codegen())
        for folder in _folders():
            with suppress(OSError):
                path = folder / name
                content = path.read_bytes()
                _note_read(path)
                checksum, code = content[:32], content[32:]
                if hashlib.sha256(code).digest() == checksum:
                    return CompileResult._rebuild(target, *pickle.loads(code))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled in the first folder that takes it."""
        code = dumps(result._reduce())
        content = hashlib.sha256(code).digest() + code
        name = self._name(signature, result.library.codegen)
        for folder in _folders():
            temporary = folder / f"{name}.{secrets.token_hex(8)}.tmp"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
                temporary.replace(folder / name)
            except OSError:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
            else:
                _remove_unread(folder)
                return

    def _name(self, signature: Any, codegen: Any) -> str:
        # The last: processor, its features, and numba's way of compiling for it.
        parts = [self._function, *_DEPENDS_ON, repr(signature), repr(codegen.magic_tuple())]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{self._function}-{digest[:32]}.code"


def _note_read(path: Path) -> None:
    """Date the file today, if that may be done."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)


def _remove_unread(folder: Path) -> None:
    """Delete what no process has read or written for long; who reads it now has it open."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            with suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _UNREAD_DAYS * _DAY and _NAME.fullmatch(entry.name):
                    os.unlink(entry.path)


def _folders() -> Iterator[Path]:
    """NUMBA_CACHE_DIR, or the package's own and then the user's."""
    if "NUMBA_CACHE_DIR" in os.environ:
        yield Path(os.environ["NUMBA_CACHE_DIR"]) / "adafilter"
        return
    yield _HERE / "__pycache__"
    with suppress(RuntimeError):  # no home
        yield cache_folder() / "numba"
