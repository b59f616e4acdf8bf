"""The mirror: tables, versions, views and the read contract. Knows no HTTP, no Redis and no environment."""
