"""Peer correctness: rows that are wrong, lost or resurrected after late and repeated events and ten kills.

A kill ends all processes of the server that answers webhooks with SIGKILL; the same command starts it again at once.
Workers are not killed, so that a peer whose workers need help after a kill is at no disadvantage.
"""

from collections.abc import Callable, Iterator

from tests.benchmarks.peers.running import SYSTEMS, available
from tests.benchmarks.peers.sender import send_all
from tests.benchmarks.peers.story import Story, compare, make_story
from tests.benchmarks.runner import Mark, Row, Sample
from tests.benchmarks.servers import Bench

WRONG, LOST, RESURRECTED = "rows wrong", "rows lost", "rows resurrected"
AGAIN, RATE = "sent again", "deliveries/s"
"""Attempts without a 200, each of which is repeated; the rate includes the restarts."""
MARKS = [Mark(WRONG, most=0), Mark(LOST, most=0), Mark(RESURRECTED, most=0), Mark(AGAIN), Mark(RATE)]
SEED = 20


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each number of connections. In each round each system starts with an empty database."""
    found = available(bench)
    events, kills = bench.size((12_000, 10), (300, 2))
    story = make_story(events, SEED)
    after = f"{story.after_the_delete()} objects have an older version after their delete"
    for connections in bench.size((16, 64), (4,)):
        contenders = {name: _player(bench, name, story, connections, kills) for name in found.names}
        load = f"{connections} connections: {len(story.deliveries):,} deliveries, {kills} kills; {after}"
        yield Row(f"peer-correctness, {load}{found.note}", contenders, MARKS, most_rounds=2)


def _player(bench: Bench, name: str, story: Story, connections: int, kills: int) -> Callable[[], Sample]:
    def play() -> Sample:
        with SYSTEMS[name](bench) as system:
            sent = send_all(system, story.deliveries, connections, kills)
            assert (sent.acknowledged, sent.kills) == (len(story.deliveries), kills)
            system.wait_until_applied()
            verdict = compare(story.truth, system.found())
        return {
            WRONG: verdict.wrong,
            LOST: verdict.lost,
            RESURRECTED: verdict.resurrected,
            AGAIN: sent.refused.total(),
            RATE: sent.acknowledged / sent.seconds,
        }

    return play
