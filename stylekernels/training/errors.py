"""Errors of training."""


class SettingError(ValueError):
    """A setting, or what it names, cannot be trained with; the message begins with its name."""


class DivergedError(RuntimeError):
    """The losses are no longer finite."""
