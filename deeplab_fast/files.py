"""Files that appear whole or not at all, and the places where they may be written. Nothing here needs more than Python.

What is being written has a name of its own beside its destination until it is complete. Its process holds a lock on it
(flock), which the system takes away when the process ends, however it ends: a later process that gets the lock knows
that nobody is writing any more, and deletes what was left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DestinationError",
    "Inputs",
    "atomic_write",
    "atomic_write_all",
    "check_destination",
    "check_folder",
    "partial_folder",
    "remove_abandoned",
]

PathLike = str | os.PathLike[str]
Writer = Callable[[BinaryIO], object]  # writes a file, given it open

PREFIX, PARTIAL = ".deeplab-fast-", ".partial"
# Seconds after which an unlocked file of another machine counts as abandoned: on some network file systems each machine
# sees its own locks only.
FOREIGN_AGE = 24 * 3600


class DestinationError(ValueError):
    """Something would be written where it must not be: over an input, among inputs, or to what is no regular file."""


# ------------------------------------------------------------------------------------------------- destinations


class Inputs:
    """Files and folders that are read, found under each of their names: through links, `..`, another case."""

    def __init__(self, paths: Iterable[PathLike] = ()):
        self._by_place = {_place(path): Path(path) for path in paths}

    def found(self, path: PathLike) -> Path | None:
        """The input that a path stands for, if any."""
        return self._by_place.get(_place(path))


def _place(path: PathLike) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError:  # it is not there, or not yet
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def check_destination(path: PathLike, inputs: Inputs | Iterable[PathLike] = (), *, new_folder: bool = False) -> None:
    """Raise, before any work is done, if a file cannot or must not be written to a path.

    Args:
        path: of the file.
        inputs: files and folders that are read. The path must be none of these files, and lie directly in none of
            these folders.
        new_folder: whether its folder may be missing, to be made later.

    Raises:
        DestinationError: if it would replace an input or lie among inputs, or is a device, pipe or socket.
        FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError: as the names say.
        OSError: if the name is too long.
    """
    path, inputs = Path(path), inputs if isinstance(inputs, Inputs) else Inputs(inputs)
    folder = Path(os.path.realpath(path)).parent
    if not folder.exists():
        if not new_folder:
            raise FileNotFoundError(f"folder of the output not found: {path.parent}")
        check_folder(path.parent, inputs)
        _check_name(_existing(folder) / path.name)
        return
    _check_name(path)
    if path.is_dir():
        raise IsADirectoryError(f"output: is the folder {path}, should be a file")
    if path.exists() and not path.is_file():
        raise DestinationError(f"output: is {path}, a device, a pipe or a socket, should be a regular file")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder of the output: is the file {path.parent}, should be a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"folder of the output is not writable: {path.parent}")
    if inputs.found(path):
        raise DestinationError(f"{path} is an input and would be overwritten")
    if among := inputs.found(folder):
        raise DestinationError(f"{path} would lie in {among}, which is read from: choose another folder")


def check_folder(path: PathLike, inputs: Inputs | Iterable[PathLike] = ()) -> None:
    """Raise, before any work is done, if files cannot or must not be written to a folder, made later if need be.

    Args:
        path: of the folder.
        inputs: files and folders that are read; the path must be none of them.

    Raises:
        DestinationError: if it is one of `inputs`.
        NotADirectoryError, PermissionError: as the names say.
    """
    path, inputs = Path(path), inputs if isinstance(inputs, Inputs) else Inputs(inputs)
    there = _existing(path)
    if not there.is_dir():
        raise NotADirectoryError(f"output: is the file {there}, should be a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"folder is not writable: {there}")
    if inputs.found(path):
        raise DestinationError(f"{path} is read from, nothing may be written there: choose another folder")


def _existing(path: Path) -> Path:
    """The nearest of a path's parents, or the path itself, that is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def _check_name(path: Path) -> None:
    """Raise OSError for a name that the file system does not take."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return


# ------------------------------------------------------------------------------------------------------ writing


def atomic_write_all(writers: Mapping[Path, Writer], *, sync: bool = False) -> None:
    """Write several files so that either all appear, whole, or none does.

    Each is written beside its destination first; only when every one is complete are they renamed. If a
    rename fails, files that did not exist before are taken away again.

    Args:
        writers: for each destination, a function that writes it to the binary file it is given.
        sync: wait until the contents are on the disk before renaming, so that even a power cut leaves old or new.

    Raises:
        DestinationError, OSError: as `check_destination`, or whatever writing raised; nothing is left behind.
    """
    partial: dict[Path, BinaryIO] = {}
    renamed: list[Path] = []
    try:
        for path, write in writers.items():
            check_destination(path)
            target = Path(os.path.realpath(path))  # so that a link's target is replaced, not the link
            file = partial[target] = _partial_file(target.parent)
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        for target, file in partial.items():
            existed = target.exists()
            os.replace(file.name, target)
            if not existed:
                renamed.append(target)
    except BaseException:
        for path in [*(Path(file.name) for file in partial.values()), *renamed]:
            path.unlink(missing_ok=True)
        raise
    finally:
        for file in partial.values():
            with contextlib.suppress(OSError):  # what could not be written was told above
                file.close()


def writer_of(content: bytes) -> Writer:
    """What writes these bytes."""
    return lambda file: file.write(content)


def atomic_write(path: PathLike, write: Writer, *, sync: bool = False) -> None:
    """Write one file whole or not at all; see `atomic_write_all`."""
    atomic_write_all({Path(path): write}, sync=sync)


@contextlib.contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new folder in another, to be filled and renamed; if it is still there in the end, it is deleted."""
    remove_abandoned(parent)
    while True:
        made = _partial_name(parent)
        made.mkdir()
        if (lock := _locked(made)) is not None:
            break
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


_looked_through: set[str] = set()  # folders that this process has removed abandoned files from


def _partial_file(folder: Path) -> BinaryIO:
    """A new file, open and locked, with a name that is short enough wherever a name can be."""
    if str(folder) not in _looked_through:
        _looked_through.add(str(folder))
        remove_abandoned(folder)
    while True:
        file = open(_partial_name(folder), "xb")  # noqa: SIM115  # the caller renames it before it closes it
        _lock(file.fileno(), fcntl.LOCK_EX)
        if os.path.lexists(file.name):
            return file
        file.close()  # another process took it for abandoned, between its making and its locking


def _partial_name(folder: Path) -> Path:
    return folder / f"{PREFIX}{_machine()}-{secrets.token_hex(4)}{PARTIAL}"


def _machine() -> str:
    """Eight digits for this machine since it was started, the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return f"{zlib.crc32(platform.node().encode()):08x}"


def _lock(descriptor: int, how: int) -> bool:
    """Whether a file could be locked; False also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _locked(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; None if it was deleted meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    _lock(descriptor, fcntl.LOCK_EX)
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def remove_abandoned(folder: PathLike) -> None:
    """Delete what killed processes left half-written in a folder; what a living one is writing stays."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(one) for one in entries if one.name.startswith(PREFIX) and one.name.endswith(PARTIAL)]
    except OSError:  # it is not readable: then writing tells
        return
    for path in found:
        # For a lock over the network, a file has to be open for writing.
        how = os.O_RDONLY if path.is_dir() else os.O_RDWR
        try:
            descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # it is gone, or not ours
        try:
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_abandoned(path, os.fstat(descriptor)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)


def _is_abandoned(path: Path, opened: os.stat_result) -> bool:
    """Whether a path, whose lock was free, is still what was locked, and nobody on another machine writes it."""
    if not os.path.samestat(os.lstat(path), opened):  # it was complete, and renamed, before it was locked
        return False
    ours = path.name.startswith(f"{PREFIX}{_machine()}-")
    return ours or time.time() - opened.st_mtime > FOREIGN_AGE
