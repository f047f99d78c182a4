"""Exact match and token F1 of answers."""
