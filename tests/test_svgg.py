"""Step 3: the simplified VGG as a table, its parameters, and its dropout; test_wrn.py has what both networks share."""

import keras
import numpy as np
import pytest

import svgg

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


def count_trained(network):
    return sum(np.prod(weight.shape) for weight in network.trainable_weights)


@pytest.fixture(scope="module")
def network():
    return svgg.build_svgg()


def test_the_layers_are_those_of_the_table(network):
    assert isinstance(network, keras.Sequential)
    assert network.name == "svgg"
    assert network.inputs[0].shape == (None, 32, 32, 3)
    rows = [f"{describe(layer):<22}{shape_of(layer)}" for layer in network.layers]
    assert rows == [row for row in SVGG.splitlines() if row]


def test_it_has_the_tutorials_5354570_parameters_of_which_5352778_are_trained(network):
    assert (network.count_params(), count_trained(network)) == (5_354_570, 5_352_778)


def test_dropout_scales_up_what_it_keeps_while_training_alone():
    keras.utils.set_random_seed(0)
    network = svgg.build_svgg(drop_rate=0.25)
    dropout = network.layers[-2]
    around = keras.Model(network.inputs[0], [dropout.input, dropout.output])
    before, after = (np.asarray(values) for values in around(IMAGES, training=False))  # as `predict` does
    np.testing.assert_array_equal(after, before)

    before, after = (np.asarray(values) for values in around(IMAGES, training=True))
    kept = after != 0
    np.testing.assert_allclose(after[kept], before[kept] / 0.75, rtol=1e-5)
    assert kept[before > 0].mean() == pytest.approx(0.75, abs=0.03)  # of about 4,000 values
