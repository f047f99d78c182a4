"""`make study`."""
