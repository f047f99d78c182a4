"""The metrics, in a form that `evaluate` can load: `evaluate.load("trainer/evaluation/metrics/text_qa.py")`.

Each can be published as a Space: see README.md.
"""
