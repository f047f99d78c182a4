"""From the name of a dataset to a training batch."""
