"""Load datasets and build training batches."""
