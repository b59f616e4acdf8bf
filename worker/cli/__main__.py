"""Makes `python -m worker.cli` the same as `workos-sync`."""

from worker.cli import main

main(prog_name="workos-sync")
