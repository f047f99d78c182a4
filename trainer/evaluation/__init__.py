"""Evaluate models: generate the texts of a task and compute its metrics."""
