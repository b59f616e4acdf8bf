"""One token bucket for all workers, in Redis: what this project may take of WorkOS's rate limits.

The product's own sign-ins draw on the same limits, so a resync must leave most of them alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis

# KEYS: the buckets. ARGV: of each its tokens a second, and the most it holds. Takes a token of each, at once or in
# advance, and answers the milliseconds until all of them are there: so those who wait go in the order they came.
# A bucket that is not there (never used, or Redis was flushed) starts empty.
TAKE = """
local clock = redis.call('TIME')
local now, wait = clock[1] * 1000 + clock[2] / 1000, 0
for i, key in ipairs(KEYS) do
  local rate, most = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local held = redis.call('HMGET', key, 'tokens', 'at')
  local tokens, at = tonumber(held[1]) or 0, tonumber(held[2]) or now
  tokens = math.min(most, tokens + math.max(0, now - at) * rate / 1000) - 1
  redis.call('HSET', key, 'tokens', tostring(tokens), 'at', tostring(now))
  redis.call('PEXPIRE', key, 60000)
  wait = math.max(wait, math.ceil(-tokens * 1000 / rate))
end
return wait
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """A documented limit of WorkOS: so many calls in so many seconds."""

    name: str
    calls: int
    seconds: int


ALL = Limit("all", 6_000, 60)
USER_READS = Limit("user_reads", 1_000, 10)
USER_WRITES = Limit("user_writes", 500, 10)


class Buckets:
    """Takes tokens of WorkOS's documented limits, at a share of them.

    Args:
        redis: where all workers' buckets are.
        share: of the documented limits, above 0 to 1.
        sleep: waits a number of seconds.
    """

    def __init__(self, redis: Redis, share: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._take = redis.register_script(TAKE)
        self._share = share
        self._sleep = sleep

    def take(self, *limits: Limit) -> None:
        """Wait until a call is within each of `limits`; raises `redis.exceptions.RedisError` if Redis is away."""
        keys = [f"workos-sync:bucket:{limit.name}" for limit in limits]
        rates = [limit.calls / limit.seconds * self._share for limit in limits]
        # Holds a tenth of a second at most: a burst after a pause must not meet a window that others filled.
        if wait := self._take(keys=keys, args=[n for rate in rates for n in (rate, max(1.0, rate / 10))]):
            self._sleep(float(wait) / 1000)
