"""What runs: worker lanes and their supervisor, the clock, the doorbell between them."""
