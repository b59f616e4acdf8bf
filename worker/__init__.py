"""The work: inbox, decision, application, sweep. Imports models, never webhooks."""

from worker.env import redis_keys

redis_keys.separate()
