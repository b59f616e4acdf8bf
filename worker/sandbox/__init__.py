"""A sandbox WorkOS: a real HTTP server with the API, webhooks and knobs for all that goes wrong."""

from worker.sandbox.delivery import Deliveries, Endpoint, Record
from worker.sandbox.faults import Faults
from worker.sandbox.knobs import Knobs
from worker.sandbox.scenario import play, populate
from worker.sandbox.server import Sandbox
from worker.sandbox.world import World, WorldError

__all__ = [
    "Deliveries",
    "Endpoint",
    "Faults",
    "Knobs",
    "Record",
    "Sandbox",
    "World",
    "WorldError",
    "play",
    "populate",
]
