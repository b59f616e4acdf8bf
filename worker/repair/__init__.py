"""What webhooks missed: catch-up, resync and confirmed reads, as runs under leases."""
