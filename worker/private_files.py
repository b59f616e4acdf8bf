"""Where files are kept by default, and who may read the files this process creates."""

import os
from pathlib import Path

from models.private_files import close_to_others

HOME = Path(".workos-sync")
"""Below the working directory."""


def keep_files_private() -> None:
    """Make this process and its children create files, folders and sockets for their own user only.

    Files in `HOME` that an older release left open to others are closed. Call this first, before any file is created.
    """
    os.umask(0o077)
    for path in (HOME.resolve(), *HOME.rglob("*")):
        close_to_others(path)
