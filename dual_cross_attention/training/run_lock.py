"""Lock file of a run folder: one training at a time."""

import contextlib
import errno
import fcntl
import os
import platform
from pathlib import Path

from dual_cross_attention.errors import InputError, RunInUseError
from dual_cross_attention.runs.run_folder import RunFolder

_LOCKED: set[int] = set()
"""File descriptors of the locks that this process holds."""


def _release_in_child() -> None:
    """Closes inherited locks in a forked DataLoader worker, which may outlive a training that is killed."""
    while _LOCKED:
        os.close(_LOCKED.pop())


os.register_at_fork(after_in_child=_release_in_child)


class RunLock:
    """The lock of a run's folder.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._lock = folder.path / ".lock"
        self._descriptor: int | None = None
        self._owner = folder.path / ".owner"
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Locks the folder until `release`, or the end of this process; a no-op on file systems without locks.

        Raises:
            RunInUseError: another training holds the lock.
            InputError: the folder cannot be written to.
        """
        try:
            self._made = [path for path in (self.folder.path, *self.folder.path.parents) if not path.exists()]
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            _LOCKED.add(self._descriptor)
            self._lock_descriptor(self._descriptor)
            with contextlib.suppress(OSError):  # a full disk: the owner is only shown in messages of others
                self._owner.write_text(f"process {os.getpid()} on {platform.node()}")
        except BlockingIOError:
            self._let_go()
            owner = self._owner.read_text() if self._owner.is_file() else "another process"
            raise RunInUseError(
                f"'{self.folder.path}' is in use: {owner} is training into it; wait for its end, or take another "
                "--output_dir"
            ) from None
        except OSError as error:
            self._let_go()
            raise InputError(f"cannot write to the run's folder '{self.folder.path}': {error.strerror}") from error

    @staticmethod
    def _lock_descriptor(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise

    def _let_go(self) -> None:
        if self._descriptor in _LOCKED:
            _LOCKED.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None

    def release(self) -> None:
        """Releases the lock, and removes the folder of a run that never began."""
        with contextlib.suppress(OSError):  # the folder is not empty, or is read-only now
            self._owner.unlink(missing_ok=True)
            if not self.folder.config.exists():
                self._lock.unlink(missing_ok=True)
                for path in self._made:
                    path.rmdir()
        self._let_go()
