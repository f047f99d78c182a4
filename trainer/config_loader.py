"""YAML as every config file and option of VLKD reads it."""

import re

import yaml


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as text; this loader reads it as a number."""


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)
