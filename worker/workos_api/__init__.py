"""WorkOS's API: the only code that calls it, within its rate limits."""
