"""Steering a generator. Knows: losses, trainers, the on-policy loop. Does not know: which objective is meant."""
