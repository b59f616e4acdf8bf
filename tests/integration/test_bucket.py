"""Rate limits: one token bucket for all workers, in a real Valkey."""

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from redis import Redis

from tests.support.processes import Valkey
from tests.support.resync import client_of
from worker.sandbox import Sandbox
from worker.workos_api.bucket import ALL, USER_READS, Buckets, Limit
from worker.workos_api.client import WorkOSClient, open_client

FAST = Limit("fast", 1000, 10)
SLOW = Limit("slow", 200, 10)

pytestmark = pytest.mark.long


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url)


def tokens_per_second(redis: Redis, share: float, limits: tuple[Limit, ...], seconds: float, workers: int = 1) -> float:
    """Tokens per second that `workers` threads get together, measured over `seconds`."""
    ends = time.monotonic() + seconds
    counts = [0] * workers

    def work(place: int) -> None:
        buckets = Buckets(redis, share)
        while time.monotonic() < ends:
            buckets.take(*limits)
            counts[place] += 1

    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


@pytest.mark.alone
@pytest.mark.parametrize(("share", "workers"), [(0.5, 1), (0.5, 6), (1.0, 6)])
def test_all_workers_together_get_their_share_of_the_limit(redis: Redis, share: float, workers: int) -> None:
    rate = tokens_per_second(redis, share, (FAST,), 1.0, workers)
    assert rate <= 100 * share * 1.02 + workers
    assert rate >= 100 * share * 0.8


@pytest.mark.alone
def test_the_smallest_of_several_limits_applies(redis: Redis) -> None:
    assert 14 <= tokens_per_second(redis, 1.0, (FAST, SLOW), 1.0, 3) <= 24


class Waits:
    """A `sleep` that records how long it slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        time.sleep(seconds)


def test_a_new_or_flushed_bucket_starts_empty(redis: Redis) -> None:
    waits = Waits()
    buckets = Buckets(redis, 1.0, waits.sleep)
    for _ in range(2):
        buckets.take(FAST)
        assert waits.seconds and 0.005 <= waits.seconds[0] <= 0.011
        time.sleep(0.05)
        waits.seconds.clear()
        buckets.take(FAST)  # from the tokens that were added in the meantime
        assert waits.seconds == []
        redis.flushall()


def test_a_pause_saves_up_tokens_of_at_most_a_tenth_of_a_second(redis: Redis) -> None:
    buckets = Buckets(redis, 1.0)
    buckets.take(FAST)
    time.sleep(0.4)
    began = time.monotonic()
    for _ in range(20):
        buckets.take(FAST)
    assert time.monotonic() - began >= 0.08  # ten at once, ten more at their rate


def test_a_rate_below_one_per_second_still_gives_tokens(redis: Redis) -> None:
    waits = Waits()
    Buckets(redis, 0.1, waits.sleep).take(Limit("tiny", 40, 10))
    assert 2.4 <= waits.seconds[0] <= 2.51


@pytest.mark.alone
def test_a_limit_of_its_own_goes_before_the_shared_ones_and_counts_in_them(redis: Redis) -> None:
    shared, own = Waits(), Waits()
    crowd, first = Buckets(redis, 1.0, shared.sleep), Buckets(redis, 1.0, own.sleep, own=FAST)
    redis.hset("workos-sync:bucket:slow", mapping={"tokens": "-20", "at": str(time.time() * 1000)})
    for _ in range(10):
        first.take(SLOW)  # each sleeps up to 10 ms, in which 0.2 tokens are added
    assert max(own.seconds) <= 0.011
    crowd.take(SLOW)
    assert shared.seconds[0] >= 1.2  # 31 tokens at 20 a second, less what was added; 21 if its calls did not count


@pytest.mark.alone
def test_a_clock_that_goes_back_does_not_block_the_bucket(redis: Redis) -> None:
    far = time.time() * 1000 + 3_600_000
    redis.hset("workos-sync:bucket:fast", mapping={"tokens": "3", "at": str(far)})
    buckets = Buckets(redis, 1.0)
    began = time.monotonic()
    for _ in range(5):
        buckets.take(FAST)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("tokens", ["-1e12", "-inf", "nan", "x"])
@pytest.mark.parametrize("at", ["nan", "inf", "-inf", "0"])
def test_foreign_numbers_in_a_bucket_delay_nobody(redis: Redis, tokens: str, at: str) -> None:
    redis.hset("workos-sync:bucket:fast", mapping={"tokens": tokens, "at": at})
    waits = Waits()
    Buckets(redis, 1.0, waits.sleep).take(FAST)
    assert all(0 <= seconds <= 0.011 for seconds in waits.seconds)


class RecordingBuckets:
    """Real buckets that record the limits that were used."""

    def __init__(self, redis: Redis) -> None:
        self.names: list[str] = []
        self._inner = Buckets(redis, 1000.0)

    def take(self, *limits: Limit) -> None:
        self.names += [limit.name for limit in limits]
        self._inner.take(*limits)


def open_workos(sandbox: Sandbox, buckets: RecordingBuckets) -> WorkOSClient:
    return open_client(sandbox.api_key, "client_sandbox", sandbox.base_url, buckets)  # type: ignore[arg-type]


def test_each_attempt_takes_a_token_of_every_limit_that_applies(redis: Redis) -> None:
    with Sandbox() as sandbox:
        buckets = RecordingBuckets(redis)
        with closing(open_workos(sandbox, buckets)) as workos:
            sandbox.faults.fail("/organizations", status=429, times=2, retry_after=0)
            workos.list_page(("organizations",))
            assert buckets.names == [ALL.name] * 3
            buckets.names.clear()
            sandbox.faults.fail("/user_management/users", status=429, times=1, retry_after=0)
            workos.list_page(("user_management", "users"))
            assert buckets.names == [ALL.name, USER_READS.name] * 2
            assert workos.calls == sandbox.calls.total() == 5


@pytest.mark.alone
@pytest.mark.parametrize(("retry_after", "least", "most"), [(1, 1.0, 1.5), (0, 0.0, 0.2), (None, 0.25, 0.6)])
def test_retry_after_is_honoured(redis: Redis, retry_after: int | None, least: float, most: float) -> None:
    with Sandbox() as sandbox, closing(open_workos(sandbox, RecordingBuckets(redis))) as workos:
        workos.list_page(("authorization", "roles"), paged=False)
        sandbox.faults.fail("/organizations", status=429, times=1, retry_after=retry_after)
        began = time.monotonic()
        workos.list_page(("organizations",))
        assert least <= time.monotonic() - began <= most


@pytest.mark.alone
def test_the_documented_limits_are_not_exceeded(redis: Redis) -> None:
    with Sandbox() as sandbox:
        sandbox.knobs.rate_limits = True
        sandbox.knobs.user_reads_limit = (100, 1.0)
        workos = open_client(sandbox.api_key, "client_sandbox", sandbox.base_url, Buckets(redis, 1.0))
        with closing(workos):
            call: Callable[[], object] = lambda: workos.list_page(("user_management", "users"))  # noqa: E731
            threads = [threading.Thread(target=lambda: [call() for _ in range(30)]) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sandbox.calls.total() <= 189  # at most one in twenty was refused, and repeated


def test_a_flushed_valkey_only_delays_calls(valkey: Valkey) -> None:
    with Sandbox() as sandbox, valkey.client() as client, closing(client_of(sandbox, client)) as workos:
        for _ in range(3):
            workos.list_page(("authorization", "roles"), paged=False)
            valkey.flush()
    assert sandbox.calls.total() == 3
