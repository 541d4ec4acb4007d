"""What a program did to a folder, from strace: typed operations, and an error for what is unknown.

Every call is traced but those in ``HARMLESS``. A call that names a file under the folder and is
neither harmless nor modelled raises TraceError, so that a new way of writing cannot go unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.powercut.operations import (
    Close,
    Copy,
    Descriptor,
    Duplicate,
    Link,
    MakeFolder,
    Open,
    Operation,
    Rename,
    Said,
    Seek,
    Sync,
    TraceError,
    Truncate,
    Unlink,
    Write,
)

# Read, wait or look; none changes a file or its name. (What is written through a mapping is seen
# where the mapping is made.) "?" lets an architecture lack the call.
HARMLESS = (
    "read readv pread64 preadv preadv2 /stat futex poll ppoll select pselect6 munmap brk mprotect "
    "madvise /^rt_ getdents getdents64 readlink readlinkat getcwd "
    "fadvise64 getrandom lgetxattr getxattr chmod fchmod fchmodat utimensat flock close_range "
    "arch_prctl prlimit64 rseq set_robust_list set_tid_address sched_getaffinity"
)
_MODELLED = (
    "open openat write pwrite64 writev pwritev lseek ftruncate truncate fallocate fsync fdatasync "
    "rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat rmdir close sendfile "
    "copy_file_range mmap fcntl ioctl"
)


MARK = "/the next sync is asked for by: "
"""Begins a name that is looked for before a sync, to say which lines of the program ask for it."""

# Calls that change a file or a name and are not told which folder a relative path starts from.
_BY_PATH = ("rename", "link", "symlink", "unlink", "mkdir", "rmdir", "truncate", "creat", "mknod")
_LOOKS = ("access", "faccessat", "faccessat2")


def strace(log: Path) -> list[str]:
    """The words to put before a command, so that ``log`` gets its trace."""
    hidden = ",".join(f"?{name}" if name[0] != "/" else name for name in HARMLESS.split())
    shown = ["-f", "-y", "-xx", "-s", "100000000", "-e", f"trace=!{hidden}", "-e", "signal=none"]
    return ["strace", *shown, "-o", str(log), "--"]


def read(log: Path, root: Path) -> list[Operation]:
    """The operations under ``root`` (an absolute path without links), in order of completion."""
    return list(_Reader(str(root)).read(log.read_text(encoding="latin-1").splitlines()))


_HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\w+|\?)(.*)")
_CUT = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_FILE = re.compile(r"(-?\d+|AT_FDCWD)(?:<(.*?)>( ?\(deleted\))?)?$")


def _plain(text: str) -> str:
    return _HEX.sub(lambda m: bytes.fromhex(m[0].replace("\\x", "")).decode("latin-1"), text)


def _is_relative(word: str) -> bool:
    return len(word) > 2 and word[0] == '"' and not _plain(word[1:5]).startswith("/")


def _string(word: str) -> str:
    if not word.startswith('"') or not word.endswith('"'):
        raise TraceError(f"not a whole string: {word[:80]}")
    return _plain(word[1:-1])


def _split(words: str) -> list[str]:
    """Arguments of a call; commas within brackets do not count (strings are hexadecimal)."""
    found, depth, begin = [], 0, 0
    for at, letter in enumerate(words) if re.search(r"[\[{]", words) else ():
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append(words[begin:at].strip())
            begin = at + 1
    rest = words[begin:]
    return found + ([rest.strip()] if found else [word.strip() for word in rest.split(",")])


@dataclass
class _Call:
    process: str
    name: str
    words: list[str]
    result: int
    line: str

    def descriptor(self, index: int) -> tuple[Descriptor, str]:
        """Of an open file, and its path; the path of a removed one ends with a mark."""
        match = _FILE.match(self.words[index])
        if match is None:
            raise TraceError(f"no descriptor in {self.line[:200]}")
        number = -1 if match[1] == "AT_FDCWD" else int(match[1])
        return (self.process, number), _plain(match[2] or "") + (" (deleted)" if match[3] else "")

    def path(self, index: int, folder: int | None = None) -> str:
        """A path argument, made absolute by the folder's descriptor before it."""
        text = _string(self.words[index])
        if not text.startswith("/"):
            if folder is None:
                raise TraceError(f"a relative path, whose folder is unknown: {_plain(self.line)}")
            text = f"{self.descriptor(folder)[1]}/{text}"
        return str(Path(text))


@dataclass
class _Reader:
    root: str
    cut: dict[str, str] = field(default_factory=dict)  # by process: a call that has not ended
    marked: dict[str, str] = field(default_factory=dict)  # by process: lines that will sync

    def read(self, lines: Sequence[str]) -> Iterator[Operation]:
        for line in lines:
            if (call := self._call(line)) is not None:
                yield from self._operations(call)
        for line in self.cut.values():
            if self._concerns(_plain(line)) and line.split("(")[0] not in ("exit_group", "close"):
                raise TraceError(f"never ended: {_plain(line)[:200]}")

    def _call(self, line: str) -> _Call | None:
        if match := _CUT.match(line):
            self.cut[match[1]] = f"{match[2]}({match[3]}"
            return None
        if match := _RESUMED.match(line):
            line = f"{match[1]} {self.cut.pop(match[1])}{match[3]}"
        match = _LINE.match(line)
        if match is None:
            if re.match(r"\d+ +(\+\+\+|---)", line):  # an end or a signal
                return None
            raise TraceError(f"not a line of strace: {line[:200]}")
        process, name, words, result, _ = match.groups()
        if name == "io_uring_setup":
            raise TraceError("io_uring writes without calls: not modelled")
        if name in _LOOKS:
            if MARK in (text := _plain(words)):
                self.marked[process] = text.split(MARK)[1].split('"')[0]
            return None
        if result.startswith("-") or result == "?":
            return None
        return _Call(process, name, _split(words), int(result, 0), line)

    def _concerns(self, text: str) -> bool:
        return re.search(re.escape(self.root) + r"(?![\w.-])", text) is not None

    def _may_concern(self, call: _Call) -> bool:
        """Whether a call names something under the folder, or could by a relative path."""
        if self._concerns(_plain(call.line)):
            return True
        if not any(_is_relative(word) for word in call.words):
            return False
        if call.name in _BY_PATH:  # from where, the trace does not say
            raise TraceError(f"a relative path: {_plain(call.line)[:200]}")
        folders = (_plain(match[1]) for match in re.finditer(r"<(.*?)>", call.line))
        return any(self.root.startswith(f"{folder.rstrip('/')}/") for folder in folders if folder)

    def _operations(self, call: _Call) -> Iterator[Operation]:
        if call.name in ("write", "writev") and (said := self._said(call)):
            yield said
        writes = call.name == "open" and {"O_WRONLY", "O_RDWR"} & set(call.words[1].split("|"))
        if writes and _is_relative(call.words[0]):
            raise TraceError(f"a relative path: {_plain(call.line)[:200]}")
        if call.name == "execve" or not self._may_concern(call):
            return
        if call.name not in _MODELLED.split():
            raise TraceError(f"{call.name} is not modelled: {_plain(call.line)[:300]}")
        for operation in self._modelled(call):
            paths = [text for text in vars(operation).values() if isinstance(text, str)]
            if isinstance(operation, Close) or any(self._concerns(path) for path in paths):
                yield operation

    def _said(self, call: _Call) -> Said | None:
        (_, number), path = call.descriptor(0)
        if number != 1 or not path.startswith("pipe:"):
            return None
        return Said(b"".join(_chunks(call)).decode(errors="replace"))

    def _modelled(self, call: _Call) -> Iterator[Operation]:
        name, words = call.name, call.words
        if name in ("open", "openat"):
            at = 0 if name == "open" else 1
            path = call.path(at, at - 1 if at else None)
            flags = set(words[at + 1].split("|"))
            if flags & {"O_SYNC", "O_DSYNC", "O_DIRECT", "O_TMPFILE"}:
                raise TraceError(f"not modelled: {_plain(call.line)}")
            kinds = (flag in flags for flag in ("O_CREAT", "O_TRUNC", "O_APPEND"))
            yield Open(path, (call.process, call.result), *kinds)
        elif name in ("write", "writev", "pwrite64", "pwritev"):
            descriptor, path = call.descriptor(0)
            data = b"".join(_chunks(call))[: call.result]
            if len(data) != call.result:
                raise TraceError(f"the trace lacks bytes of {_plain(call.line)[:200]}")
            yield Write(path, descriptor, data, int(words[3]) if name.startswith("p") else None)
        elif name in ("sendfile", "copy_file_range"):
            yield self._copy(call)
        elif name == "lseek":
            descriptor, path = call.descriptor(0)
            yield Seek(path, descriptor, call.result)
        elif name == "ftruncate":
            yield Truncate(call.descriptor(0)[1], int(words[1]))
        elif name == "truncate":
            yield Truncate(call.path(0), int(words[1]))
        elif name == "fallocate":
            if words[1] == "0":
                path = call.descriptor(0)[1]
                yield Truncate(path, int(words[2]) + int(words[3]), grow_only=True)
            elif words[1] != "FALLOC_FL_KEEP_SIZE":
                raise TraceError(f"not modelled: {_plain(call.line)}")
        elif name in ("fsync", "fdatasync"):
            yield Sync(call.descriptor(0)[1], self.marked.pop(call.process, ""))
        elif name == "rename":
            yield Rename(call.path(0), call.path(1))
        elif name in ("renameat", "renameat2"):
            if len(words) > 4 and words[4] not in ("0", "RENAME_NOREPLACE"):
                raise TraceError(f"not modelled: {_plain(call.line)}")
            yield Rename(call.path(1, 0), call.path(3, 2))
        elif name == "link":
            yield Link(call.path(0), call.path(1))
        elif name == "linkat":
            yield Link(call.path(1, 0), call.path(3, 2))
        elif name in ("unlink", "rmdir"):
            yield Unlink(call.path(0))
        elif name == "unlinkat":
            yield Unlink(call.path(1, 0))
        elif name in ("mkdir", "mkdirat"):
            yield MakeFolder(call.path(0) if name == "mkdir" else call.path(1, 0))
        elif name == "close":
            yield Close(call.descriptor(0)[0])
        elif name == "mmap":
            if "MAP_PRIVATE" not in words[3] and words[2] not in ("PROT_READ", "PROT_NONE"):
                raise TraceError(f"writing through a mapping: {_plain(call.line)}")
        elif name == "fcntl" and words[1].startswith("F_DUPFD"):
            yield Duplicate(call.descriptor(0)[1])
        elif name == "ioctl" and words[1] != "TCGETS":  # FICLONE copies
            raise TraceError(f"not modelled: {_plain(call.line)}")

    def _copy(self, call: _Call) -> Operation:
        words = call.words
        into, source = (0, 1) if call.name == "sendfile" else (2, 0)
        place = words[2] if call.name == "sendfile" else words[1]
        descriptor, path = call.descriptor(into)
        origin = call.descriptor(source)[1]
        offset = re.match(r"\[(\d+)", place)
        if not self._concerns(origin) or offset is None:
            raise TraceError(f"the copied bytes are not in the trace: {_plain(call.line)}")
        return Copy(origin, int(offset[1]), path, descriptor, call.result)


def _chunks(call: _Call) -> Iterator[bytes]:
    if call.name in ("write", "pwrite64"):
        yield _string(call.words[1]).encode("latin-1")
    else:
        for text in re.findall(r'iov_base=("[^"]*")', call.words[1]):
            yield _string(text).encode("latin-1")
