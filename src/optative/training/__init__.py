"""One step engine for all that learns. Knows: units, steps, gradients, checkpoints. Does not know: losses, models."""
