"""The WorkOS API. Only this package calls it, within the rate limits."""
