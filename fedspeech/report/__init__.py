"""The report of a run, made from its folder alone: tables in the terminal and one HTML page."""

from fedspeech.report.page import write
from fedspeech.report.terminal import show

__all__ = ["show", "write"]
