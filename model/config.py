"""Frozen dataclasses that describe a Mask R-CNN. Defaults are the modern COCO recipe (detectron2's R50-FPN 1x).

Every convention on which two public implementations differ is a value here, so that weights of either can be used
exactly: see model/weights/torchvision_builders.py for torchvision's sets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

BodyName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152_32x8d",
    "mobilenet_v3_large",
    "convnext_tiny",
]
Channels = Literal["rgb", "bgr"]
AnchorOrder = Literal["size_major", "ratio_major"]
Neck = Literal["fpn", "c4", "c5"]
Norm = Literal["frozen_bn", "bn", "sync_bn", "gn"]
HeadNorm = Literal["bn", "sync_bn", "gn"]
StrideIn = Literal["1x1", "3x3"]
Paste = Literal["exact", "integer"]
MaskTarget = Literal["crop", "image"]
MaskSchemeName = Literal["independent", "competing", "agnostic"]
RoIOperation = Literal["align", "align_max", "warp", "warp_max", "pool"]
BoxLoss = Literal["smooth_l1", "giou"]
MaskHeadName = Literal["fcn", "mlp"]
NMS = Literal["hard", "soft_linear", "soft_gaussian"]
Normaliser = Literal["budget", "sampled"]
NewRows = Literal["normal", "initial"]


class Limit(NamedTuple):
    """The range of a number, or of each number of a tuple; None is always allowed where the type has it."""

    low: float
    high: float | None = None
    above: bool = False  # `low` itself is refused

    def problems(self, name: str, value: object) -> Iterator[str]:
        """A line for each number out of range."""
        for number in value if isinstance(value, tuple) else (value,):
            enough = number > self.low if self.above else number >= self.low
            if not enough or (self.high is not None and number > self.high):
                wanted = f"above {self.low}" if self.above else f"at least {self.low}"
                yield f"{name} must be {wanted}{'' if self.high is None else f' and at most {self.high}'}, got {number}"


COUNT = Limit(1)
NOT_NEGATIVE = Limit(0)
POSITIVE = Limit(0, above=True)
SHARE = Limit(0, 1)


class Section:
    """Base of every config section: unknown keys are refused, booleans are no numbers (pydantic reads it)."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True}
    LIMITS: ClassVar[dict[str, Limit]] = {}

    def __post_init__(self) -> None:
        """Raise one ValueError with a line a problem; each line starts with the field's name."""
        values = ((name, limit, getattr(self, name)) for name, limit in self.LIMITS.items())
        lines = [line for name, limit, value in values if value is not None for line in limit.problems(name, value)]
        lines += self.conflicts()
        if lines:
            raise ValueError("\n".join(lines))

    def conflicts(self) -> Iterator[str]:
        """Lines on values that do not go together; sections that have such values say which."""
        return iter(())


@dataclass(frozen=True)
class InputConfig(Section):
    """How uint8 RGB pixels become the network's input: (pixel - mean) / std, zero padded to a multiple of `divisor`."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "std": POSITIVE,
        "divisor": COUNT,
    }

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB (whatever `channels` is), 0..255 (ImageNet)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)  # RGB, 0..255
    channels: Channels = "rgb"  # what the first convolution sees; weights from Caffe2 and detectron2 expect "bgr"
    divisor: int = 32  # pixels; the deepest FPN stride


@dataclass(frozen=True)
class TrunkConfig(Section):
    """A body (ResNet, ResNeXt, ...) and what is read of it: a pyramid, or its fourth or fifth stage."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "width": COUNT,
        "norm_eps": NOT_NEGATIVE,
        "freeze_stages": Limit(0, 5),
        "fpn_channels": COUNT,
    }

    body: BodyName = "resnet50"
    width: int = 64  # channels of a ResNet's stem; all other layers of the body are multiples of it
    neck: Neck = "fpn"  # fpn: P2..P6; c4: stride 16, res5 is the heads' first part; c5: stride 32
    norm: Norm = "frozen_bn"
    norm_eps: float = 1e-5
    stride_in: StrideIn = "3x3"  # which convolution of a bottleneck has the stride: torchvision "3x3", MSRA "1x1"
    freeze_stages: int = 2  # 0 nothing, 1 the stem, 2 stem + layer1 (res2), ... 5 everything
    non_local: bool = False  # a non-local block in the fourth stage (res4), before its last block
    fpn_channels: int = 256
    fpn_norm: HeadNorm | None = None  # after each convolution of the pyramid; null: a bias instead

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels that anchors lie on; level l has a stride of 2^l pixels."""
        return {"fpn": (2, 3, 4, 5, 6), "c4": (4,), "c5": (5,)}[self.neck]

    def conflicts(self) -> Iterator[str]:
        """What only a residual network has."""
        residual = self.body.startswith("res")
        if self.non_local and not residual:
            yield f"non_local must be false with body {self.body}, got true; ResNets and ResNeXts have a place for it"
        if self.width != 64 and not residual:
            yield f"width must be 64 with body {self.body}, got {self.width}; ResNets and ResNeXts can have another"
        if self.width % 32:  # groups of a ResNeXt and of group norm
            yield f"width must be a multiple of 32, got {self.width}"


@dataclass(frozen=True)
class AnchorConfig(Section):
    """Scales (FPN: one a level P2..P6; one level: all of them on it) and aspect ratios (height / width)."""

    LIMITS: ClassVar[dict[str, Limit]] = {"sizes_px": POSITIVE, "ratios": POSITIVE}

    sizes_px: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    order: AnchorOrder = "size_major"  # of several sizes on one level: the outer loop of a cell's anchors (C4, C5)
    rounded: bool = False  # torchvision rounds the corners to whole pixels
    stride_from_grid: bool = False  # torchvision: stride = padded image size // grid size (P6 may be off); else 2^level

    def conflicts(self) -> Iterator[str]:
        """At least one of each."""
        for name, values in (("sizes_px", self.sizes_px), ("ratios", self.ratios)):
            if not values:
                yield f"{name} must hold at least one number, got none; see configs/base.yaml for the usual ones"


@dataclass(frozen=True)
class RPNConfig(Section):
    """Region proposal network (Ren et al. 2015) with FPN's shared head."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "foreground_iou": SHARE,
        "background_iou": SHARE,
        "positive_fraction": SHARE,
        "nms_iou": SHARE,
        "convs": COUNT,
        "batch_per_image": COUNT,
        "pre_nms_train": COUNT,
        "pre_nms_test": COUNT,
        "post_nms_train": COUNT,
        "post_nms_test": COUNT,
        "min_size_px": NOT_NEGATIVE,
        "box_beta": NOT_NEGATIVE,
    }

    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    convs: int = 1  # 3x3 convolutions before the two outputs (torchvision v2, LSJ: 2)
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    batch_per_image: int = 256  # sampled anchors an image
    positive_fraction: float = 0.5
    pre_nms_train: int = 2000  # a level
    pre_nms_test: int = 1000  # a level
    post_nms_train: int = 1000  # an image
    post_nms_test: int = 1000  # an image
    nms_iou: float = 0.7
    min_size_px: float = 0.0  # smaller proposals are dropped (torchvision: 1e-3)
    box_beta: float = 0.0  # smooth-L1 beta; 0 is L1 (torchvision: 1/9)
    normaliser: Normaliser = "budget"  # losses over batch_per_image x images, or over what was sampled (torchvision)

    def conflicts(self) -> Iterator[str]:
        """An anchor is foreground or background, not both."""
        if self.background_iou > self.foreground_iou:
            yield f"background_iou must be at most foreground_iou ({self.foreground_iou}), got {self.background_iou}"


@dataclass(frozen=True)
class RoIConfig(Section):
    """Sampling of RoIs for the heads, and what is read for each (Mask R-CNN 3)."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "foreground_iou": SHARE,
        "positive_fraction": SHARE,
        "batch_per_image": COUNT,
        "sampling_ratio": NOT_NEGATIVE,
        "canonical_size_px": POSITIVE,
        "canonical_level": Limit(2, 5),
    }

    foreground_iou: float = 0.5
    batch_per_image: int = 512
    positive_fraction: float = 0.25
    operation: RoIOperation = "align"  # Mask R-CNN table 2c; see model/ops/roi.py
    sampling_ratio: int = 0  # bilinear samples a bin and axis; 0 adapts to the RoI's size; the paper's 4 samples are 2
    aligned: bool = True  # False shifts features by half a pixel (torchvision v1, Caffe2)
    canonical_size_px: float = 224.0  # FPN eq. 1
    canonical_level: int = 4  # FPN eq. 1

    def conflicts(self) -> Iterator[str]:
        """Only RoIAlign's mean exists with an adaptive number of samples."""
        if self.sampling_ratio == 0 and self.operation not in ("align", "pool"):
            yield f"sampling_ratio must be at least 1 for operation {self.operation}, got 0; the paper's value is 2"


@dataclass(frozen=True)
class CascadeConfig(Section):
    """Stages after the first, each of which refines the boxes of the one before it (Cai & Vasconcelos 2018)."""

    LIMITS: ClassVar[dict[str, Limit]] = {"foreground_ious": SHARE, "weight_factors": POSITIVE}

    foreground_ious: tuple[float, ...] = (0.6, 0.7)  # of each stage; the first stage's is roi.foreground_iou
    weight_factors: tuple[float, ...] = (2.0, 3.0)  # box.weights are multiplied by these, a stage

    def conflicts(self) -> Iterator[str]:
        """As many of the one as of the other."""
        if len(self.foreground_ious) != len(self.weight_factors):
            yield (
                f"weight_factors must hold {len(self.foreground_ious)} numbers, one a number of foreground_ious, "
                f"got {len(self.weight_factors)}"
            )
        if not self.foreground_ious:
            yield "foreground_ious must hold at least one number, got none; write box.cascade: null for one stage"


@dataclass(frozen=True)
class BoxConfig(Section):
    """Box head: crops -> convolutions -> average or not -> fully connected layers -> class scores and box deltas."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "roi_size": COUNT,
        "convs": NOT_NEGATIVE,
        "conv_channels": COUNT,
        "hidden": COUNT,
        "layers": NOT_NEGATIVE,
        "detections_per_image": COUNT,
        "weights": POSITIVE,
        "box_beta": NOT_NEGATIVE,
        "focal_gamma": NOT_NEGATIVE,
        "min_size_px": NOT_NEGATIVE,
        "score_threshold": SHARE,
        "nms_iou": SHARE,
        "soft_sigma": POSITIVE,
    }

    roi_size: int = 7
    convs: int = 0  # 3x3, before the fully connected layers (Wu & He 2018: 4)
    conv_channels: int = 256
    norm: HeadNorm | None = None  # after each of those convolutions; null: a bias instead
    average: bool = False  # over the cells of a crop, before the fully connected layers (C4)
    layers: int = 2
    hidden: int = 1024
    class_agnostic: bool = False  # one box a RoI instead of one a class
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh
    box_loss: BoxLoss = "smooth_l1"
    box_beta: float = 0.0  # smooth-L1 beta; 0 is L1 (torchvision: 1/9)
    focal_gamma: float = 0.0  # of the class loss (Lin et al. 2017, without alpha); 0 is cross-entropy
    cascade: CascadeConfig | None = None
    score_threshold: float = 0.05
    nms: NMS = "hard"  # or scores of overlapping boxes decay (Bodla et al. 2017)
    nms_iou: float = 0.5  # hard, soft_linear
    soft_sigma: float = 0.5  # soft_gaussian
    min_size_px: float = 0.0  # smaller detections are dropped (torchvision: 1e-2)
    detections_per_image: int = 100

    def conflicts(self) -> Iterator[str]:
        """A stage hands one box a RoI to the next."""
        if self.cascade is not None and not self.class_agnostic:
            yield "class_agnostic must be true with box.cascade, got false; a stage refines one box a RoI, of any class"


@dataclass(frozen=True)
class MaskConfig(Section):
    """Mask head: a small fully convolutional network on every crop, or an MLP (Mask R-CNN figure 4, table 2e)."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "roi_size": COUNT,
        "channels": COUNT,
        "convs": NOT_NEGATIVE,
        "deconvs": NOT_NEGATIVE,
        "hidden": COUNT,
        "layers": COUNT,
        "mlp_size": COUNT,
        "pixel_channels": COUNT,
        "threshold": SHARE,
    }

    head: MaskHeadName = "fcn"
    scheme: MaskSchemeName = "independent"  # per-class sigmoid (Mask R-CNN table 2b)
    roi_size: int = 14
    channels: int = 256  # fcn
    convs: int = 4  # fcn
    norm: HeadNorm | None = None  # fcn: after each convolution; null: a bias instead
    deconvs: int = 1  # fcn: each doubles the mask's side
    pixel_channels: int | None = None  # fcn: of a convolution on the RoI's own pixels; null: features alone
    hidden: int = 1024  # mlp
    layers: int = 1  # mlp: hidden ones
    mlp_size: int = 28  # mlp: the mask's side
    target: MaskTarget = (
        "crop"  # from 112 x 112 crops, binarised; "image": soft, from full-resolution masks (torchvision)
    )
    paste: Paste = "exact"  # sub-pixel boxes; "integer": torchvision's rounded boxes with one pixel of padding
    threshold: float = 0.5

    def conflicts(self) -> Iterator[str]:
        """An MLP has no place for pixels."""
        if self.head == "mlp" and self.pixel_channels is not None:
            yield f"pixel_channels must be null with head mlp, got {self.pixel_channels}; head fcn reads pixels"


@dataclass(frozen=True)
class KeypointConfig(Section):
    """Keypoint head: convolutions, a deconvolution, bilinear upsampling; a softmax over the cells (Mask R-CNN 5)."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "count": COUNT,
        "roi_size": COUNT,
        "channels": COUNT,
        "convs": NOT_NEGATIVE,
    }

    count: int | None = None  # keypoints an object; null: as many as the data has (COCO's persons: 17)
    roi_size: int = 14  # heatmaps come out at four times this
    channels: int = 512
    convs: int = 8


@dataclass(frozen=True)
class LossWeightsConfig(Section):
    """What each loss is multiplied by before they are added up; logged losses are weighted ones."""

    LIMITS: ClassVar[dict[str, Limit]] = dict.fromkeys(
        ("objectness", "rpn_box", "box_class", "box_box", "mask", "keypoint"), NOT_NEGATIVE
    )

    objectness: float = 1.0
    rpn_box: float = 1.0
    box_class: float = 1.0
    box_box: float = 1.0
    mask: float = 1.0
    keypoint: float = 1.0


@dataclass(frozen=True)
class ModelConfig(Section):
    """A whole model. `mask: null` is Faster R-CNN, `box: null` on top of that is the RPN alone.

    `rpn: null` is Fast R-CNN: proposals come with the data.
    """

    LIMITS: ClassVar[dict[str, Limit]] = {"classes": COUNT}

    classes: int | None = None  # object classes K without background; null: as many as the data has
    input: InputConfig = field(default_factory=InputConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    rpn: RPNConfig | None = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box: BoxConfig | None = field(default_factory=BoxConfig)
    mask: MaskConfig | None = field(default_factory=MaskConfig)
    keypoint: KeypointConfig | None = None
    loss_weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)

    def conflicts(self) -> Iterator[str]:
        """Anchors fit the levels; what is said of detected boxes needs boxes."""
        if self.box is None:
            for name, section in (("mask", self.mask), ("keypoint", self.keypoint)):
                if section is not None:
                    yield f"{name} must be null with box: null, got a section; it is read from the boxes that box finds"
            if self.rpn is None:
                yield "box must be a section with rpn: null, got null; without both nothing is left to learn"
        if self.rpn is None:
            return
        levels, sizes = self.trunk.levels, self.rpn.anchors.sizes_px
        if len(levels) > 1 and len(sizes) != len(levels):
            yield (
                f"rpn.anchors.sizes_px must hold {len(levels)} sizes, one a level P{levels[0]}..P{levels[-1]} of "
                f"trunk.neck={self.trunk.neck}, got {len(sizes)}"
            )
