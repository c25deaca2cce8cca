"""Rows of class layers against a loop that copies one class at a time, for every scheme; and what does not fit."""

from dataclasses import replace

import pytest
import torch
from tiny_model import TINY

from model.build import build_model
from model.config import CascadeConfig, KeypointConfig, MaskConfig, ModelConfig
from model.weights.transfer import NoTransferError, class_layers, other_meanings, transfer

OLD, NEW = 5, 4
CLASSES = [3, None, 1, 3]  # of the new model's four classes: which of the five; two are the same


def with_box(config: ModelConfig, **changes) -> ModelConfig:
    assert config.box is not None
    return replace(config, box=replace(config.box, **changes))


def with_mask(config: ModelConfig, **changes) -> ModelConfig:
    assert config.mask is not None
    return replace(config, mask=replace(config.mask, **changes))


VARIANTS = {
    "independent": TINY,
    "competing": with_mask(TINY, scheme="competing"),
    "agnostic": with_mask(TINY, scheme="agnostic"),
    "mlp": with_mask(TINY, head="mlp", mlp_size=3, hidden=8),
    "one box": with_box(TINY, class_agnostic=True),
    "cascade": with_box(TINY, class_agnostic=True, cascade=CascadeConfig()),
    "no masks": replace(TINY, mask=None),
    "proposals": replace(TINY, mask=None, box=None),
    "keypoints": replace(TINY, mask=None, keypoint=KeypointConfig(count=4, channels=8, convs=1)),
    "c4": replace(
        TINY,
        trunk=replace(TINY.trunk, neck="c4"),
        rpn=replace(TINY.rpn, anchors=replace(TINY.rpn.anchors, sizes_px=(16.0, 32.0))),
    ),
}


def state_of(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Random numbers everywhere, so that no two rows are equal by chance."""
    with torch.device("meta"):
        state = build_model(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}


def run(old: ModelConfig, new: ModelConfig, classes=CLASSES, new_rows="normal", seed=0, source=None):
    source = state_of(old, 1) if source is None else source
    own = state_of(new, 2)
    done = transfer(source, own, old, new, classes, new_rows, torch.Generator().manual_seed(seed))
    assert done.state.keys() == own.keys()
    assert all(done.state[name].shape == own[name].shape for name in own)
    return source, own, done


def block(config: ModelConfig, name: str, number: int) -> slice:
    """Rows of class `number` (0: the background) of a class layer, written out for each kind of layer."""
    if name.endswith(".scores"):
        return slice(number, number + 1)
    if name.endswith(".deltas"):
        return slice(4 * (number - 1), 4 * number)
    assert config.mask is not None
    cells = config.mask.mlp_size**2 if config.mask.head == "mlp" else 1
    first = number if config.mask.scheme == "competing" else number - 1
    return slice(first * cells, (first + 1) * cells)


def is_per_class(config: ModelConfig, name: str) -> bool:
    if name.endswith(".deltas"):
        return config.box is not None and not config.box.class_agnostic
    return not (name.startswith("mask") and config.mask is not None and config.mask.scheme == "agnostic")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_and_every_other_tensor(name: str) -> None:
    config = VARIANTS[name]
    old, new = replace(config, classes=OLD), replace(config, classes=NEW)
    source, own, done = run(old, new)
    layers = class_layers(new)
    heads = {layer.rpartition(".")[2] for layer in layers}
    assert heads == ({"scores", "deltas"} if config.box else set()) | ({"predictor"} if config.mask else set())
    for tensor, value in done.state.items():
        layer = tensor.rpartition(".")[0]
        if layer not in layers:
            assert torch.equal(value, source[tensor]), tensor  # copied
        elif not is_per_class(config, layer):
            assert torch.equal(value, source[tensor]), tensor
        else:
            for number, one in enumerate(CLASSES, 1):
                mine, theirs = value[block(new, layer, number)], source[tensor]
                if one is not None:
                    assert torch.equal(mine, theirs[block(old, layer, one)]), (tensor, number)
                else:
                    assert not any(torch.equal(mine, theirs[block(old, layer, k)]) for k in range(1, OLD + 1))
                    assert not torch.equal(mine, own[tensor][block(new, layer, number)])
            if layer.endswith(".scores") or (layer.startswith("mask") and config.mask.scheme == "competing"):
                assert torch.equal(value[block(new, layer, 0)], source[tensor][block(old, layer, 0)]), tensor
    assert set(done.mapped) == {t for t in done.state if t.rpartition(".")[0] in layers}
    assert not done.new and not done.left
    assert set(done.copied) | set(done.mapped) == {t for t in own if not t.endswith("num_batches_tracked")}


def test_new_rows_have_the_mean_and_the_spread_of_the_rows_of_classes() -> None:
    old, new = replace(TINY, classes=OLD), replace(TINY, classes=NEW)
    source = state_of(old, 1)
    for tensor, offset in (("box.scores.weight", 3.0), ("box.deltas.weight", -2.0), ("box.scores.bias", 5.0)):
        source[tensor] = 0.1 * source[tensor] + offset
    source["box.scores.weight"][0], source["box.scores.bias"][0] = 1e6, 1e6  # the background's, which must not count
    drawn: dict[str, list[torch.Tensor]] = {}
    source = {tensor: value for tensor, value in source.items() if tensor.rpartition(".")[0] in class_layers(old)}
    own = {tensor: value for tensor, value in state_of(new, 2).items() if tensor in source}
    for seed in range(200):
        done = transfer(source, own, old, new, CLASSES, "normal", torch.Generator().manual_seed(seed))
        for tensor in done.mapped:
            drawn.setdefault(tensor, []).append(done.state[tensor][block(new, tensor.rpartition(".")[0], 2)].flatten())
    assert len(drawn) == 6
    for tensor, values in drawn.items():
        rows = source[tensor][1:] if ".scores." in tensor else source[tensor]
        mean, spread = rows.double().mean(), rows.double().std(correction=0)
        numbers = torch.cat(values).double()
        error = spread / len(numbers) ** 0.5
        assert (numbers.mean() - mean).abs() < 4.5 * error, tensor
        assert (numbers.std() / spread - 1).abs() < 4.5 / (2 * len(numbers)) ** 0.5, tensor
        assert len(set(numbers.tolist())) > len(numbers) / 2  # another seed draws other numbers


def test_the_same_seed_draws_the_same_and_initial_draws_nothing() -> None:
    old, new = replace(TINY, classes=OLD), replace(TINY, classes=NEW)
    one, same, other = (run(old, new, seed=seed)[2].state["box.scores.weight"] for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]])  # rows that are copied do not depend on it
    _, own, done = run(old, new, new_rows="initial")
    assert torch.equal(done.state["box.scores.weight"][2], own["box.scores.weight"][2])
    assert torch.equal(done.state["box.deltas.bias"][4:8], own["box.deltas.bias"][4:8])


@pytest.mark.parametrize("classes", [[None] * 4, [1, 2, 3, 4]])
def test_no_class_and_every_class(classes: list[int | None]) -> None:
    old, new = replace(TINY, classes=OLD), replace(TINY, classes=NEW)
    source, _, done = run(old, new, classes)
    assert torch.equal(done.state["box.scores.weight"][0], source["box.scores.weight"][0])
    assert torch.equal(done.state["mask.layers.predictor.weight"], source["mask.layers.predictor.weight"][:4]) == (
        classes[0] is not None
    )


def test_from_one_class_new_rows_are_finite() -> None:
    _, _, done = run(replace(TINY, classes=1), replace(TINY, classes=NEW), [None, 1, None, None])
    assert all(value.isfinite().all() for value in done.state.values() if value.is_floating_point())


def test_the_one_mask_and_box_of_any_class_become_that_of_each() -> None:
    old = with_mask(with_box(replace(TINY, classes=OLD), class_agnostic=True), scheme="agnostic")
    source, _, done = run(old, replace(TINY, classes=NEW))
    for number in range(NEW):
        for tensor in ("box.deltas.weight", "box.deltas.bias"):
            assert torch.equal(done.state[tensor][4 * number : 4 * number + 4], source[tensor])
        assert torch.equal(
            done.state["mask.layers.predictor.weight"][number], source["mask.layers.predictor.weight"][0]
        )


@pytest.mark.parametrize(
    ("old", "new", "fresh"),
    [
        (TINY, with_mask(TINY, scheme="agnostic"), "mask.layers.predictor"),
        (TINY, with_mask(TINY, scheme="competing"), "mask.layers.predictor"),
        (VARIANTS["competing"], TINY, "mask.layers.predictor"),
        (TINY, VARIANTS["one box"], "box.deltas"),
        (TINY, VARIANTS["mlp"], "mask.layers"),
        (VARIANTS["no masks"], TINY, "mask"),
        (TINY, VARIANTS["cascade"], ("box.deltas", "cascade")),
        (VARIANTS["proposals"], TINY, ("box", "mask")),
        (VARIANTS["no masks"], VARIANTS["keypoints"], "keypoint"),
        (
            VARIANTS["keypoints"],
            replace(VARIANTS["keypoints"], keypoint=KeypointConfig(count=7, channels=8, convs=1)),
            "keypoint.deconv",
        ),
        (TINY, with_box(TINY, hidden=16), ("box.fc", "box.scores", "box.deltas")),
        (TINY, with_mask(TINY, convs=2), "mask.layers.convs.conv.1"),
    ],
)
def test_what_a_head_of_another_kind_lacks_stays_as_initialised_and_is_named(old, new, fresh) -> None:
    source, own, done = run(replace(old, classes=OLD), replace(new, classes=NEW))
    fresh = (fresh,) if isinstance(fresh, str) else fresh
    named = {tensor for tensor in own if tensor.startswith(tuple(f"{module}." for module in fresh))}
    assert named and done.new.keys() == named and all(done.new.values())
    assert all(torch.equal(done.state[tensor], own[tensor]) for tensor in named)
    others = {tensor for tensor in own if tensor not in named}
    assert set(done.copied) | set(done.mapped) == others
    assert all(torch.equal(done.state[tensor], source[tensor]) for tensor in done.copied)


def test_heads_that_are_gone_are_left() -> None:
    source, _, done = run(replace(TINY, classes=OLD), replace(VARIANTS["no masks"], classes=NEW))
    assert set(done.left) == {tensor for tensor in source if tensor.startswith("mask.")}


def test_tensors_that_do_not_fit_where_the_configurations_agree() -> None:
    old, new = replace(TINY, classes=OLD), replace(TINY, classes=NEW)
    for tensor in ("trunk.output.0.weight", "rpn.deltas.bias", "box.fc.0.weight", "mask.layers.deconvs.0.weight"):
        source = state_of(old, 1)
        source[tensor] = source[tensor][:-1]
        with pytest.raises(NoTransferError, match=rf"{tensor} is \[.*\] in the weights and \[.*\] here"):
            run(old, new, source=source)
        del source[tensor]
        with pytest.raises(NoTransferError, match=f"the weights have no {tensor}, which model.{tensor.split('.')[0]} "):
            run(old, new, source=source)
    source = state_of(old, 1)
    source["box.scores.weight"] = source["box.scores.weight"][:, :-1]
    with pytest.raises(NoTransferError, match=r"box\.scores\.weight is \[6, 31\] in the weights and \[5, 32\]"):
        run(old, new, source=source)


def test_rows_that_are_not_those_of_the_classes() -> None:
    source = state_of(replace(TINY, classes=OLD), 1)
    source["box.deltas.bias"] = source["box.deltas.bias"][:-4]
    with pytest.raises(NoTransferError, match=r"box\.deltas\.bias has 16 rows, which is not what 5 classes have"):
        run(replace(TINY, classes=OLD), replace(TINY, classes=NEW), source=source)


def test_what_weights_mean() -> None:
    other = replace(TINY, trunk=replace(TINY.trunk, body="resnet34", freeze_stages=1), rpn=None)
    keys = ("trunk.body", "trunk.neck", "rpn.anchors")
    assert other_meanings(TINY, other, keys) == {"trunk.body": ("resnet18", "resnet34")}


def test_source_numbers_of_another_precision() -> None:
    old, new = replace(TINY, classes=OLD), replace(TINY, classes=NEW)
    source = {n: v.half() for n, v in state_of(old, 1).items()}
    _, _, done = run(old, new, source=source)
    assert all(value.dtype == torch.float32 for value in done.state.values() if value.is_floating_point())


def test_a_mask_head_is_all_of_its_config() -> None:
    assert class_layers(replace(TINY, box=None, mask=None)) == {}
    assert class_layers(replace(TINY, mask=MaskConfig(head="mlp", mlp_size=5)))["mask.layers.predictor"].rows == 25
