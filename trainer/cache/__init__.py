"""The feature cache: CLIP's outputs, computed once and stored on disk."""
