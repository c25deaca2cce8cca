from pathlib import Path

from pipeline.benchmarks.cityscapes_scoring import measure_scoring


def test_both_score_generated_streets_the_same_and_ours_is_faster(tmp_path: Path) -> None:
    rounds: list[int] = []
    found = measure_scoring(tmp_path, pictures=3, height_px=128, detections=40, rounds=3, on_round=rounds.append)
    assert rounds == [1, 2, 3] and found.pictures == 3 and found.detections >= 40
    assert found.difference < 1e-12
    assert found.official_ap_ms > 2 * found.ap_ms  # about 10 times; 100 times on pictures of full size
    assert min(found.iou_ms, found.official_iou_ms, found.writing_ms, found.decoding_ms) > 0
