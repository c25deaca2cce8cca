"""From a ModelConfig to a network: the only place where configuration words become modules."""

from model.config import MaskSchemeName, ModelConfig
from model.heads.box import BoxHead
from model.heads.mask import MaskHead
from model.heads.mask_scheme import Independent, MaskScheme
from model.heads.rpn import RPN
from model.mask_rcnn import MaskRCNN
from model.trunks.fpn import FPN

MASK_SCHEMES: dict[MaskSchemeName, type[MaskScheme]] = {"independent": Independent}


def build_model(config: ModelConfig) -> MaskRCNN:
    """A network with the recipe's random initialisation (seed torch first for a reproducible one).

    Raises:
        ValueError: the configuration does not say how many classes there are.
    """
    if config.classes is None:
        raise ValueError("model.classes is null; set it to the number of object classes, background not counted")
    trunk = FPN(config.trunk, config.roi)
    mask = None
    if config.mask is not None:
        mask = MaskHead(trunk.channels, config.classes, config.mask, MASK_SCHEMES[config.mask.scheme]())
    return MaskRCNN(
        config.input,
        trunk,
        RPN(trunk.channels, config.rpn),
        config.roi,
        BoxHead(trunk.channels, config.classes, config.box),
        mask,
    )
