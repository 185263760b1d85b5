"""From command lines and YAML to a checked configuration, and what a run of it comes to."""
