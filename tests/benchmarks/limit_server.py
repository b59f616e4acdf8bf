"""The web processes of `workos-sync web`, with an application that only checks signatures."""

import socket
from functools import partial

from redis import Redis

from tests.benchmarks.limits import application
from webhooks.asgi import Gateway
from webhooks.serve import listen, serve
from worker.cli.shared import until_stopped
from worker.metrics import Counters
from worker.processes.supervisor import supervise
from worker.settings import load_settings


def main() -> None:
    """Serve on PORT until SIGTERM."""
    settings = load_settings()

    def work(listening: socket.socket) -> None:
        counters = Counters(Redis.from_url(settings.redis_url or ""))
        serve(Gateway(application(), settings.web_threads, counters), listening, counters.close)

    with until_stopped() as stop:
        supervise([partial(work, listening) for listening in listen(settings)], stop, partial(print, "not started:"))


if __name__ == "__main__":
    main()
