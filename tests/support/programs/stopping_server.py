"""A process that ends while a sender continues. Arguments: DATABASE_URL REDIS_URL."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.support import SECRET, post
from tests.support.stories import encoded, new_users
from webhooks.app import create_app
from worker.bootstrap import build_services
from worker.logs import configure
from worker.settings import Settings


def main(database_url: str, redis_url: str) -> None:
    """Deliver events from a thread once the interpreter is shutting down; print how each is answered."""
    configure("console")  # to stderr: stdout is for the answers
    settings = Settings(_env_file=None, database_url=database_url, workos_webhook_secrets=SECRET)
    endpoint = create_app(build_services(settings, redis_url, endpoint=True)).test_client()

    pool = ThreadPoolExecutor(1)

    def deliver() -> None:
        # Not `main_thread().join()`: until Python 3.12, it may hold the lock that the shutdown asserts to be free, and
        # the shutdown then does not wait for this thread. An executor refuses work from the beginning of the shutdown.
        with suppress(RuntimeError):
            while True:
                pool.submit(int).result()
        for event in new_users(5):
            print(post(endpoint, encoded(event)).status_code, flush=True)

    threading.Thread(target=deliver).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
