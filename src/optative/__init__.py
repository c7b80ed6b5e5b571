"""Optative: state what is wanted, ask for feedback, steer a model, and check it against the truth."""

__version__ = "0.1.0"
