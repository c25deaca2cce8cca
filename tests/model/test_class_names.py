"""Which class is which: by name, by synonym, as the user says."""

import pytest

from model.weights.class_names import UnknownClassError, match_classes

CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
COCO = ("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat")


def sources(names, others, wanted=None):
    return [match.source for match in match_classes(names, others, wanted or {})]


def test_cityscapes_of_coco_is_the_known_list():
    # rows of COCO's classes for each of Cityscapes': 0, none, 2, 7, 5, 6, 3, 1, counted from 0
    assert sources(CITYSCAPES, COCO) == [1, None, 3, 8, 6, 7, 4, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "how"),
    [
        ("motorbike", "motorcycle", "synonym"),
        ("motorcycle", "motorbike", "synonym"),
        ("TVMonitor", "tv", "synonym"),
        ("pedestrian", "Person", "synonym"),
        ("Traffic_Light", "traffic light", "name"),
        ("traffic-light", "Traffic Light", "name"),
        ("mouse", "mouse_(computer_equipment)", "name"),
        ("sofa", "couch", "synonym"),
    ],
)
def test_names_that_mean_the_same(ours, theirs, how):
    (match,) = match_classes([ours], ["dog", theirs], {})
    assert (match.source, match.how) == (2, how)


@pytest.mark.parametrize(("ours", "theirs"), [("rider", "person"), ("cart", "car"), ("train", "training"), ("", "car")])
def test_names_that_do_not(ours, theirs):
    assert match_classes([ours], [theirs], {})[0].how == "new"


def test_the_very_name_goes_before_a_synonym_and_a_map_before_both():
    others = ("motorbike", "motorcycle", "Motorcycle")
    assert sources(["motorcycle", "motorbike", "Motorcycle"], others) == [2, 1, 3]
    assert sources(["motor"], others) == [1]  # the first of those that mean it
    assert sources(["motorcycle"], others, {"motorcycle": "motorbike"}) == [1]
    assert sources(["motorcycle", "x"], others, {"motorcycle": None, "x": "motorcycle"}) == [None, 2]
    assert [m.how for m in match_classes(["motorcycle", "x"], others, {"motorcycle": None, "x": "motorcycle"})] == [
        "new",
        "map",
    ]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"ridr": "person"}, "'ridr' is no class of the data; did you mean rider"),
        ({"rider": "persn"}, "'persn' is no class of the weights; did you mean person"),
        ({"zzz": None}, "'zzz' is no class of the data; did you mean person, rider, car"),
    ],
)
def test_a_map_of_what_is_not_there(wanted, message):
    with pytest.raises(UnknownClassError, match=message):
        match_classes(CITYSCAPES, COCO, wanted)
