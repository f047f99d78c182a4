"""transformers' own common tests on our classes."""
