"""Benchmarks, apart from the tests: they print ratios measured in one run, since machines are shared and noisy."""
