"""Counting deaths: of a batch, and of workers that never came to one."""

from pipeline.evaluation.attempts import Attempts


def test_only_the_batch_in_hand_is_blamed_for_a_death() -> None:
    attempts = Attempts(workers=2, retries=2)
    for _ in range(3):  # a worker does the first batch, again and again, and dies of the second
        assert attempts.begin((1, 2)) is None
        attempts.end((1, 2))
        assert attempts.begin((3,)) is None
    attempts.begin((1, 2))
    attempts.end((1, 2))
    told = attempts.begin((3,))
    assert told is not None and told.startswith("every worker that had sample 3 in hand died (3 of them)")
    assert attempts.begin((4, 5)) == told == attempts.verdict()  # nobody goes on


def test_a_batch_that_is_done_after_all_is_no_reason_to_stop() -> None:
    attempts = Attempts(workers=1, retries=2)
    for batch in ((1,), (2,), (3,)):
        for _ in range(3):
            assert attempts.begin(batch) is None
        attempts.end(batch)
    assert attempts.verdict() is None


def test_workers_that_die_before_the_first_image_stop_too() -> None:
    attempts = Attempts(workers=2, retries=1)
    assert [attempts.start() for _ in range(4)] == [None] * 4
    told = attempts.start()
    assert told is not None and told.startswith("workers died 4 times before they looked at an image; the system may")
    later = Attempts(workers=1, retries=0)
    for number in range(9):  # each has come to an image
        assert later.start() is None and later.begin((number,)) is None
        later.end((number,))


def test_a_long_batch_is_named_by_its_first_samples() -> None:
    attempts = Attempts(workers=1, retries=0)
    batch = tuple(range(100, 120))
    attempts.begin(batch)
    told = attempts.begin(batch)
    assert told is not None and "one of the samples 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, ... in" in told
