"""What runs: loss sampling, the two stages, one round, a cluster in one process."""
