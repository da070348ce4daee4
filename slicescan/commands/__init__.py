"""Commands that are too long for ``cli.py``: each module adds one to the parser and runs it."""
