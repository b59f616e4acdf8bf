"""What webhooks missed, or a fix makes worth another look: catch-up, resync, confirmed reads, replay, under leases."""
