"""Upload models to the Hub as complete repositories."""
