"""The sandbox without its server: environments, the faults injected into them, and random operations on them."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from worker.sandbox import scenario
from worker.sandbox.api import Environment
from worker.sandbox.delivery import Deliveries, Endpoint
from worker.sandbox.faults import Faults
from worker.sandbox.gate import Gate, Hook
from worker.sandbox.knobs import Knobs
from worker.sandbox.world import World

JSON = dict[str, Any]

API_KEY = "sk_test_sandbox"
KEY_PREFIX = "sk_test_"
"""Keys of production environments do not start with this."""


class Service:
    """The environments behind the API. `clock` is their time (aware).

    Signatures carry `time.time()`, which receivers check.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str = API_KEY,
        clock: Callable[[], datetime] | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        self.seed = seed
        self.api_key = api_key
        self.knobs = knobs or Knobs()
        self.faults = Faults()
        self.world = World(seed, clock, self.knobs)
        self.deliveries = Deliveries(self.world, self.knobs, seed)
        self.gate = Gate(self.knobs, self.faults, self.world.now)
        self.gate.environments[_checked(api_key)] = Environment(self.world, self.deliveries)
        self.serving = False
        self._clock = clock
        self._stop_playing = threading.Event()
        self._player: threading.Thread | None = None

    @property
    def calls(self) -> "Counter[tuple[str, str]]":
        """The number of calls of each (method, route), such as ("GET", "/organizations/{id}")."""
        return self.gate.calls

    @property
    def on_request(self) -> Hook | None:
        """Called as (method, path, query) before each answer, in a thread; may block or change the world."""
        return self.gate.on_request

    @on_request.setter
    def on_request(self, hook: Hook | None) -> None:
        self.gate.on_request = hook

    def add_environment(self, api_key: str, world: World | None = None) -> Environment:
        """Add an environment for another API key, empty unless `world` is given. Call this before `start`."""
        if self.serving:
            raise RuntimeError("add environments before the sandbox starts")
        made = world or World(self.seed + len(self.gate.environments), self._clock, self.knobs)
        self.gate.environments[_checked(api_key)] = Environment(made, Deliveries(made, self.knobs, self.seed))
        return self.gate.environments[api_key]

    def add_endpoint(self, url: str, secret: str | None = None, events: list[str] | None = None) -> Endpoint:
        """Send webhooks to `url`; see Deliveries.add_endpoint."""
        return self.deliveries.add_endpoint(url, secret, events)

    def play(self, events: int, *, companies: int = 12, seed: int | None = None, rate: float | None = None) -> int:
        """Perform random operations until about `events` events were emitted; return the number of events."""
        chosen = self.seed if seed is None else seed
        return scenario.play(self.world, events, companies=companies, seed=chosen, rate=rate, stop=self._stop_playing)

    def start_playing(self, events: int, **options: Any) -> None:
        """Play in the background; raise ValueError if the sandbox is already playing."""
        if self.playing:
            raise ValueError("already playing")
        self._stop_playing.clear()
        self._player = threading.Thread(target=self.play, args=(events,), kwargs=options, name="player", daemon=True)
        self._player.start()

    def stop_playing(self) -> None:
        """Stop playing after the current operation."""
        self._stop_playing.set()
        if self._player is not None:
            self._player.join()
        self._stop_playing.clear()

    @property
    def playing(self) -> bool:
        """Whether random operations are running in the background."""
        return self._player is not None and self._player.is_alive()

    def progress(self) -> JSON:
        """Return the counters of webhooks, whether the sandbox is playing, and the numbers of events and API calls."""
        return {
            **self.deliveries.progress(),
            "playing": self.playing,
            "events": len(self.world.events),
            "calls": self.gate.total(),
        }


def _checked(api_key: str) -> str:
    if not api_key.startswith(KEY_PREFIX):
        raise ValueError(f"a key of the sandbox begins with {KEY_PREFIX}, so that no real key is used here by mistake")
    return api_key
