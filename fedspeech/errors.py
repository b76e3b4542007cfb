"""Errors that are a user's to mend: one clear message, no traceback.

The command line prints them and exits with status 2; everything else that is raised is a defect.
"""


class FedSpeechError(Exception):
    """Anything that fedspeech tells its user in one message."""


class ConfigError(FedSpeechError):
    """A setting is unknown, missing or out of range."""


class CorpusError(FedSpeechError):
    """Speech or a manifest cannot be used as it is."""


class ModelError(FedSpeechError):
    """A model file or a set of tensors is not what was expected."""


class LacksError(ModelError):
    """A device does not hold a model that it was to go on from; its server may bring it."""


class RuleError(FedSpeechError):
    """An aggregation rule was not found, or answered something that is not allowed."""


class RunError(FedSpeechError):
    """A run cannot start, go on or be resumed."""


class DivergedError(RunError):
    """A loss or a gradient is no number any more: this training comes to nothing."""


class DiskError(RunError):
    """A file cannot be written: no space left, no permission."""


class DiffError(FedSpeechError):
    """A diff cannot be made within its budget, is damaged, or is for another model."""


class BudgetError(DiffError):
    """Nothing fits the budget of one device: its own failure, and not that of the run.

    The text has numbers only: unlike other errors on a device it is told to the server.
    """


class SignatureError(FedSpeechError):
    """A release or a key is not signed by whom this device trusts, or is older than what it has."""
