"""One sample, as a row of a shard. Boxes are xyxy in pixels of the original image; classes are 1..K."""

from typing import TypedDict

import pyarrow as pa

FORMAT_VERSION = 1  # of shards; a reader refuses another one


class Record(TypedDict):
    """One image with its N annotations, validated."""

    sample_id: int  # unique in a data set (COCO's image id)
    file_name: str  # relative to the image root, for people
    height: int  # pixels of the decoded image, EXIF rotation NOT applied (as COCO's annotations assume)
    width: int
    image: bytes  # the encoded file, untouched (JPEG or PNG)
    boxes: list[list[float]]  # N x [x1, y1, x2, y2]
    classes: list[int]  # N, 1..K
    crowd: list[bool]  # N; kept for AP (ignore regions), unused by losses
    areas: list[float]  # N, pixels^2 of the source annotation (AP's size ranges use it)
    annotation_ids: list[int]  # N, of the source annotation
    rles: list[bytes]  # N COCO compressed RLE at [height, width]: exact, for AP and overlays
    crops: list[bytes]  # N bit-packed 112 x 112 mask inside its own box (np.packbits of a row-major array)


SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4)), nullable=False),
        pa.field("classes", pa.list_(pa.int32()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("areas", pa.list_(pa.float64()), nullable=False),
        pa.field("annotation_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("rles", pa.list_(pa.binary()), nullable=False),
        pa.field("crops", pa.list_(pa.binary()), nullable=False),
    ]
)

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
        pa.field("bytes", pa.int64(), nullable=False),  # of the encoded image
    ]
)
