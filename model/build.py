"""From a ModelConfig to a network: the only place where configuration words become modules."""

from dataclasses import replace

from model.config import MaskHeadName, MaskSchemeName, ModelConfig, Neck
from model.heads.box import BoxHead
from model.heads.cascade import Cascade
from model.heads.keypoint import KeypointHead
from model.heads.mask import FCN, MLP, MaskHead
from model.heads.mask_scheme import Agnostic, Competing, Independent, MaskScheme
from model.heads.proposer import External
from model.heads.rpn import RPN
from model.mask_rcnn import Heads, MaskRCNN
from model.trunks.fpn import FPN
from model.trunks.single_level import C4, C5

TRUNKS: dict[Neck, type[FPN] | type[C4] | type[C5]] = {"fpn": FPN, "c4": C4, "c5": C5}
MASK_SCHEMES: dict[MaskSchemeName, type[MaskScheme]] = {
    "independent": Independent,
    "competing": Competing,
    "agnostic": Agnostic,
}
MASK_HEADS: dict[MaskHeadName, type[FCN] | type[MLP]] = {"fcn": FCN, "mlp": MLP}


def build_model(config: ModelConfig) -> MaskRCNN:
    """A network with the recipe's random initialisation (seed torch first for a reproducible one).

    Raises:
        ValueError: the configuration does not say how many classes or keypoints there are.
    """
    if config.classes is None:
        raise ValueError("model.classes is null; set it to the number of object classes, background not counted")
    trunk = TRUNKS[config.trunk.neck](config.trunk, config.roi)
    mask = None
    if config.mask is not None:
        scheme = MASK_SCHEMES[config.mask.scheme]()
        layers = MASK_HEADS[config.mask.head](
            trunk.crop_channels, trunk.crop_side(config.mask.roi_size), scheme.channels(config.classes), config.mask
        )
        mask = MaskHead(layers, config.mask, scheme)
    proposer: RPN | External = External()
    if config.rpn is not None:
        proposer = RPN(trunk.channels, len(config.trunk.levels), config.rpn)
    box = cascade = None
    if config.box is not None:
        side = trunk.crop_side(config.box.roi_size)
        box = BoxHead(trunk.crop_channels, side, config.classes, config.box)
        if config.box.cascade is not None:
            stages = []
            for factor in config.box.cascade.weight_factors:
                x, y, w, h = (factor * weight for weight in config.box.weights)
                stage = replace(config.box, weights=(x, y, w, h))
                stages.append(BoxHead(trunk.crop_channels, side, config.classes, stage))
            cascade = Cascade(stages, config.box.cascade.foreground_ious)
    keypoint = None
    if config.keypoint is not None:
        if config.keypoint.count is None:
            raise ValueError("model.keypoint.count is null; set it to the number of keypoints of an object")
        keypoint = KeypointHead(trunk.crop_channels, config.keypoint.count, config.keypoint)
    return MaskRCNN(config.input, trunk, proposer, config.roi, Heads(box, cascade, mask, keypoint), config.loss_weights)
