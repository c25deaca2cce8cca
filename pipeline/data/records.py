"""One sample, as a row of a shard. Boxes are xyxy in pixels of the original image; classes are 1..K."""

from typing import NotRequired, TypedDict

import pyarrow as pa

FORMAT_VERSION = 2  # of shards; a reader refuses another one


class Record(TypedDict):
    """One image with its N annotations, validated."""

    sample_id: int  # unique in a data set (COCO's image id)
    file_name: str  # relative to the image root, for people
    height: int  # pixels of the decoded image, EXIF rotation NOT applied (as COCO's annotations assume)
    width: int
    boxes: list[list[float]]  # N x [x1, y1, x2, y2]
    classes: list[int]  # N, 1..K
    crowd: list[bool]  # N; kept for AP (ignore regions), unused by losses
    areas: list[float]  # N, pixels^2 of the source annotation (AP's size ranges use it)
    annotation_ids: list[int]  # N, of the source annotation
    rles: list[bytes]  # N COCO compressed RLE at [height, width]: exact, for AP and overlays
    crops: list[bytes]  # N bit-packed 112 x 112 mask inside its own box (np.packbits of a row-major array)
    # N x 3J: x, y, visibility (0 not labelled, 1 hidden, 2 seen) of each keypoint, as COCO's JSON has them (x and y
    # name a pixel, whose centre is half a pixel further); an empty list where the annotation has none.
    keypoints: list[list[float]]
    negative_classes: list[int]  # federated data (LVIS): classes that were looked for and are absent; else empty
    partial_classes: list[int]  # federated data (LVIS): classes whose instances are not all annotated; else empty
    # Of another system, P boxes [x1, y1, x2, y2] and falling scores; only in shards that have them.
    proposals: NotRequired[list[list[float]]]
    proposal_scores: NotRequired[list[float]]
    semantic: bytes  # PNG of label ids, uint8 [height, width]; empty where the data has none
    image: bytes  # the encoded file, untouched (JPEG, PNG, ...)


def empty_record(sample_id: int, file_name: str, height: int, width: int, image: bytes) -> Record:
    """A picture without annotations."""
    return {
        "sample_id": sample_id,
        "file_name": file_name,
        "height": height,
        "width": width,
        "boxes": [],
        "classes": [],
        "crowd": [],
        "areas": [],
        "annotation_ids": [],
        "rles": [],
        "crops": [],
        "keypoints": [],
        "negative_classes": [],
        "partial_classes": [],
        "semantic": b"",
        "image": image,
    }


# The picture is last: all that is small lies together in a row group, and is one read.
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4)), nullable=False),
        pa.field("classes", pa.list_(pa.int32()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("areas", pa.list_(pa.float64()), nullable=False),
        pa.field("annotation_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("rles", pa.list_(pa.binary()), nullable=False),
        pa.field("crops", pa.list_(pa.binary()), nullable=False),
        pa.field("keypoints", pa.list_(pa.list_(pa.float64())), nullable=False),
        pa.field("negative_classes", pa.list_(pa.int32()), nullable=False),
        pa.field("partial_classes", pa.list_(pa.int32()), nullable=False),
        pa.field("semantic", pa.large_binary(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
    ]
)

# Before the label pictures, among what is small. Only shards made with proposals have these columns.
_PROPOSALS = (
    pa.field("proposals", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
    pa.field("proposal_scores", pa.list_(pa.float32()), nullable=False),
)
PROPOSAL_COLUMNS = tuple(field.name for field in _PROPOSALS)
FULL_SCHEMA = pa.schema([*list(SCHEMA)[:-2], *_PROPOSALS, *list(SCHEMA)[-2:]])

# One small row a sample, in index.parquet: what the plan needs without opening a shard.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),  # which file: shard-00000.parquet
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # in its row group
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("instances", pa.int32(), nullable=False),  # not crowd: what training can use
        pa.field("crowd", pa.int32(), nullable=False),
        pa.field("keypoints", pa.int32(), nullable=False),  # labelled ones (visibility > 0) of those instances
        pa.field("classes", pa.list_(pa.int32()), nullable=False),  # of those instances, each once, ascending
        pa.field("bytes", pa.int64(), nullable=False),  # of the encoded image
        pa.field("offset", pa.int64(), nullable=False),  # of the encoded image's first byte in its shard's file
    ]
)
