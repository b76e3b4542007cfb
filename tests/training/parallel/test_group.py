"""What is wrong between learners is told, and nothing spreads."""

import numpy as np
import pytest
from learners import training


def test_who_is_missing_is_named(together):
    """Learner 1 of three never comes."""
    told = together({"method": "ring", "learners": 3}, ranks=[0, 2], seconds=2.0)
    for each in told:
        assert each.error == (
            "RunError: the process group did not form in 2 s: of the learners 0, 1, 2 there is "
            "no 1 (parallel.form_seconds)"
        )


def test_another_corpus_is_named_with_both_fingerprints(together):
    told = together(
        {"method": "allreduce", "learners": 3}, fingerprint=lambda rank: "b" if rank == 2 else "a"
    )
    for each in told:
        assert each.error == (
            "RunError: learner 2 has another corpus or other settings than learner 0: "
            "fingerprint b there, a here"
        )
        assert each.numbers == []


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "allreduce", "learners": 2},
        {"method": "ring", "learners": 2},
        {"method": "ad-psgd", "learners": 2},
        {"method": "bmuf", "learners": 2, "block": 1},
        {"method": "parameter-server", "learners": 1},
    ],
)
def test_no_number_is_stopped_where_it_is(together, settings):
    """The learner is named, and no other one has it."""
    spoiled = settings["learners"] - 1
    told = together(settings, spoiled=spoiled, training=training(epochs=1))
    assert told[spoiled].error.startswith(
        f"DivergedError: learner {spoiled}: training diverged in epoch 1, part"
    )
    for rank, each in enumerate(told):
        if rank != spoiled:
            assert np.isfinite(each.models[-1]).all()
            assert each.error.startswith("Lost: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "allreduce", "learners": 3},
        {"method": "ring", "learners": 3},
        {"method": "ad-psgd", "learners": 3},
        {"method": "ad-psgd", "learners": 2},
        {"method": "hierarchical", "learners": 4, "node_size": 2},
        {"method": "bmuf", "learners": 3},
        {"method": "parameter-server", "learners": 2},
    ],
    ids=lambda settings: f"{settings['method']}-{settings['learners']}",
)
def test_who_is_left_alone_comes_back(together, settings):
    """The last one (the server, where there is one) is gone in the middle; nobody waits for it."""
    told = together(settings, leaves=2, utterances=48, training=training(epochs=60))
    for each in told:
        assert each.error.startswith("Lost: ")
        assert np.isfinite(each.models[-1]).all()
