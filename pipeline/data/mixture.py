"""The data sets of a run as one: their indexes joined, their manifests compared and added up."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.configure import ConfigError
from pipeline.data.shards import Manifest, load_index, load_manifest


def locations(train: str | tuple[str, ...]) -> tuple[str, ...]:
    """The directories of shards that data.train names."""
    return (train,) if isinstance(train, str) else train


def load_mixture(train: str | tuple[str, ...]) -> pa.Table:
    """The rows of all indexes, in their order, with the column `dataset`: int32, which of the locations, from 0.

    Sample ids are unique only within a data set. Raises DataError.
    """
    parts = []
    for number, location in enumerate(locations(train)):
        index = load_index(location)
        parts.append(index.append_column(_DATASET, pa.array(np.full(index.num_rows, number, np.int32))))
    return pa.concat_tables(parts).combine_chunks()


_DATASET = pa.field("dataset", pa.int32(), nullable=False)


def join_manifests(train: str | tuple[str, ...]) -> Manifest:
    """What all data sets hold together: that of the first with the counts of all and a fingerprint of all.

    Raises:
        ConfigError: they have different classes.
        DataError: one of them cannot be read.
    """
    places = locations(train)
    manifests = [load_manifest(place) for place in places]
    first = manifests[0]
    for place, other in zip(places[1:], manifests[1:], strict=True):
        if other.class_names != first.class_names:
            raise ConfigError(
                f"the data sets of data.train have different classes: "
                f"{class_difference(first.class_names, other.class_names, (places[0], place))}; "
                "shard all from annotation files with the same categories"
            )
    if len(manifests) == 1:
        return first
    quarantined: Counter[str] = Counter()
    for manifest in manifests:
        quarantined.update(manifest.quarantined)
    return replace(
        first,
        counts={key: sum(manifest.counts[key] for manifest in manifests) for key in first.counts},
        quarantined=dict(sorted(quarantined.items(), key=lambda item: (-item[1], item[0]))),
        shards=tuple(shard for manifest in manifests for shard in manifest.shards),
        fingerprint=hashlib.sha256("".join(manifest.fingerprint for manifest in manifests).encode()).hexdigest(),
    )


def class_difference(a: Sequence[str], b: Sequence[str], where: tuple[str, str]) -> str:
    """Names that only one of two lists of classes has."""
    only = [f"{name} ({where[0]} only)" for name in a if name not in b]
    only += [f"{name} ({where[1]} only)" for name in b if name not in a]
    return ", ".join(only[:6]) or "the same names in another order"
