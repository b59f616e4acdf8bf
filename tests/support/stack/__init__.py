"""A whole installation as real processes: what the demo, the drill, the benchmarks and the tests start."""
