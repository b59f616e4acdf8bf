"""A sandbox WorkOS: a real HTTP server with the API, webhooks and knobs for all that goes wrong."""

from .delivery import Deliveries, Endpoint, Record
from .faults import Faults
from .knobs import Knobs
from .scenario import play, populate
from .server import Sandbox
from .world import World, WorldError

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
