"""A model of a disk that loses power: what is durable, and what may or may not have arrived.

The data of a file and the entries of a folder each have a durable and a pending part. fsync of a
file makes its data and its size durable, not its name; fsync of a folder makes its entries durable,
not the data behind them. What is pending may have reached the disk or not, each item by itself.

Compared with the file systems of Pillai et al. (All File Systems Are Not Created Equal, OSDI 2014),
whose tool ALICE also replays traces of system calls on models of what a file system may do:

- stricter than journaling file systems: operations on folders arrive in any subset, those on one
  folder too. Moving something to another folder is two items, of which either may be lost. fsync of
  a new file never brings its name along, nor rename the data of the file that it puts in place
  (ext4 tries both).
- the same: rename within one folder is one item, so that a replaced name is old or new.
- weaker than their weakest: unsynced data of one file are nothing, all, a prefix (between calls and
  in the middle of each), or the new size with zeros for data; not every subset of blocks, no blocks
  of other files. A disk that acknowledges a flush and then loses the data is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tests.powercut.inodes import Change, File, Folder, applied
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

Tree = dict[str, bytes | None]  # by relative path; None is a folder


Item = tuple[int, int]  # an inode (its id), and which of its pending changes of entries; -1: data
Choice = Mapping[Item, int]  # which outcome of each item; 0: lost, 1: arrived, more: partly


class Disk:
    """Begins with ``tree`` under ``root``, all of it durable; then follows a trace."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self._path = root
        self._open: dict[Descriptor, tuple[File, bool]] = {}  # by descriptor: inode, appends
        self._position: dict[Descriptor, int] = {}
        self._root = _durable(tree)

    def _inode(self, path: str) -> File | Folder | None:
        if not PurePosixPath(path).is_relative_to(self._path):
            raise TraceError(f"{path} is outside the recorded folder {self._path}")
        inode: File | Folder | None = self._root
        for name in PurePosixPath(path).relative_to(self._path).parts:
            if not isinstance(inode, Folder):
                return None
            inode = inode.now.get(name)
        return inode

    def _parent(self, path: str) -> tuple[Folder, str]:
        parent = self._inode(str(PurePosixPath(path).parent))
        if not isinstance(parent, Folder):
            raise TraceError(f"no folder for {path}")
        return parent, PurePosixPath(path).name

    def _there(self, path: str) -> File | Folder:
        inode = self._inode(path)
        if inode is None:
            raise TraceError(f"{path} is not in the model")
        return inode

    def _file(self, path: str, descriptor: Descriptor | None = None) -> File:
        """The file of a descriptor, by what it was opened as: names change, a file does not."""
        if descriptor is None:
            inode = self._there(path)
        elif descriptor not in self._open:
            raise TraceError(f"{path} (descriptor {descriptor}) was opened before the trace")
        else:
            inode = self._open[descriptor][0]
            if not path.endswith(" (deleted)") and self._there(path) is not inode:
                raise TraceError(f"descriptor {descriptor} is no longer that of {path}")
        if not isinstance(inode, File):
            raise TraceError(f"{path} is not a file")
        return inode

    def apply(self, operation: Operation) -> None:
        """Follow one call; TraceError where it does not fit what the model holds."""
        if isinstance(operation, Open):
            self._opened(operation)
        elif isinstance(operation, Write):
            self._write(operation.path, operation.descriptor, operation.data, operation.offset)
        elif isinstance(operation, Copy):
            end = operation.begin + operation.size
            data = self._file(operation.source).now[operation.begin : end]
            self._write(operation.path, operation.descriptor, data, None)
        elif isinstance(operation, Seek):
            self._position[operation.descriptor] = operation.position
        elif isinstance(operation, Truncate):
            change = Change(size=operation.size, grow_only=operation.grow_only)
            self._file(operation.path).change(change)
        elif isinstance(operation, Sync):
            self._there(operation.path).settle()
        elif isinstance(operation, MakeFolder):
            parent, name = self._parent(operation.path)
            parent.change({name: Folder()})
        elif isinstance(operation, Unlink):
            self._there(operation.path)
            parent, name = self._parent(operation.path)
            parent.change({name: None})
        elif isinstance(operation, Link):
            parent, name = self._parent(operation.new)
            parent.change({name: self._file(operation.old)})
        elif isinstance(operation, Rename):
            self._rename(operation)
        elif isinstance(operation, Duplicate):
            if isinstance(self._there(operation.path), File):
                raise TraceError(f"two descriptors that move together: {operation.path}")
        elif isinstance(operation, Close):
            self._open.pop(operation.descriptor, None)
        elif not isinstance(operation, Said):
            raise TraceError(f"{operation} is not modelled")

    def _opened(self, operation: Open) -> None:
        inode = self._inode(operation.path)
        if inode is None:
            if not operation.create:
                raise TraceError(f"{operation.path} is not in the model")
            parent, name = self._parent(operation.path)
            inode = File()
            parent.change({name: inode})
        if isinstance(inode, File):
            self._open[operation.descriptor] = inode, operation.append
            self._position[operation.descriptor] = 0
            if operation.truncate and inode.now:
                inode.change(Change(size=0))

    def _write(self, path: str, descriptor: Descriptor, data: bytes, offset: int | None) -> None:
        inode = self._file(path, descriptor)
        _, appends = self._open[descriptor]
        begin = self._position[descriptor] if offset is None else offset
        begin = len(inode.now) if appends else begin
        inode.change(Change(offset=begin, data=data))
        if offset is None:
            self._position[descriptor] = begin + len(data)

    def _rename(self, operation: Rename) -> None:
        inode = self._there(operation.old)
        (old, old_name), (new, new_name) = self._parent(operation.old), self._parent(operation.new)
        if old is new:
            old.change({old_name: None, new_name: inode})
        else:
            new.change({new_name: inode})
            old.change({old_name: None})

    def items(self) -> dict[Item, int]:
        """All that is pending, each with the number of its outcomes (2: lost or arrived)."""
        found: dict[Item, int] = {}
        for inode in self._reachable():
            if isinstance(inode, File):
                if inode.pending:
                    found[id(inode), -1] = len(inode.outcomes())
            else:
                found |= {(id(inode), at): 2 for at in range(len(inode.pending))}
        return found

    def _reachable(self) -> Iterator[File | Folder]:
        """Inodes that some state names."""
        seen: set[int] = set()
        waiting: list[File | Folder] = [self._root]
        while waiting:
            inode = waiting.pop()
            if id(inode) in seen:
                continue
            seen.add(id(inode))
            yield inode
            if isinstance(inode, Folder):
                items: list[Mapping[str, File | Folder | None]] = [inode.durable, *inode.pending]
                for item in items:
                    waiting += [child for child in item.values() if child is not None]

    def state(self, choice: Choice, otherwise: int) -> Tree:
        """What is there after the cut; items that ``choice`` leaves out: 0 lost, 1 arrived."""
        return _tree(self._root, lambda item: choice.get(item, otherwise))

    def settle(self) -> None:
        """Time has passed: all that is pending arrives."""
        for inode in list(self._reachable()):
            inode.settle()

    def now(self) -> Tree:
        """What a program sees without a cut."""
        return self.state({}, 1)


def _tree(folder: Folder, chosen: Callable[[Item], int], below: str = "") -> Tree:
    found: Tree = {}
    entries = folder.durable
    for at, item in enumerate(folder.pending):
        if chosen((id(folder), at)):
            entries = applied(entries, item)
    for name, inode in entries.items():
        if isinstance(inode, Folder):
            found[below + name] = None
            found |= _tree(inode, chosen, f"{below}{name}/")
        elif inode.pending:
            found[below + name] = inode.outcomes()[chosen((id(inode), -1))]
        else:
            found[below + name] = inode.durable
    return found


def _durable(tree: Tree) -> Folder:
    folders = {"": Folder()}
    for path, content in sorted(tree.items()):
        parent, _, name = path.rpartition("/")
        inode = folders.setdefault(path, Folder()) if content is None else File(content, content)
        folders[parent].durable[name] = folders[parent].now[name] = inode
    return folders[""]


def read(place: Path) -> Tree:
    """What really is under ``place``."""
    found: Tree = {}
    for path in place.rglob("*"):
        if path.is_symlink():
            raise TraceError(f"links are not modelled: {path}")
        found[str(path.relative_to(place))] = None if path.is_dir() else path.read_bytes()
    return found


def write(tree: Tree, place: Path) -> None:
    """Put a state into the empty folder ``place``."""
    for path, content in sorted(tree.items()):
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)
