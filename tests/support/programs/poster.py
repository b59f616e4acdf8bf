"""A process that posts deliveries. Arguments: PORT FILE CONNECTIONS. Imports little, so that it starts quickly."""

import http.client
import json
import sys
import threading
from pathlib import Path


def main(port: str, file: str, connections: str) -> None:
    """Post what is in FILE (a list of bodies and signatures) once a line comes; each must be answered with 200."""
    deliveries: list[tuple[str, str]] = json.loads(Path(file).read_text())
    refused: list[object] = []

    def post(mine: list[tuple[str, str]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        for body, signature in mine:
            connection.request("POST", "/webhooks/workos", body.encode(), {"WorkOS-Signature": signature})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                refused.append((answer.status, text))
        connection.close()

    number = int(connections)
    posters = [threading.Thread(target=post, args=(deliveries[place::number],)) for place in range(number)]
    print("ready", flush=True)
    sys.stdin.readline()
    for poster in posters:
        poster.start()
    for poster in posters:
        poster.join()
    sys.exit(f"{len(refused)} were refused, such as {refused[0]}" if refused else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
