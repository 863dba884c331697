"""Steps 3 and 4: both networks as tables, their parameters, dropout and softmax, and what they refuse."""

from collections import Counter

import keras
import numpy as np
import pytest

import svgg
import wrn
from data import UserError

IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")

# Layer, kernel / stride, activation; output. Each layer takes the output of the one above it.
SVGG = """
Conv2D 3×3/1 relu     32×32×64
BN                    32×32×64
Conv2D 3×3/1 relu     32×32×64
BN                    32×32×64
MaxPooling2D 2×2/2    16×16×64
Conv2D 3×3/1 relu     16×16×128
BN                    16×16×128
Conv2D 3×3/1 relu     16×16×128
BN                    16×16×128
MaxPooling2D 2×2/2    8×8×128
Conv2D 3×3/1 relu     8×8×256
BN                    8×8×256
Conv2D 3×3/1 relu     8×8×256
BN                    8×8×256
MaxPooling2D 2×2/2    4×4×256
Flatten               4096
Dense relu            1024
Dropout 0.5           1024
Dense softmax         10
"""

# One group of WRN-16-2. Row; the rows whose outputs it takes (0: the input of the group); its layers in turn. An
# output that two rows take ends a row: the normalised input of each group, and the sums within a group.
GROUP = """
1  0    Conv2D 3×3/{stride}
2  1    BN, ReLU, SpatialDropout2D 0.3, Conv2D 3×3/1
3  0    Conv2D 1×1/{stride}
4  2+3  Add
5  4    BN, ReLU, Conv2D 3×3/1
6  5    SpatialDropout2D 0.3, BN, ReLU, Conv2D 3×3/1
7  6+4  Add
8  7    BN, ReLU
"""
KEEP_SHAPE = (keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.SpatialDropout2D)


def wrn_16_2_in_rows(sides, strides):
    """Return (rows taken, layers, output) of each row of WRN-16-2; sides and strides: of its three groups."""
    rows = [((0,), "Conv2D 3×3/1", "32×32×16"), ((1,), "BN, ReLU", "32×32×16")]
    for side, stride, filters in zip(sides, strides, (32, 64, 128), strict=True):
        start = len(rows)
        for line in GROUP.format(stride=stride).strip().splitlines():
            _, sources, layers = line.split(maxsplit=2)
            rows.append((tuple(start + int(row) for row in sources.split("+")), layers, f"{side}×{side}×{filters}"))
    rows[-1] = ((25,), f"BN, ReLU, AveragePooling2D {side}×{side}/{side}", "1×1×128")
    return [*rows, ((26,), "Flatten", "128"), ((27,), "Dense relu", "128"), ((28,), "Dense softmax", "10")]


def describe(layer):
    """Return a layer in a few words: its kind, then kernel / stride, drop rate and activation if it has them."""
    words = [type(layer).__name__.replace("BatchNormalization", "BN")]
    if size := getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None):
        assert len(set(layer.strides)) == 1
        words.append(f"{size[0]}×{size[1]}/{layer.strides[0]}")
    if hasattr(layer, "rate"):
        words.append(str(layer.rate))
    if (activation := getattr(layer, "activation", keras.activations.linear)) is not keras.activations.linear:
        words.append(activation.__name__)
    return " ".join(words)


def shape_of(layer):
    return "×".join(str(size) for size in layer.output.shape[1:])


def in_rows(network):
    """Return a network in the form of wrn_16_2_in_rows, in the order of its layers."""
    inputs = {layer: [id(tensor) for tensor in keras.tree.flatten(layer.input)] for layer in network.layers[1:]}
    uses = Counter(tensor for tensors in inputs.values() for tensor in tensors)
    rows, row_of, unfinished = [], {id(network.input): 0}, {}
    for layer, tensors in inputs.items():
        sources, words = unfinished.pop(tensors[0], None) or (tuple(row_of[tensor] for tensor in tensors), [])
        words.append(describe(layer))
        if isinstance(layer, KEEP_SHAPE) and uses[id(layer.output)] == 1:
            unfinished[id(layer.output)] = sources, words
        else:
            rows.append((sources, ", ".join(words), shape_of(layer)))
            row_of[id(layer.output)] = len(rows)
    return rows


def test_the_simplified_vgg_is_the_network_of_the_table():
    network = svgg.build_svgg()
    assert isinstance(network, keras.Sequential)
    rows = [f"{describe(layer):<22}{shape_of(layer)}" for layer in network.layers]
    assert rows == SVGG.strip().splitlines()


def test_wrn_16_2_is_the_network_of_the_table_and_in_full_resolution_its_first_group_keeps_the_size():
    wrn_16_2 = wrn.build_wrn(16, 2, 0.3)
    assert in_rows(wrn_16_2) == wrn_16_2_in_rows((16, 8, 4), (2, 2, 2))
    network = wrn.build_wrn(16, 2, 0.3, full_resolution=True)
    assert in_rows(network) == wrn_16_2_in_rows((32, 16, 8), (1, 2, 2))
    assert network.name == "wrn-16-2-full-resolution"
    assert [weight.shape for weight in network.weights] == [weight.shape for weight in wrn_16_2.weights]


@pytest.mark.parametrize(
    ("build", "name", "parameters", "trained", "drop_rate"),
    [
        (svgg.build_svgg, "svgg", 5_354_570, 5_352_778, 0.5),
        (wrn.build_wrn, "wrn-40-2", 2_268_394, 2_262_986, 0.0),
        (lambda: svgg.build_svgg(0.25), "svgg", 5_354_570, 5_352_778, 0.25),
        (lambda: wrn.build_wrn(10, 1, 0.1), "wrn-10-1", 87_898, 87_418, 0.1),
    ],
)
def test_it_has_the_parameters_of_its_docstring_and_the_given_drop_rate(build, name, parameters, trained, drop_rate):
    network = build()
    assert (network.name, network.count_params()) == (name, parameters)
    assert sum(np.prod(weight.shape) for weight in network.trainable_weights) == trained
    assert {layer.rate for layer in network.layers if hasattr(layer, "rate")} == {drop_rate}
    # What the tables leave out.
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(x.momentum, x.epsilon, x.center, x.scale) for x in norms} == {(0.99, 1e-3, True, True)}
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {(x.padding, x.use_bias, x.dilation_rate, x.groups) for x in convolutions} == {("same", True, (1, 1), 1)}


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


REFUSED = {
    "15 convolutions": (lambda: wrn.build_wrn(15), "6N"),
    "4 convolutions": (lambda: wrn.build_wrn(4), "6N"),
    "K of 0": (lambda: wrn.build_wrn(10, 0), "widening"),
    "K of 1.5": (lambda: wrn.build_wrn(10, 1.5), "widening"),
    "a WRN that drops everything": (lambda: wrn.build_wrn(10, 1, 1.0), "drop rate"),
    "a VGG that drops everything": (lambda: svgg.build_svgg(1), "drop rate"),
    "maps that are not square": (lambda: wrn.resnet_output_block(keras.Input((4, 8, 16))), "square"),
}


@pytest.mark.parametrize(("build", "word"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(build, word):
    with pytest.raises(UserError, match=word):
        build()


def test_the_scripts_print_the_network_and_refuse_in_one_line_what_cannot_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    svgg.main([])
    wrn.main(["--num-convs=10", "--k-factor=1", "--full-resolution"])
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("5,354,570", "wrn-10-1-full-resolution", "87,898", "8, 8, 64"))
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*6N[^\n]* 12\Z"):
        wrn.main(["--num-convs=12"])
