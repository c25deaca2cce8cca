"""Detections of shards: each chosen image once, the same from Ray's actors as from the model in hand."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from model.build import build_model
from model.config import (
    AnchorConfig,
    BoxConfig,
    KeypointConfig,
    MaskConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrunkConfig,
)
from model.mask_rcnn import MaskRCNN
from model.types import Batch, Detections
from model.views import View, predict_views
from pipeline.config import DataConfig, EvaluateConfig, RunConfig, TrainConfig, TTAConfig
from pipeline.data.augment import resized
from pipeline.data.images import decode
from pipeline.data.records import Record
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import load_index, to_records
from pipeline.errors import UserError
from pipeline.evaluation import predict as module
from pipeline.evaluation.attempts import LostError
from pipeline.evaluation.predict import Predicted, Predictor, check_views, choose_rows, predict_shards
from pipeline.training.checkpoint import CheckpointError, Meta, save_checkpoint
from pipeline.training.cluster import Layout
from pipeline.training.optim import make_sgd

CATEGORY_IDS = (2, 3, 5, 7, 11, 13, 17, 19)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    model = ModelConfig(
        classes=8,
        trunk=TrunkConfig(body="resnet18", norm="bn", freeze_stages=5, fpn_channels=32),
        rpn=RPNConfig(anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 96.0)), pre_nms_test=50, post_nms_test=30),
        roi=RoIConfig(sampling_ratio=2),
        box=BoxConfig(hidden=32, layers=1, score_threshold=0.0, detections_per_image=10),
        mask=MaskConfig(channels=16, convs=1),
    )
    data = DataConfig(test_size_px=96, test_max_size_px=160, task_rows=4)
    return RunConfig(
        model=model, data=data, train=TrainConfig(precision="float32"), evaluate=EvaluateConfig(batch_images=3)
    )


@pytest.fixture(scope="module")
def checkpoint(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model(config.model)
    directory = tmp_path_factory.mktemp("checkpoints") / "step_0000001"
    meta = Meta(1, tuple("abcdefgh"), CATEGORY_IDS, "f" * 64, "tiny", None, {})
    save_checkpoint(directory, model, make_sgd(model, config.optim), config, meta)
    return directory


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor(str(checkpoint), 1, "cpu")


@pytest.fixture(scope="module")
def records(shapes: Path) -> list[Record]:
    return to_records(read_rows(shapes / "val", load_index(shapes / "val")))


def test_rows_are_the_first_ones_by_aspect() -> None:
    index = pa.table({"sample_id": [1, 2, 3, 4], "width": [30, 10, 20, 5], "height": [10, 10, 10, 10]})
    assert choose_rows(index, None)["sample_id"].to_pylist() == [4, 2, 3, 1]
    assert choose_rows(index, 3)["sample_id"].to_pylist() == [2, 3, 1]
    assert choose_rows(index, 99).num_rows == 4
    assert choose_rows(index.slice(0, 0), None).num_rows == 0


def test_results_are_in_pixels_of_the_original_image(predictor: Predictor, records: list[Record]) -> None:
    predicted = predictor.results(records[:3])
    assert [p.sample_id for p in predicted] == [r["sample_id"] for r in records[:3]]
    for found, record in zip(predicted, records, strict=False):
        assert found.error is None and 0 < len(found.results) <= 10
        height, width = record["height"], record["width"]
        boxes = np.array([r["bbox"] for r in found.results])
        assert boxes.min() >= 0 and (boxes[:, :2] + boxes[:, 2:] <= [width + 1e-3, height + 1e-3]).all()
        assert {r["category_id"] for r in found.results} <= set(CATEGORY_IDS)
        assert {r["image_id"] for r in found.results} == {record["sample_id"]}
        assert all(coco_mask.decode(r["segmentation"]).shape == (height, width) for r in found.results)
        scores = [r["score"] for r in found.results]
        assert scores == sorted(scores, reverse=True)


def test_the_network_sees_the_test_size_without_flips(
    monkeypatch: pytest.MonkeyPatch, predictor: Predictor, records: list[Record]
) -> None:
    seen: list[Batch] = []

    def predict(batch: Batch) -> list[Detections]:
        seen.append(batch)
        return []

    monkeypatch.setattr(predictor.model, "predict", predict)
    predictor.detect(records[:2])
    (batch,) = seen
    assert batch.original_sizes.tolist() == [[r["height"], r["width"]] for r in records[:2]]
    assert batch.sizes.tolist() == [list(resized(r["height"], r["width"], 96, 160)) for r in records[:2]]
    for image, size, record in zip(batch.images, batch.sizes.tolist(), records, strict=False):
        expected = Image.fromarray(decode(record["image"])).resize(size[::-1], Image.Resampling.BILINEAR)
        own = image[: size[0], : size[1]].numpy().astype(int)
        assert np.abs(own - np.asarray(expected).astype(int)).max() <= 1


def test_what_does_not_decode_has_no_detections_and_spoils_no_neighbour(
    predictor: Predictor, records: list[Record]
) -> None:
    broken: Record = {**records[1], "image": records[1]["image"][:200]}
    alone = predictor.results([records[0], records[2]])
    first, bad, last = predictor.results([records[0], broken, records[2]])
    assert bad.error is not None and "decode" in bad.error
    assert bad.results == []
    assert first.error is None and last.error is None
    assert (len(first.results), len(last.results)) == (len(alone[0].results), len(alone[1].results))
    assert predictor.results([records[1]])[0].error is None  # the next batch starts anew


def test_boxes_only(config: RunConfig, records: list[Record], tmp_path: Path) -> None:
    config = replace(config, model=replace(config.model, mask=None))
    model = build_model(config.model)
    meta = Meta(1, tuple("abcdefgh"), CATEGORY_IDS, "f" * 64, "tiny", None, {})
    save_checkpoint(tmp_path / "c", model, make_sgd(model, config.optim), config, meta)
    (found,) = Predictor(str(tmp_path / "c"), 1, "cpu").results(records[:1])
    assert found.results and all("segmentation" not in result for result in found.results)


def test_a_view_of_the_test_size_is_plain_prediction(
    checkpoint: Path, config: RunConfig, predictor: Predictor, records: list[Record]
) -> None:
    tta = TTAConfig(sizes_px=(96,), max_size_px=160, flip=False)
    own = Predictor(str(checkpoint), 1, "cpu", replace(config, evaluate=EvaluateConfig(tta=tta)))
    assert own.results(records[:3]) == predictor.results(records[:3])


def test_views_are_every_size_as_it_is_and_mirrored(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, config: RunConfig, records: list[Record]
) -> None:
    tta = TTAConfig(sizes_px=(64, 96), max_size_px=160)
    own = Predictor(str(checkpoint), 1, "cpu", replace(config, evaluate=EvaluateConfig(tta=tta)))
    seen: list[View] = []

    def watch(model: MaskRCNN, views: list[View], keypoint_flip: object) -> list[Detections]:
        seen.extend(views)
        return predict_views(model, views)

    monkeypatch.setattr(module, "predict_views", watch)
    predicted = own.results(records[:2])
    assert all(p.error is None and p.results for p in predicted)
    assert [view.mirrored for view in seen] == [False, False, True, True]
    for size, plain, mirrored in zip((64, 96), seen[:2], seen[2:], strict=True):
        assert plain.batch.sizes.tolist() == [list(resized(r["height"], r["width"], size, 160)) for r in records[:2]]
        assert torch.equal(plain.batch.sizes, mirrored.batch.sizes)
        for one, other, width in zip(plain.batch.images, mirrored.batch.images, plain.batch.sizes[:, 1], strict=True):
            turned = torch.cat([other[:, :width].flip(1), other[:, width:]], 1)
            assert (one.int() - turned.int()).abs().max() <= 1  # the flip comes before the resize


def test_the_given_configuration_decides(checkpoint: Path, config: RunConfig, records: list[Record]) -> None:
    """What evaluate's overrides change reaches the network; what does not fit the weights is refused."""
    box = config.model.box
    assert box is not None
    few = replace(config, model=replace(config.model, box=replace(box, detections_per_image=3)))
    (found,) = Predictor(str(checkpoint), 1, "cpu", few).results(records[:1])
    assert len(found.results) == 3
    other = replace(config, model=replace(config.model, box=replace(box, hidden=16)))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Predictor(str(checkpoint), 1, "cpu", other)


def test_mirrored_keypoints_need_to_be_told_apart(config: RunConfig) -> None:
    meta = Meta(1, tuple("abcdefgh"), CATEGORY_IDS, "f" * 64, "tiny", None, {})
    people = replace(
        config,
        model=replace(config.model, keypoint=KeypointConfig(count=2)),
        evaluate=EvaluateConfig(tta=TTAConfig()),
    )
    with pytest.raises(UserError, match=r"evaluate\.tta\.flip=false"):
        check_views(people, meta)
    check_views(people, replace(meta, keypoint_flip=(1, 0)))
    check_views(config, meta)


@pytest.mark.slow
def test_actors_predict_each_chosen_image_once_and_as_the_model_in_hand(
    local_ray: None,
    checkpoint: Path,
    shapes: Path,
    config: RunConfig,
    predictor: Predictor,
    records: list[Record],
) -> None:
    workers, most = 2, 5
    config = replace(config, evaluate=replace(config.evaluate, max_images=most))
    found = list(predict_shards(checkpoint, shapes / "val", config, Layout(workers, 0.0, 2 / workers)))
    chosen = choose_rows(load_index(shapes / "val"), most)["sample_id"].to_pylist()
    assert [p.sample_id for p in found] == chosen
    by_id = {record["sample_id"]: record for record in records}
    batches = [chosen[start : start + 3] for start in range(0, len(chosen), 3)]
    torch.set_num_threads(1)
    expected = [p for batch in batches for p in predictor.results([by_id[i] for i in batch])]
    assert [p.error for p in found] == [None] * len(chosen)
    assert all(p.seconds > 0 and p.device == "CPU" for p in found)
    for actor, own in zip(found, expected, strict=True):
        assert [r["category_id"] for r in actor.results] == [r["category_id"] for r in own.results]
        np.testing.assert_allclose(
            [r["bbox"] for r in actor.results], [r["bbox"] for r in own.results], rtol=1e-4, atol=1e-3
        )


@pytest.mark.slow
def test_what_a_killed_worker_had_in_hand_is_done_by_another_once_or_named(
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    shapes: Path,
    config: RunConfig,
    predictor: Predictor,
    records: list[Record],
    tmp_path: Path,
) -> None:
    """A worker is killed by SIGKILL in the middle of the second batch, once; then it is killed at each of its tries.

    What is given up keeps no CPU: an evaluation beside training is not the end of it.
    """
    chosen = choose_rows(load_index(shapes / "val"), None)["sample_id"].to_pylist()
    batches = [chosen[start : start + 3] for start in range(0, len(chosen), 3)]
    marks = tmp_path / "kills"

    class Mortal(Predictor):  # local, so that its pickle has the code: workers cannot import this file
        most = 1

        def results(self, records: list[Record]) -> list[Predicted]:
            kills = len(marks.read_text()) if marks.exists() else 0
            if records[0]["sample_id"] == batches[1][0] and kills < self.most:
                with marks.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().results(records)

    monkeypatch.setattr(module, "Predictor", Mortal)
    found = list(predict_shards(checkpoint, shapes / "val", config, Layout(1, 0.0, 1.0)))
    assert marks.read_text() == "x"
    assert [p.sample_id for p in found] == chosen
    torch.set_num_threads(1)
    by_id = {record["sample_id"]: record for record in records}
    undisturbed = [p for batch in batches for p in predictor.results([by_id[i] for i in batch])]
    assert [(p.results, p.error) for p in found] == [(p.results, p.error) for p in undisturbed]

    marks.unlink()
    Mortal.most = 1000
    before = []
    with pytest.raises(LostError) as caught:
        before.extend(predict_shards(checkpoint, shapes / "val", config, Layout(1, 0.0, 1.0), retries=0))
    assert marks.read_text() == "x"
    names = ", ".join(map(str, batches[1]))
    assert str(caught.value).startswith(f"every worker that had one of the samples {names} in hand died (1 of them)")
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < until, f"{ray.available_resources()} are free"
        time.sleep(0.2)
