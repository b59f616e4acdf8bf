"""An offline WorkOS: a real HTTP server with WorkOS's API, webhooks, and knobs for everything that may go wrong."""

try:
    from worker.sandbox.delivery import Deliveries, Endpoint, Record
    from worker.sandbox.faults import Faults
    from worker.sandbox.knobs import Knobs
    from worker.sandbox.scenario import play, populate
    from worker.sandbox.server import Sandbox
    from worker.sandbox.world import World, WorldError
except ModuleNotFoundError:
    raise ImportError("the sandbox needs its extra: run pip install 'workos-sync[sandbox]'") from None

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
