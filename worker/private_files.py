"""Where a start without settings keeps its files, and who may read what this process makes."""

import os
from pathlib import Path

from models.private_files import close_to_others

HOME = Path(".workos-sync")
"""Below the working directory."""


def keep_files_private() -> None:
    """Let this process and its children make files, folders and sockets for their own user only, whatever the umask.

    Those in `HOME` that an older release left open to others are closed. To be called first, before any file is made.
    """
    os.umask(0o077)
    for path in (HOME.resolve(), *HOME.rglob("*")):
        close_to_others(path)
