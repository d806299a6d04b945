"""Random changes of the laboratory's network under connections of every kind: ``python -m tests.chaos --help``."""
