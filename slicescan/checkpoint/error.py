"""The one error of this package's files."""


class CheckpointError(ValueError):
    """A file of weights cannot be used; one line names the file and the cause."""
