import numpy as np
import torch
from pycocotools import mask as coco_mask

from model.types import Detections
from pipeline.data.records import Record
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.evaluation.instances import cut_out, from_annotations, from_record, from_results
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


def test_from_annotations_and_a_window_of_them() -> None:
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:15, 10:20] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    rows = [
        {"category_id": 9, "bbox": [10, 5, 10, 10], "segmentation": {"size": [20, 30], "counts": counts}},
        {"category_id": 7, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 1},
    ]
    shown = from_annotations(rows, [7, 9], 20, 30)
    assert shown.classes.tolist() == [2, 1] and shown.crowd is not None and shown.crowd.tolist() == [False, True]
    assert shown.masks is not None and shown.masks[0][:2] == (5, 10) and shown.masks[0][2].all()
    window = (15, 3, 30, 12)
    cut = cut_out(shown, window)
    assert cut.boxes.tolist() == [[0, 2, 5, 9]] and cut.classes.tolist() == [2]
    assert cut.masks is not None
    y0, x0, crop = cut.masks[0]
    again = np.zeros((9, 15), dtype=np.uint8)
    again[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    np.testing.assert_array_equal(again, mask[3:12, 15:30])


def test_results_without_a_box_get_one() -> None:
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:15, 10:20] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    masked = {"category_id": 1, "score": 0.9, "segmentation": {"size": [20, 30], "counts": code["counts"].decode()}}
    posed = {"category_id": 1, "score": 0.9, "keypoints": [10, 5, 2, 20, 15, 2]}
    for result in (masked, posed):
        assert from_results([result], [1]).boxes.tolist() == [[10, 5, 20, 15]]
