"""The order of training as a function: which sample is at a position, and everything random about it.

A position counts the samples of a run, from 0. What is there follows from (sources, batch, seed, stage) in
closed form: no list is shuffled, no state is kept, and neither the number of processes nor an interruption
can change it. Shuffles are keyed permutations, mixtures are random merges whose n-th element can be computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

ROUNDS = 4
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def digest(text: str, words: int = 1) -> tuple[int, ...]:
    """``words`` integers of 64 bits that follow from a text, at most 8."""
    data = hashlib.blake2b(text.encode(), digest_size=8 * words).digest()
    return tuple(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))


@lru_cache(maxsize=4096)
def round_keys(key: str) -> tuple[int, ...]:
    return digest(key, 2 * ROUNDS)


def mix(x: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def shuffled(i: int, n: int, key: str) -> int:
    """Image of ``i`` under a permutation of range(n) chosen by ``key``; constant memory and time.

    A Feistel network on a rectangle of just over n cells; the few images beyond n are sent through again.

    Raises:
        ValueError: ``i`` is not in range(n).
    """
    if not 0 <= i < n:
        raise ValueError(f"{i} is not in range({n}), so it has no place in a permutation of it.")
    keys = round_keys(key)
    height = math.isqrt(n - 1) + 1
    width = -(-n // height)
    while True:
        left, right = divmod(i, width)
        for k in range(0, 2 * ROUNDS, 2):
            left = (left + mix(keys[k] + right * GOLDEN)) % height
            right = (right + mix(keys[k + 1] + left * GOLDEN)) % width
        i = left * width + right
        if i < n:
            return i


@lru_cache(maxsize=64)  # all samples of a step ask for the step's bucket
def merged(i: int, counts: tuple[int, ...], key: str) -> tuple[int, int]:
    """The i-th element of a random merge of sequences of these lengths, each of which stays in order.

    Element k of a sequence of c is at a random time in [k/c, (k+1)/c), so that every stretch of the merge
    holds each sequence in its share. Which elements can be i-th follows from that; only those are looked at.

    Returns:
        which sequence, and which of its elements.
    """
    total, number = sum(counts), len(counts)
    if not 0 <= i < total:
        raise ValueError(f"{i} is not in range({total}), so it has no place in a merge of that length.")
    if number == 1:
        return 0, i
    (salt,) = round_keys(key)[:1]
    before, candidates = 0, []
    for which, count in enumerate(counts):
        low = max(0, count * (i + 1 - number) // total - 1)
        high = min(count - 1, count * (i + number) // total)
        before += min(low, count)
        stream = mix(salt + which)
        for k in range(low, high + 1):
            time = (k + (mix(stream + k * GOLDEN) >> 11) * 2.0**-53) / count
            candidates.append((time, which, k))
    candidates.sort()
    return candidates[i - before][1:]


def label(seed: int, stage: str, position: int, purpose: str) -> str:
    return f"{seed}\0{position}\0{purpose}\0{stage}"


def uniform(seed: int, stage: str, position: int, purpose: str) -> float:
    """A number in [0, 1), uniform over the positions of a stage."""
    return (digest(label(seed, stage, position, purpose))[0] >> 11) * 2.0**-53


def generator(seed: int, stage: str, position: int, purpose: str) -> torch.Generator:
    """A generator on the CPU for whatever needs more than one number at a position."""
    return torch.Generator().manual_seed(digest(label(seed, stage, position, purpose))[0] >> 1)


@dataclass(frozen=True)
class Source:
    """A data set as the order sees it.

    Attributes:
        name: no two sources have the same.
        sizes: samples per bucket, one number for every bucket of the run.
        weight: times each sample is seen per epoch.
    """

    name: str
    sizes: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Place:
    """The ``index``-th sample of a bucket of the ``source``-th source."""

    source: int
    bucket: int
    index: int


def held_out_counts(sizes: Sequence[int], held_out: int) -> list[int]:
    """Share ``held_out`` samples among cells in proportion to their sizes, leaving one in each."""
    room = [max(size - 1, 0) for size in sizes]
    if not 0 <= held_out <= sum(room):
        raise ValueError(
            f"validation.held_out is {held_out}, but the data sets have {sum(sizes)} samples and at least "
            f"one of every bucket must be left for training; give a number from 0 to {sum(room)}."
        )
    total = sum(sizes)
    counts = [held_out * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda cell: (-(held_out * sizes[cell] % total), cell))
    while sum(counts) < held_out:
        for cell in by_remainder:
            if counts[cell] < room[cell] and sum(counts) < held_out:
                counts[cell] += 1
    return counts


class Order:
    """Which sample is at which position of a stage.

    The samples of a bucket are a stream without end. It is cut into rounds: in one, source d is visited
    weight_d times its trained samples, rounded, at least once; the visits of all sources are merged at
    random. A source's visits run through keyed permutations of its samples, one after another, so each of
    its samples in the bucket is visited once before any is visited twice. An epoch takes as many steps from
    a bucket as one round needs, rounded up; steps of different buckets are merged at random. Nothing is
    dropped at the end of an epoch: the streams run on.

    Args:
        sources: the data sets, all with the same number of buckets.
        batch: samples per optimizer step, all of one bucket.
        seed: of the run.
        stage: name of the stage; other stages have other orders.
        held_out: samples that training never sees. Which ones follows from the seed and the names of the
            sources, not from the stage, so that the next stage can keep away from them too.

    Attributes:
        steps_per_epoch: optimizer steps of an epoch.

    Raises:
        ValueError: no sources, an empty one, two of one name, another number of buckets, a weight that is
            not positive, batch < 1, or more held out than there is.
    """

    def __init__(
        self, sources: Sequence[Source], batch: int, seed: int, stage: str, held_out: int = 0
    ) -> None:
        check_sources(sources, batch)
        self.sources, self.batch, self.seed, self.stage = tuple(sources), batch, seed, stage
        self.buckets = len(sources[0].sizes)
        held = held_out_counts([size for source in sources for size in source.sizes], held_out)
        self.held = [held[d * self.buckets :][: self.buckets] for d in range(len(sources))]  # by source
        self.trained = [
            [size - out for size, out in zip(source.sizes, row, strict=True)]
            for source, row in zip(sources, self.held, strict=True)
        ]
        self.visits = [  # by bucket, then by source
            tuple(visits(source.weight, row[b]) for source, row in zip(sources, self.trained, strict=True))
            for b in range(self.buckets)
        ]
        self.rounds = [sum(row) for row in self.visits]
        self.steps = tuple(-(-size // batch) for size in self.rounds)
        self.steps_per_epoch = sum(self.steps)

    def bucket(self, step: int) -> int:
        """The bucket of all samples of an optimizer step."""
        return self._bucket_step(step)[0]

    def _bucket_step(self, step: int) -> tuple[int, int]:
        """Bucket of a step, and how many steps of that bucket came before it."""
        epoch, within = divmod(step, self.steps_per_epoch)
        bucket, before = merged(within, self.steps, f"{self.seed}/{self.stage}/steps/{epoch}")
        return bucket, epoch * self.steps[bucket] + before

    def place(self, position: int) -> Place:
        """The sample at a position, 0 or more."""
        if position < 0:
            raise ValueError(f"Position {position} is before the start of the run; count from 0.")
        step, within = divmod(position, self.batch)
        bucket, before = self._bucket_step(step)
        number, offset = divmod(before * self.batch + within, self.rounds[bucket])
        counts = self.visits[bucket]
        source, visit = merged(offset, counts, f"{self.seed}/{self.stage}/mixture/{bucket}/{number}")
        return self._visited(source, bucket, number * counts[source] + visit)

    def _visited(self, source: int, bucket: int, visit: int) -> Place:
        """The sample at the ``visit``-th visit of a source's bucket."""
        trained = self.trained[source][bucket]
        turn, within = divmod(visit, trained)
        name = self.sources[source].name
        chosen = shuffled(within, trained, f"{self.seed}/{self.stage}/samples/{bucket}/{turn}/{name}")
        return self._split(source, bucket, self.held[source][bucket] + chosen)

    def _split(self, source: int, bucket: int, i: int) -> Place:
        """Of a source's bucket in a fixed random order, those held out come first."""
        held, size = self.held[source][bucket], self.sources[source].sizes[bucket]
        if not held:
            return Place(source, bucket, i)
        return Place(
            source, bucket, shuffled(i, size, f"{self.seed}/held out/{bucket}/{self.sources[source].name}")
        )

    def held_out(self) -> list[Place]:
        """The samples that no position has, source by source."""
        return [
            self._split(source, bucket, i)
            for source, row in enumerate(self.held)
            for bucket, held in enumerate(row)
            for i in range(held)
        ]

    def samples_per_epoch(self) -> list[float]:
        """How many samples an epoch takes from each source, on average over epochs."""
        return [
            sum(
                self.steps[b] * self.batch * self.visits[b][d] / self.rounds[b]
                for b in range(self.buckets)
                if self.rounds[b]
            )
            for d in range(len(self.sources))
        ]


def visits(weight: float, trained: int) -> int:
    """Visits per epoch of a source's bucket: weight x samples rounded, and at least one if it has samples."""
    return max(1, math.floor(weight * trained + 0.5)) if trained else 0


def check_sources(sources: Sequence[Source], batch: int) -> None:
    """Raise ValueError unless an order can be made of these."""
    if batch < 1:
        raise ValueError(f"The batch is {batch}; a step needs at least 1 sample.")
    if not sources:
        raise ValueError("There is no data set to train on; name at least one.")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise ValueError(f"Two data sets are called {source.name}; rename one of them.")
        if len(source.sizes) != len(sources[0].sizes):
            raise ValueError(
                f"The data set {source.name} has {len(source.sizes)} buckets and {sources[0].name} has "
                f"{len(sources[0].sizes)}; all need the same."
            )
        if min(source.sizes, default=0) < 0 or not sum(source.sizes):
            raise ValueError(f"The data set {source.name} has no samples; see what `exclude` leaves of it.")
        if not (0 < source.weight < math.inf):
            raise ValueError(f"The data set {source.name} has weight {source.weight}; give a number above 0.")
