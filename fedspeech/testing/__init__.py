"""What people who write an aggregation rule need for their tests; fedspeech alone is enough.

`check_rule(MyRule, k=3)`, called from a pytest of their own, holds what every rule promises. For
numbers of their own: a `DummyFederation`, its tables filled by hand, and its `peers` and `bases`.
"""

from fedspeech.testing.check import check_rule
from fedspeech.testing.federation import DummyFederation

__all__ = ["DummyFederation", "check_rule"]
