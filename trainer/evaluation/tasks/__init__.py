"""The tasks of `vlkd evaluate`: one YAML file each, and the class that describes them."""
