"""The metrics, each a folder that `evaluate.load` takes and that is a Space of the Hub as it stands."""
