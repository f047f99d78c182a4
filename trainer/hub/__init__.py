"""Publish a complete repository."""
