"""How often each sample appears: a rate a sample, in visits an epoch, kept exactly over epochs.

A sample with rate r appears floor((e + 1) r + u) - floor(e r + u) times in epoch e, with u drawn once for it: exactly
once an epoch where r = 1, and within one of E r over any E epochs in a row. Rates are multiples of 2^-20, so that all
of it is exact arithmetic on integers.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.quarantine import DataError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

BITS = 20  # rates are multiples of 2^-BITS
HIGHEST_RATE = 2.0**16  # with it and 2^26 epochs, epoch x rate fits 63 bits
_KEPT = 64  # cumulative lengths remembered


class Rates:
    """The number of visits of every sample in every epoch, and how the epochs follow each other.

    Args:
        rates: float64 [N], >= 0; None: 1 for each of `samples`.
        samples: N.
        seed: of the fractions u.

    Raises:
        DataError: no sample would ever appear, or a rate is out of range.
    """

    def __init__(self, rates: Float64 | None, samples: int, seed: int) -> None:
        values = np.ones(samples) if rates is None else np.asarray(rates, dtype=np.float64)
        if values.shape != (samples,) or not ((values >= 0) & (values <= HIGHEST_RATE)).all():
            raise DataError(
                f"rates must be {samples} numbers from 0 to {HIGHEST_RATE:g}; a higher one means a sample that is "
                "repeated thousands of times an epoch: lower data.repeat_threshold or its data set's data.mix_weights"
            )
        self._rate: Int64 = np.rint(values * 2**BITS).astype(np.int64)
        if not self._rate.any():
            raise DataError("every sample has the rate 0, so none would ever train; raise data.mix_weights")
        self._offset: Int64 = np.random.default_rng((seed, 4)).integers(0, 2**BITS, samples, dtype=np.int64)
        self._once = bool((self._rate == 2**BITS).all())
        self._sum = int(self._rate.sum())
        self._before: dict[int, int] = {}  # the newest lengths, by epoch

    def visits_before(self, epoch: int) -> Int64:
        """[N], how often each sample appeared in the epochs before `epoch`."""
        return (epoch * self._rate + self._offset) >> BITS  # the offset alone is less than a whole

    def length_before(self, epoch: int) -> int:
        """Positions before the first of `epoch`."""
        if self._once:
            return epoch * len(self._rate)
        if epoch not in self._before:
            if len(self._before) == _KEPT:
                del self._before[next(iter(self._before))]
            self._before[epoch] = int(self.visits_before(epoch).sum())
        return self._before[epoch]

    def epoch_of(self, position: int) -> int:
        """The epoch that holds a position of the endless sequence; O(N log N) at any distance from the start."""
        if self._once:
            return position // len(self._rate)
        # The length before epoch e differs from e x the mean length by less than N. Find the last e with a length
        # before it of at most `position`.
        scaled, slack = position << BITS, len(self._rate) << BITS
        low, high = max(0, (scaled - slack) // self._sum), (scaled + slack) // self._sum + 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.length_before(middle) <= position else (low, middle)
        return low


def repeat_factors(classes: pa.ChunkedArray, threshold: float) -> Float64:
    """The image factors of repeat-factor sampling (Gupta et al. 2019, LVIS, 4.1 and appendix): float64 [N], >= 1.

    r(c) = max(1, sqrt(threshold / f(c))) with f(c) the share of images that hold class c; an image takes the highest of
    its classes, 1 without any.

    Args:
        classes: list<int32> [N], of each image, each once.
        threshold: the share of images below which a class is repeated.
    """
    lists = classes.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    of_image = np.repeat(np.arange(len(lists)), lengths)
    present, class_ = np.unique(lists.flatten().to_numpy(), return_inverse=True)
    share = np.bincount(class_, minlength=len(present)) / max(len(lists), 1)
    factors = np.ones(len(lists))
    np.maximum.at(factors, of_image, np.sqrt(threshold / share)[class_])
    return factors


def mixed_rates(factors: Float64, datasets: Int64, weights: Sequence[float]) -> Float64:
    """Scale `factors` so that data set d gives weights[d] of all samples, and an epoch stays as long as it was.

    Args:
        factors: float64 [N], how often each sample appears without weights.
        datasets: int [N], which data set each comes from, from 0.
        weights: of each data set, >= 0; their sum need not be 1.

    Raises:
        DataError: a data set with a weight has no sample.
    """
    sums = np.bincount(datasets, weights=factors, minlength=len(weights))
    empty = [number for number, weight in enumerate(weights) if weight > 0 and sums[number] == 0]
    if empty:
        raise DataError(
            f"data set {empty[0] + 1} of data.train has no image to train on, but data.mix_weights gives it "
            f"{weights[empty[0]]:g}; set that weight to 0, or data.drop_empty=false"
        )
    wanted = np.asarray(weights, dtype=np.float64) / math.fsum(weights) * factors.sum()
    scale = np.divide(wanted, sums, out=np.zeros_like(sums), where=sums > 0)
    return factors * scale[datasets]  # type: ignore[no-any-return]
