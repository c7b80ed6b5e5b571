"""A run: one walk of the loop. Knows: specs, wiring, stages, exports. Does not know: the mathematics."""
