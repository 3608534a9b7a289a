"""What can go wrong with an export."""


class ExportError(RuntimeError):
    """The exported model was not written, because its answers were not PyTorch's, or none."""


class TargetError(ValueError):
    """A mixture cannot be run as the target does; the message says which one and why."""
