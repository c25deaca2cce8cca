"""Images that workers had in hand when they died: given to another, but not for ever.

Ray starts a killed worker again, perhaps on another node, and gives it what was not finished: each image still comes
out once. It would do so without end, so where one batch kills every worker that looks at it (the memory is too small
for it, or a library crashes on it), or where workers die before they look at any, somebody has to count who does not
die with them.
"""

from collections import Counter
from typing import Any

import ray

from pipeline.errors import UserError

_NAMES = 10  # of samples that an error shows
_FIX = (
    "the system may have killed them for memory (see dmesg and Ray's logs): lower evaluate.batch_images, or give each "
    "more memory with fewer cluster.workers"
)

Batch = tuple[int, ...]  # sample ids


class LostError(UserError):
    """Workers died again and again of the same."""


class Attempts:
    """Keeps count in a Ray actor of its own. A worker that dies has begun a batch and not ended it."""

    def __init__(self, workers: int, retries: int) -> None:
        """`retries`: how many workers may take over a batch, or start where others died, one after the other."""
        self._retries = retries
        self._starts_left = self._most_starts = workers * (retries + 1)
        self._in_hand: set[Batch] = set()
        self._deaths: Counter[Batch] = Counter()
        self._verdict: str | None = None

    def start(self) -> str | None:
        """A worker is about to load the model. What to tell the user where it must not."""
        if self._starts_left == 0:
            self._verdict = f"workers died {self._most_starts} times before they looked at an image; {_FIX}"
        self._starts_left -= 1
        return self._verdict

    def begin(self, batch: Batch) -> str | None:
        """A worker takes this batch. What to tell the user where it must not."""
        self._starts_left = self._most_starts
        self._deaths[batch] += batch in self._in_hand
        self._in_hand.add(batch)
        deaths = self._deaths[batch]
        if deaths > self._retries:
            names = ", ".join(map(str, batch[:_NAMES])) + (", ..." if len(batch) > _NAMES else "")
            samples = "sample" if len(batch) == 1 else "one of the samples"
            self._verdict = (
                f"every worker that had {samples} {names} in hand died ({deaths} of them), so not all images can be "
                f"evaluated; {_FIX}"
            )
        return self._verdict

    def end(self, batch: Batch) -> None:
        """It is done."""
        self._in_hand.discard(batch)

    def verdict(self) -> str | None:
        """What to tell the user where workers died too often."""
        return self._verdict


def start_counting(workers: int, retries: int) -> Any:
    """A handle of a new actor that counts. It ends when nobody holds the handle."""
    return ray.remote(num_cpus=0)(Attempts).remote(workers, retries)
