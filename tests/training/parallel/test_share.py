"""What each learner hears: everything once in an epoch, drawn alike for all."""

import numpy as np
import pytest
import torch
from learners import FEATURES, Letters, spoken, training

from fedspeech.training.course import Course
from fedspeech.training.parallel.share import Share


def share(utterances: int, learners: int, seed: int = 0, **changed) -> Share:
    return Share(training(**changed), FEATURES, Letters(), spoken(utterances), seed, learners)


@pytest.mark.parametrize(
    ("utterances", "learners", "batch"),
    [(24, 2, 3), (25, 2, 3), (13, 4, 3), (5, 2, 1), (7, 3, 1), (4, 4, 16), (100, 3, 5), (9, 1, 4)],
)
def test_every_utterance_is_heard_once_in_an_epoch(utterances, learners, batch):
    made = share(utterances, learners, batch_size=batch)
    for epoch in range(2):
        first = epoch * made.parts_per_epoch
        parts = [made.part(first + n) for n in range(made.parts_per_epoch)]
        assert sorted(i for part in parts for i in part.chosen) == list(range(utterances))
        assert all(1 <= len(part.chosen) <= batch + 1 for part in parts)
        assert max(len(part.chosen) for part in parts) == made.largest_batch[0]
        for together in (parts[i : i + learners] for i in range(0, len(parts), learners)):
            assert {part.joined for part in together} == {sum(len(p.chosen) for p in together)}
    assert made.parts == 2 * made.parts_per_epoch
    assert made.epoch_of(made.parts - 1) == 1


def test_epochs_differ_seeds_differ_and_the_same_seed_does_not():
    def epoch(made: Share, number: int) -> list[list[int]]:
        first = number * made.parts_per_epoch
        return [made.part(first + n).chosen for n in range(made.parts_per_epoch)]

    one, again, other = share(24, 2), share(24, 2), share(24, 2, seed=1)
    assert epoch(one, 1) == epoch(again, 1)  # without the epoch before
    assert epoch(one, 0) == epoch(again, 0)
    assert epoch(one, 0) != epoch(one, 1) and epoch(one, 0) != epoch(other, 0)


def test_parts_of_a_joined_batch_have_like_lengths():
    made = share(240, 4)
    lengths = [len(u.log_mel[1.0]) for u in spoken(240)]
    for first in range(0, made.parts_per_epoch, 4):
        longest = [max(lengths[i] for i in made.part(first + n).chosen) for n in range(4)]
        assert max(longest) - min(longest) <= 3


def test_one_learner_with_a_joined_batch_hears_what_four_hear():
    four, one = share(48, 4, batch_size=3), share(48, 1, batch_size=12)
    for number in range(one.parts):
        joined = [i for n in range(4) for i in four.part(4 * number + n).chosen]
        assert sorted(joined) == sorted(one.part(number).chosen)
        assert four.minibatch(four.part(4 * number + 3)).done == pytest.approx(number / one.parts)


def test_what_is_drawn_for_a_part_does_not_depend_on_who_learns_it():
    varied = {"augmentation": {"speeds": (), "noise": (5.0, 30.0)}, "clean": 0.0}
    heard = []
    for made in (share(12, 2, **varied), share(12, 2, **varied)):
        for number in (3, 1) if heard else (1, 3):
            with made.drawn(number).taken_up():
                heard.append(made.minibatch(made.part(number)).batch.features)
    torch.testing.assert_close(heard[0], heard[3], rtol=0, atol=0)
    torch.testing.assert_close(heard[1], heard[2], rtol=0, atol=0)


def test_the_rate_rises_to_the_scaled_one_and_decays_from_there():
    """0.01 to 0.04 in the first fifth, then by halves of a cosine to 0.001."""
    changed = {"learning_rate": 0.01, "final_learning_rate": 0.001, "warmup": 0.2}
    made = share(12, 2, scale=4.0, **changed)
    done = np.array([0.0, 0.1, 0.2, 0.6, 1.0])
    expected = [0.01, 0.025, 0.04, (0.04 + 0.001) / 2, 0.001]
    np.testing.assert_allclose([made.rate(x) for x in done], expected, rtol=1e-12)
    plain = Course(training(**changed), FEATURES, Letters(), spoken(12), (0, 0, "", ""))
    assert [share(12, 2, **changed).rate(x) for x in done] == [plain.rate(x) for x in done]
