"""Predictions and figures: what a trained model says, and how often it is right."""
