"""Named tokens, compared in constant time; guesses are slowed for each address."""

import hashlib
import hmac
import ipaddress
import threading
import time
from collections.abc import Mapping

import structlog
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from worker.env.redis_keys import redis_key
from worker.errors import TooManyGuessesError

log = structlog.get_logger()

MAX_GUESSES = 10
"""Different wrong tokens that an address may send in `WINDOW_SECONDS`."""
WINDOW_SECONDS = 60
MAX_REFUSED = 10_000
"""Refused addresses that a process remembers."""
KEY = redis_key("guesses")
IPV6_PREFIX = 64
"""Somebody who has one IPv6 address usually has all with this prefix."""


def token_name(token: str, known: Mapping[str, SecretStr]) -> str | None:
    """Return the name of a token, or None if it is unknown.

    Compares with every known token, so the time does not reveal which one matched.
    """
    found = None
    for name, secret in known.items():
        if hmac.compare_digest(token.encode("utf-8", "replace"), secret.get_secret_value().encode()):
            found = name
    return found


class Guesses:
    """Slows guesses of tokens: an address that sends too many different wrong ones is refused until the minute ends.

    The same wrong token counts once, so that a client with an outdated token does not lock out others at its address.
    All processes count in Redis. A process reads the count of an address when the address sends it a wrong token. While
    Redis is away, no further address is refused.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._refused: dict[str, int] = {}
        """Address → the last minute in which it is refused. Checking a right token then needs no call to Redis."""

    def name_of(self, token: str, known: Mapping[str, SecretStr], address: str | None) -> str | None:
        """Return the name of a token that came from `address`, or None if it is unknown.

        Raises:
            TooManyGuessesError: the address sent too many wrong tokens. The token was not compared.
        """
        now = time.time()
        minute, sender = int(now // WINDOW_SECONDS), _sender(address)
        if self._refused.get(sender) == minute:
            raise TooManyGuessesError(round(WINDOW_SECONDS - now % WINDOW_SECONDS) + 1)
        name = token_name(token, known)
        if name is None and token:
            self._count(token, sender, minute)
        return name

    def _count(self, token: str, sender: str, minute: int) -> None:
        key = f"{KEY}:{sender}:{minute}"
        guess = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()[:8]  # too short to find the token by it
        try:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.sadd(key, guess)
                pipeline.expire(key, 2 * WINDOW_SECONDS)
                pipeline.scard(key)
                *_, number = pipeline.execute()
        except RedisError:
            return
        if number >= MAX_GUESSES:
            log.warning("guesses_refused", address=sender)
            with self._lock:
                while len(self._refused) >= MAX_REFUSED:
                    del self._refused[next(iter(self._refused))]
                self._refused[sender] = minute


def _sender(address: str | None) -> str:
    """Return the network that one sender can be expected to have: the IPv4 address, or the IPv6 prefix."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(found), IPV6_PREFIX), strict=False))
        found = found.ipv4_mapped
    return str(found)
