"""What speaks Flower, found by its entry point: nothing in `fedspeech` imports it."""

import importlib.metadata

GROUP = "fedspeech.apps"


def find(name: str) -> importlib.metadata.EntryPoint:
    """The entry point of `server`, `client`, `cohort` (what fine-tunes one), `box` or `deployment`
    (what starts a run on boxes).
    """
    (found,) = importlib.metadata.entry_points(group=GROUP, name=name)
    return found
