"""The folder of uploaded files, which all servers of a process share: Gradio looks its name up at every request."""

import os
from tempfile import TemporaryDirectory

VARIABLE = "GRADIO_TEMP_DIR"


class UploadFolder:
    """A temporary folder that exists as long as a server uses it."""

    def __init__(self) -> None:
        self._users = 0
        self._folder: TemporaryDirectory | None = None
        self._before: str | None = None

    def acquire(self) -> None:
        """Before a page is built. Each call needs one of `release`."""
        if not self._users:
            self._folder = TemporaryDirectory(prefix="dcal-demo-", ignore_cleanup_errors=True)
            self._before = os.environ.get(VARIABLE)
            os.environ[VARIABLE] = self._folder.name
        self._users += 1

    def release(self) -> None:
        """After the server is closed: the last one deletes the folder."""
        self._users -= 1
        if not self._users:
            self._folder.cleanup()
            os.environ.pop(VARIABLE)
            if self._before is not None:
                os.environ[VARIABLE] = self._before


UPLOADS = UploadFolder()
