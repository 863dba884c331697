"""Step 4: the Wide ResNet as a table, its parameters, its dropout, its softmax, what it refuses, and its script.

What both networks share is tested here for both.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from test_svgg import IMAGES, count_trained, describe, shape_of

import svgg
import wrn

# Row; the rows whose outputs it takes (0: the images); its layers, one after the other; output.
# An output that two rows take ends a row: the normalised input of each group, and the sums within a group.
WRN_16_2 = """
 1  0      Conv2D 3×3/1                                      32×32×16
 2  1      BN, ReLU                                          32×32×16

 3  2      Conv2D 3×3/2                                      16×16×32
 4  3      BN, ReLU, SpatialDropout2D 0.3, Conv2D 3×3/1      16×16×32
 5  2      Conv2D 1×1/2                                      16×16×32
 6  4+5    Add                                               16×16×32
 7  6      BN, ReLU, Conv2D 3×3/1                            16×16×32
 8  7      SpatialDropout2D 0.3, BN, ReLU, Conv2D 3×3/1      16×16×32
 9  8+6    Add                                               16×16×32
10  9      BN, ReLU                                          16×16×32

11  10     Conv2D 3×3/2                                      8×8×64
12  11     BN, ReLU, SpatialDropout2D 0.3, Conv2D 3×3/1      8×8×64
13  10     Conv2D 1×1/2                                      8×8×64
14  12+13  Add                                               8×8×64
15  14     BN, ReLU, Conv2D 3×3/1                            8×8×64
16  15     SpatialDropout2D 0.3, BN, ReLU, Conv2D 3×3/1      8×8×64
17  16+14  Add                                               8×8×64
18  17     BN, ReLU                                          8×8×64

19  18     Conv2D 3×3/2                                      4×4×128
20  19     BN, ReLU, SpatialDropout2D 0.3, Conv2D 3×3/1      4×4×128
21  18     Conv2D 1×1/2                                      4×4×128
22  20+21  Add                                               4×4×128
23  22     BN, ReLU, Conv2D 3×3/1                            4×4×128
24  23     SpatialDropout2D 0.3, BN, ReLU, Conv2D 3×3/1      4×4×128
25  24+22  Add                                               4×4×128

26  25     BN, ReLU, AveragePooling2D 4×4/4                  1×1×128
27  26     Flatten                                           128
28  27     Dense relu                                        128
29  28     Dense softmax                                     10
"""
# The same with full_resolution: the first group keeps 32×32 pixels, so that all later maps have twice the side.
FULL_RESOLUTION = {
    "3×3/2                                      16×16×32": "3×3/1                                      16×16×32",
    "1×1/2                                      16×16×32": "1×1/1                                      16×16×32",
    "16×16×32": "32×32×32",
    "8×8×64": "16×16×64",
    "4×4×128": "8×8×128",
    "4×4/4": "8×8/8",
}
DROP_RATE = 0.3
KEEP_SHAPE = (keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.SpatialDropout2D)


def table(network):
    """Return a network as rows like those above, in the order of its layers."""
    inputs = {layer: [id(tensor) for tensor in keras.tree.flatten(layer.input)] for layer in network.layers[1:]}
    uses = Counter(tensor for tensors in inputs.values() for tensor in tensors)
    rows, row_of, unfinished = [], {id(network.input): "0"}, {}
    for layer, tensors in inputs.items():
        if tensors[0] in unfinished:
            sources, words = unfinished.pop(tensors[0])
        else:
            sources, words = "+".join(row_of[tensor] for tensor in tensors), []
        words.append(describe(layer))
        if isinstance(layer, KEEP_SHAPE) and uses[id(layer.output)] == 1:
            unfinished[id(layer.output)] = sources, words
        else:
            row_of[id(layer.output)] = str(len(rows) + 1)
            rows.append(f"{len(rows) + 1:2}  {sources:<7}{', '.join(words):<50}{shape_of(layer)}")
    return rows


@pytest.fixture(scope="module")
def wrn_16_2():
    return wrn.build_wrn(16, 2, DROP_RATE)


def test_wrn_16_2_is_the_network_of_the_table(wrn_16_2):
    assert wrn_16_2.name == "wrn-16-2"
    assert wrn_16_2.input.shape == (None, 32, 32, 3)
    assert table(wrn_16_2) == [row for row in WRN_16_2.splitlines() if row]


def test_in_full_resolution_the_first_group_keeps_the_size_and_no_parameter_changes(wrn_16_2):
    network = wrn.build_wrn(16, 2, DROP_RATE, full_resolution=True)
    expected = WRN_16_2
    for halved, full in FULL_RESOLUTION.items():
        expected = expected.replace(halved, full)
    assert network.name == "wrn-16-2-full-resolution"
    assert table(network) == [row for row in expected.splitlines() if row]
    assert [weight.shape for weight in network.weights] == [weight.shape for weight in wrn_16_2.weights]


def test_by_default_it_is_the_tutorials_wrn_40_2_without_dropout():
    network = wrn.build_wrn()
    assert network.name == "wrn-40-2"
    assert (network.count_params(), count_trained(network)) == (2_268_394, 2_262_986)
    assert {layer.rate for layer in network.layers if hasattr(layer, "rate")} == {0}


@pytest.mark.parametrize(
    ("num_convs", "k_factor", "parameters", "trained"),
    [(10, 1, 87_898, 87_418), (np.int8(16), np.int8(4), 2_786_378, 2_782_762)],
    ids=["10-1", "16-4"],
)
def test_other_sizes_have_their_parameters_and_numpys_integers_are_numbers(num_convs, k_factor, parameters, trained):
    network = wrn.build_wrn(num_convs, k_factor)
    assert network.name == f"wrn-{num_convs}-{k_factor}"
    assert (network.count_params(), count_trained(network)) == (parameters, trained)


def test_dropout_drops_whole_maps_and_scales_up_the_others_while_training_alone(wrn_16_2):
    keras.utils.set_random_seed(0)
    last = [layer for layer in wrn_16_2.layers if isinstance(layer, keras.layers.SpatialDropout2D)][-1]
    around = keras.Model(wrn_16_2.input, [last.input, last.output])
    before, after = (np.asarray(maps) for maps in around(IMAGES, training=False))  # as `predict` does
    np.testing.assert_array_equal(after, before)

    before, after = (np.asarray(maps) for maps in around(IMAGES, training=True))  # (8, 4, 4, 128)
    kept = after.any(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(after, np.where(kept, before / (1 - DROP_RATE), 0), rtol=1e-5)
    assert kept.mean() == pytest.approx(1 - DROP_RATE, abs=0.05)  # of 1,024 maps


@pytest.mark.parametrize("build", [svgg.build_svgg, lambda: wrn.build_wrn(10, 1)], ids=["svgg", "wrn"])
def test_under_mixed_precision_the_probabilities_alone_are_float32(mixed_precision, build):
    network = build()
    computing = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    *others, last = (layer.compute_dtype for layer in computing)
    assert (set(others), last) == ({"float16"}, "float32")
    probabilities = np.asarray(network(IMAGES))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)  # float16 would be off by 1e-4
    assert not np.allclose(probabilities[0], probabilities[1])


# ---------------------------------------------------------------- What it refuses


@pytest.mark.parametrize(
    ("num_convs", "message"),
    [
        (15, "not 15; the nearest: 10 or 16"),
        (41, "not 41; the nearest: 40 or 46"),
        (4, "not 4; the nearest: 10"),
        (np.uint8(0), "not 0; the nearest: 10"),
        (-2, "not -2; the nearest: 10"),
        (True, "a whole number, not True"),
        (16.0, "a whole number, not 16.0"),
    ],
)
def test_a_number_of_convolutions_that_cannot_be_is_refused_with_the_nearest_that_can(num_convs, message):
    with pytest.raises(ValueError, match=rf"6N \+ 4 convolutions.*{message}\Z"):
        wrn.build_wrn(num_convs)


@pytest.mark.parametrize("k_factor", [0, True, 2.0])
def test_a_widening_factor_that_is_no_whole_number_from_1_is_refused(k_factor):
    with pytest.raises(ValueError, match=rf"widening factor K must be a whole number from 1, not {k_factor}\Z"):
        wrn.build_wrn(10, k_factor)


@pytest.mark.parametrize("drop_rate", [-0.1, 1, float("nan")])
@pytest.mark.parametrize("build", [svgg.build_svgg, lambda rate: wrn.build_wrn(10, 1, rate)], ids=["svgg", "wrn"])
def test_a_drop_rate_outside_0_to_1_is_refused(build, drop_rate):
    with pytest.raises(ValueError, match=rf"at least 0 and below 1, not {drop_rate}\Z"):
        build(drop_rate)


def test_a_last_feature_map_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="must be square, got 4×8"):
        wrn.resnet_output_block(keras.Input((4, 8, 16)))


# ---------------------------------------------------------------- The script


def test_depth_reads_n_from_the_command_line_and_tells_argparse_the_nearest_that_can_be():
    assert wrn.depth("22") == 22
    with pytest.raises(argparse.ArgumentTypeError, match="not 12; the nearest: 10 or 16"):
        wrn.depth("12")


def test_the_script_prints_the_network_it_is_asked_for_and_names_the_graph_or_says_why_there_is_none(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    wrn.main(["--num-convs=10", "--k-factor=1", "--full-resolution"])
    summary, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    assert all(words in summary for words in ("wrn-10-1-full-resolution", "87,898", "8, 8, 64"))
    graph = Path("figures", "wrn-10-1-full-resolution.png")
    assert last == f"The network's graph: {graph}" if graph.exists() else last.startswith("No graph drawn: ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--num-convs=12", "not 12; the nearest: 10 or 16"),
        ("--k-factor=0", "--k-factor: must be a whole number from 1"),
    ],
)
def test_the_script_refuses_a_size_that_cannot_be_in_one_line(argument, message, capsys):
    with pytest.raises(SystemExit, match=r"\A2\Z"):
        wrn.main([argument])
    printed = capsys.readouterr()
    assert re.fullmatch(rf"error: .*{message}.*\n", printed.err)
    assert printed.out == ""
