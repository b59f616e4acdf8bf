"""The rate limits: token buckets in Redis, shared by all workers.

The product's own sign-ins use the same limits of WorkOS, so workers take only a share of them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from redis import Redis

from worker.env.redis_keys import redis_key

# KEYS: the buckets. ARGV: for each bucket, its tokens per second and its capacity. Takes a token from each, in advance
# if there is none, and returns the milliseconds until all of them are available. So callers go in the order in which
# they came. A bucket that does not exist (never used, or Redis was flushed) starts empty. So does one with numbers of
# somebody else, such as NaN or a debt of more calls than can wait: workers would sleep for ever.
TAKE = """
local clock = redis.call('TIME')
local now, wait = clock[1] * 1000 + clock[2] / 1000, 0
for i, key in ipairs(KEYS) do
  local rate, most = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local held = redis.call('HMGET', key, 'tokens', 'at')
  local tokens, at = tonumber(held[1]) or 0, tonumber(held[2]) or now
  if not (tokens > -1000 and at == at) then tokens, at = 0, now end
  tokens = math.min(most, tokens + math.max(0, now - at) * rate / 1000) - 1
  redis.call('HSET', key, 'tokens', tostring(tokens), 'at', tostring(now))
  redis.call('PEXPIRE', key, 60000)
  wait = math.max(wait, math.ceil(-tokens * 1000 / rate))
end
return wait
"""


class Limit(NamedTuple):
    """A documented limit of WorkOS: `calls` in `seconds`."""

    name: str
    calls: int
    seconds: int


ALL = Limit("all", 6_000, 60)
TAIL = Limit("tail", 600, 60)
"""Our own: a tenth of `ALL`, for the tail of the events API, which must not wait behind a resync."""
USER_READS = Limit("user_reads", 1_000, 10)
USER_WRITES = Limit("user_writes", 500, 10)
REVOKES = Limit("revokes", 50, 10)
"""Our own: a tenth of `USER_WRITES`, for ending sessions, so that a deleted workspace does not hold up other writes."""


class Buckets:
    """Takes tokens.

    Args:
        redis: holds the buckets.
        share: the part of WorkOS's documented limits to use, above 0 and up to 1.
        sleep: waits for a number of seconds.
        own: a limit of this client alone. Its calls count in the shared limits but wait only for this one.
    """

    def __init__(
        self, redis: Redis, share: float, sleep: Callable[[float], object] = time.sleep, own: Limit | None = None
    ) -> None:
        self._script = redis.register_script(TAKE)
        self._share = share
        self._sleep = sleep
        self._own = own

    def take(self, *limits: Limit) -> None:
        """Wait until a call is within each of `limits`; raise `redis.exceptions.RedisError` if Redis is unavailable."""
        wait = self._take(*limits)
        if self._own is not None:
            wait = self._take(self._own)
        if wait:
            self._sleep(wait / 1000)

    def _take(self, *limits: Limit) -> float:
        """Take a token of each limit; return the milliseconds until all of them are available."""
        keys = [redis_key(f"bucket:{limit.name}") for limit in limits]
        rates = [limit.calls / limit.seconds * self._share for limit in limits]
        # The capacity is a tenth of a second: a burst after a pause could exceed a window that other clients have used.
        return float(self._script(keys=keys, args=[n for rate in rates for n in (rate, max(1.0, rate / 10))]))
