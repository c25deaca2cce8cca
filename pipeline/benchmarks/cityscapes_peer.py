"""Cityscapes' own evaluation (the package cityscapesscripts) on files: what ours is compared with."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError


def official_ap(instance_ids: Sequence[Path], submission: Path) -> dict[str, Any]:
    """Its instance-level numbers: "allAp", "allAp50%", "classes" -> name -> "ap", "ap50%", and "matrix" [K, T].

    Args:
        instance_ids: *_gtFine_instanceIds.png of the pictures.
        submission: the directory with a text file a picture.
    """
    script = _script("evalInstanceLevelSemanticLabeling")
    args = copy.copy(script.args)
    args.quiet, args.predictionPath, args.predictionWalk = True, str(submission.absolute()), None
    truth = [str(path) for path in instance_ids]
    with _numpy_as_it_expects():
        script.setInstanceLabels(args)
        found = [script.getPrediction(path, args) for path in truth]
        matches = script.matchGtWithPreds(found, truth, script.instances2dict(truth, False), args)
        aps = script.evaluateMatches(matches, args)
        return dict(script.computeAverages(aps, args)) | {"matrix": aps[0]}


def official_iou(label_ids: Sequence[Path], predictions: Sequence[Path]) -> dict[str, Any]:
    """Its pixel-level numbers, as its JSON file has them; beside each *_labelIds.png lies its *_instanceIds.png."""
    script = _script("evalPixelLevelSemanticLabeling")
    args = copy.copy(script.args)
    args.quiet, args.JSONOutput = True, False
    with _numpy_as_it_expects():
        return dict(script.evaluateImgLists([str(p) for p in predictions], [str(p) for p in label_ids], args))


def _script(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"cityscapesscripts.evaluation.{name}")
    except ImportError as error:
        raise UserError(
            f"comparing with Cityscapes' own evaluation needs the package cityscapesscripts ({error}); "
            "install it: pip install cityscapesscripts"
        ) from error


@contextmanager
def _numpy_as_it_expects() -> Iterator[None]:
    """Version 2.2 calls np.in1d, which NumPy 2.4 no longer has."""
    if hasattr(np, "in1d"):
        yield
        return
    vars(np)["in1d"] = lambda a, b: np.isin(a, b).ravel()
    try:
        yield
    finally:
        del vars(np)["in1d"]
