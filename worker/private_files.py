"""The default folder for files, and their protection from other users."""

import os
from pathlib import Path

from models.private_files import close_to_others

HOME = Path(".workos-sync")
"""In the working directory."""


def keep_files_private() -> None:
    """Make the files that this process and its children create accessible only to their own user.

    Also closes files in `HOME` that an older release left open to others. Call this before any file is created.
    """
    os.umask(0o077)
    for path in (HOME.resolve(), *HOME.rglob("*")):
        close_to_others(path)
