"""`python -m worker.cli`, as `workos-sync`."""

from worker.cli import main

main(prog_name="workos-sync")
