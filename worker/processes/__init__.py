"""What runs: lanes of work and their supervisor, the clock, the embedded Valkey."""
