"""Losses as pure functions, one value per unit; only `reduction` takes means."""
