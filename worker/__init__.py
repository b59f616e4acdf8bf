"""The work: inbox, decision, application, sweep. Imports models, never webhooks."""
