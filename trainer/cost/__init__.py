"""Estimate the cost of a training run."""
