"""/metrics counts for all processes, whichever one answers, and survives a Redis failure."""

import json
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tests.support import made, sign
from tests.support.deliveries import deliver
from tests.support.processes import Commands, Valkey, eventually
from worker.metrics import ACCEPTED_TO_APPLIED, Counters, Name, counted, noted

pytestmark = pytest.mark.long

NUMBER = 200


@pytest.fixture
def db_url(make_database: Callable[[str], str]) -> str:
    return make_database("postgresql")


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in families
            for sample in family.samples
        }


def test_every_process_reports_the_counts_of_all(db_url: str, valkey: Valkey, commands: Commands) -> None:
    commands.settings |= {"DATABASE_URL": db_url, "REDIS_URL": valkey.url, "WEB_PROCESSES": 3}
    commands.start("worker")
    web, port = commands.web()
    bodies = [json.dumps(made("user.created", id=f"user_{n}")).encode() for n in range(NUMBER)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda body: deliver(port, body), bodies)) == {200}
        assert set(pool.map(lambda body: deliver(port, body), bodies[:20])) == {200}
        assert set(pool.map(lambda body: deliver(port, body, signature=sign(body, "another")), bodies[:30])) == {401}
    accepted = "workos_sync_webhooks_received_total[('outcome', 'accepted'), ('type', 'user.created')]"
    applied = "workos_sync_accepted_to_applied_seconds_count[]"
    eventually(lambda: (found := scrape(port))[accepted] == NUMBER and found[applied] == NUMBER, 20)
    for _ in range(12):  # each of the three processes answers some of them
        found = scrape(port)
        assert found[accepted] == found[applied] == NUMBER
        assert found["workos_sync_webhooks_received_total[('outcome', 'duplicate'), ('type', 'user.created')]"] == 20
        assert found["workos_sync_webhooks_refused_total[('reason', 'mismatch')]"] == 30
        assert found["workos_sync_webhook_secret_used_timestamp_seconds[('place', '1')]"] > 0
        assert 0 < found["workos_sync_accepted_to_applied_seconds_sum[]"] < NUMBER * 30
    web.stop()


@pytest.fixture
def counters(valkey: Valkey) -> Counters:
    return Counters(Redis.from_url(valkey.url, socket_timeout=0.2))


def test_counts_made_while_redis_is_down_are_stored_later(valkey: Valkey, counters: Counters) -> None:
    counters.add("received", "accepted", "user.created")
    counters.hand_over()
    valkey.kill()
    counters.add("received", "accepted", "user.created", number=2)
    counters.note_time("refused", "time")
    counters.hand_over()
    counters.add("received", "accepted", "user.created")
    valkey.start()
    counters.close()
    with valkey.client() as redis:
        assert counted(redis) == {Name("received", ("accepted", "user.created")): 4.0}
        assert list(noted(redis)) == [Name("refused", ("time",))]


def test_close_waits_until_the_counts_are_stored(valkey: Valkey) -> None:
    counters = Counters(Redis.from_url(valkey.url))
    valkey.freeze()
    counters.add("received", "accepted", "user.created")
    eventually(lambda: not counters._counts, 20)  # the thread has taken them and waits for Valkey
    threading.Timer(0.3, valkey.thaw).start()
    counters.close()
    assert counters._thread and not counters._thread.is_alive()
    with valkey.client() as redis:
        assert counted(redis) == {Name("received", ("accepted", "user.created")): 1.0}


def test_a_duration_falls_into_its_bucket(valkey: Valkey, counters: Counters) -> None:
    counters.observe(ACCEPTED_TO_APPLIED, [0.004, 0.005, 0.2, 9999.0])
    counters.close()
    with valkey.client() as redis:
        found = {key.labels: number for key, number in counted(redis).items() if key.name.endswith("_bucket")}
    assert found == {("0.005",): 2.0, ("0.25",): 1.0, ("+Inf",): 1.0}
