import numpy as np
import torch
from pycocotools import mask as coco_mask

from model.types import Detections
from pipeline.data.records import Record
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.evaluation.instances import from_record, from_results
from pipeline.evaluation.shown_detections import from_detections


def test_from_detections_and_from_their_results() -> None:
    boxes = torch.tensor([[2.0, 3.0, 8.0, 9.0], [0.0, 0.0, 4.0, 4.0]])
    scores, classes = torch.tensor([0.9, 0.3]), torch.tensor([2, 1])
    found = Detections(boxes, scores, classes, torch.ones(2, 28, 28), (20, 30))
    results = detections_to_results(found, 5, [7, 9])
    for shown in (from_detections(found), from_results(results, [7, 9])):
        assert shown.boxes.tolist() == [[2.0, 3.0, 8.0, 9.0]]
        assert shown.classes.tolist() == [2]
        assert shown.scores is not None and np.allclose(shown.scores, 0.9)
        assert shown.masks is not None
        ((y0, x0, crop),) = shown.masks
        assert (y0, x0, crop.shape) == (3, 2, (6, 6))


def test_boxes_without_masks_and_no_objects() -> None:
    found = Detections(torch.ones(1, 4), torch.ones(1), torch.ones(1, dtype=torch.int64), None, (20, 30))
    assert from_detections(found).masks is None
    assert from_results(detections_to_results(found, 5, [7]), [7]).masks is None
    assert from_results([], [7]).boxes.shape == (0, 4)
    assert from_detections(found, min_score=1.1).boxes.shape == (0, 4)


def test_from_a_record() -> None:
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[4:7, 5:11] = 1
    record = Record(
        **dict.fromkeys(("sample_id", "file_name", "image", "areas", "annotation_ids", "crops")),  # type: ignore[typeddict-item]
        **{"height": 20, "width": 30, "boxes": [[5.0, 4.0, 11.0, 7.0]], "classes": [3], "crowd": [True]},  # type: ignore[typeddict-item]
        rles=[coco_mask.encode(mask)["counts"]],
        keypoints=[[6, 5, 2, 0, 0, 0]],
    )
    truth = from_record(record)
    assert truth.masks is not None
    assert truth.crowd is not None and truth.crowd.tolist() == [True]
    ((y0, x0, crop),) = truth.masks
    assert (y0, x0, crop.shape, int(crop.sum())) == (4, 5, (3, 6), 18)
    assert truth.keypoints is not None and truth.keypoints[0].tolist() == [[6, 5, 2], [0, 0, 0]]
    record.update({"boxes": [], "classes": [], "crowd": [], "rles": [], "keypoints": []})
    assert from_record(record).boxes.shape == (0, 4)
