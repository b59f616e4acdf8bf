"""Starts a command with open sockets, as systemd does. Arguments: FD COMMAND..."""

import os
import sys

FIRST = 3
"""Where a service finds the first socket (sd_listen_fds(3))."""


def main(descriptor: str, *command: str) -> None:
    """Become COMMAND, with the listening socket FD as its first."""
    os.dup2(int(descriptor), FIRST)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.execv(command[0], command)  # noqa: S606 - the test's own command


if __name__ == "__main__":
    main(*sys.argv[1:])
