"""What there is in the microworld, how it looks, and what can be said about it."""
