"""`python -m worker.sandbox`: a sandbox process. Prints one line of JSON when ready; SIGTERM ends it."""

import argparse
import json
import signal
import threading

import click

from worker.sandbox.knobs import Knobs
from worker.sandbox.server import Sandbox
from worker.sandbox.service import API_KEY


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m worker.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--api-key", default=API_KEY, help="the key the API asks for")
    parser.add_argument(
        "--hold-back", type=float, default=2.0, metavar="SECONDS", help="age of the newest event listed"
    )
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    knobs = Knobs(hold_back=options.hold_back)
    with Sandbox(seed=options.seed, api_key=options.api_key, port=options.port, knobs=knobs) as sandbox:
        click.echo(json.dumps({"base_url": sandbox.base_url, "api_key": sandbox.api_key}))
        ended.wait()


if __name__ == "__main__":
    main()
