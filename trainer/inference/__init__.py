"""Run a model that is trained: exports, image search, and a web page."""
