"""Make the two teachers."""
