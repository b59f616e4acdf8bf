"""From an event's bytes to the state that wins. Pure: no clock, no database, no settings."""
