"""Step 4: the Wide ResNet, by its parameters and by walking along its graph."""

import inspect
import itertools
import re
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

import wrn


@pytest.fixture(scope="module")
def wrn_22():
    """WRN-22-2 with dropout: three miniblocks a group, so that a group has a first, a middle and a last one."""
    return wrn.build_wrn(22, 2, drop_rate=0.3)


def count_numbers(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def layers_of(network, kind):
    return [layer for layer in network.layers if type(layer).__name__ == kind]


# ---------------------------------------------------------------- Parameters


@pytest.mark.parametrize(
    ("num_convs", "k_factor", "parameters", "trained"),
    [(40, 2, 2_268_394, 2_262_986), (16, 4, 2_786_378, 2_782_762), (10, 1, 87_898, 87_418)],
)
def test_parameters_are_the_tutorials(num_convs, k_factor, parameters, trained):
    network = wrn.build_wrn(num_convs, k_factor)
    assert count_numbers(network.weights) == parameters
    assert count_numbers(network.trainable_weights) == trained


def expected_parameters(num_convs, k_factor):
    """Count by hand: all parameters, and those of them that are trained."""

    def conv(size, channels, filters):
        return size * size * channels * filters + filters

    total, normalised, channels = conv(3, 3, 16), 16, 16
    for filters in (16 * k_factor, 32 * k_factor, 64 * k_factor):
        further = (num_convs - 4) // 6 - 1
        total += conv(3, channels, filters) + conv(1, channels, filters)
        total += (1 + 2 * further) * conv(3, filters, filters)
        normalised += (1 + 2 * further + 1) * filters  # in the first miniblock, in each further one, at the end
        channels = filters
    total += channels * 128 + 128 + 128 * 10 + 10
    return total + 4 * normalised, total + 2 * normalised  # gamma, beta; and mean and variance, which are not trained


@pytest.mark.parametrize(("num_convs", "k_factor"), [(10, 3), (16, 1), (22, 2), (28, 10)])
def test_parameters_are_those_counted_by_hand(num_convs, k_factor):
    network = wrn.build_wrn(num_convs, k_factor)
    counts = count_numbers(network.weights), count_numbers(network.trainable_weights)
    assert counts == expected_parameters(num_convs, k_factor)


# ---------------------------------------------------------------- Structure


@pytest.mark.parametrize("num_convs", [10, 16, 22, 28, 34, 40, 46])
def test_a_network_has_as_many_convolutions_as_its_name_says(num_convs):
    network = wrn.build_wrn(num_convs, 1, drop_rate=0.3)
    miniblocks = (num_convs - 4) // 2  # 3 groups × N, with 6N = n − 4
    assert network.name == f"wrn-{num_convs}-1"
    assert len(layers_of(network, "Conv2D")) == num_convs
    assert len(layers_of(network, "Add")) == miniblocks
    assert [layer.rate for layer in layers_of(network, "SpatialDropout2D")] == [0.3] * miniblocks


def test_only_the_first_miniblock_of_a_group_has_strides_and_a_1x1_shortcut(wrn_22):
    convolutions = layers_of(wrn_22, "Conv2D")
    assert all(layer.padding == "same" and layer.use_bias for layer in convolutions)
    kinds = Counter((layer.filters, layer.kernel_size[0], layer.strides[0]) for layer in convolutions)
    assert kinds == Counter(
        {(16, 3, 1): 1}
        | {(filters, 3, 2): 1 for filters in (32, 64, 128)}  # K = 2
        | {(filters, 1, 2): 1 for filters in (32, 64, 128)}
        | {(filters, 3, 1): 5 for filters in (32, 64, 128)}
    )


def test_each_group_halves_the_image(wrn_22):
    shapes = [layer.output.shape[1:] for layer in layers_of(wrn_22, "Add")]
    assert shapes == [(16, 16, 32)] * 3 + [(8, 8, 64)] * 3 + [(4, 4, 128)] * 3


def maker_of(network, tensor):
    """Return the layer whose output `tensor` is."""
    (layer,) = (layer for layer in network.layers if layer.output is tensor)
    return layer


def walk_back(network, tensor, count):
    """Return the names of the last `count` layers on the way to `tensor`, in order, and the tensor they start at."""
    names = []
    for _ in range(count):
        layer = maker_of(network, tensor)
        names.insert(0, type(layer).__name__)
        tensor = layer.input
    return names, tensor


BN_RELU = ["BatchNormalization", "ReLU"]


def test_the_first_miniblock_adds_its_main_path_and_a_convolution_of_the_same_input(wrn_22):
    for add in layers_of(wrn_22, "Add")[::3]:
        main, shortcut = add.input
        main_layers, main_start = walk_back(wrn_22, main, 5)
        shortcut_layers, shortcut_start = walk_back(wrn_22, shortcut, 1)
        assert main_layers == ["Conv2D", *BN_RELU, "SpatialDropout2D", "Conv2D"]
        assert shortcut_layers == ["Conv2D"]
        assert maker_of(wrn_22, shortcut).kernel_size == (1, 1)
        assert main_start is shortcut_start
        assert walk_back(wrn_22, main_start, 2)[0] == BN_RELU  # of the input block, or of the group before


def test_further_miniblocks_are_pre_activated_and_their_shortcut_is_untouched(wrn_22):
    adds = layers_of(wrn_22, "Add")
    for before, add in itertools.pairwise(adds):
        if before.output.shape != add.output.shape:
            continue  # the first miniblock of a group
        main, shortcut = add.input
        main_layers, main_start = walk_back(wrn_22, main, 7)
        assert main_layers == [*BN_RELU, "Conv2D", "SpatialDropout2D", *BN_RELU, "Conv2D"]
        assert shortcut is before.output
        assert main_start is before.output


def test_the_network_begins_and_ends_as_the_tutorials(wrn_22):
    assert [type(layer).__name__ for layer in wrn_22.layers[:4]] == ["InputLayer", "Conv2D", *BN_RELU]
    assert wrn_22.layers[1].filters == 16
    names, last_sum = walk_back(wrn_22, wrn_22.output, 6)
    assert names == [*BN_RELU, "AveragePooling2D", "Flatten", "Dense", "Dense"]
    assert last_sum is layers_of(wrn_22, "Add")[-1].output
    (pool,) = layers_of(wrn_22, "AveragePooling2D")
    assert pool.pool_size == (4, 4)  # the whole map
    hidden, classes = layers_of(wrn_22, "Dense")
    assert (hidden.units, hidden.activation) == (128, keras.activations.relu)
    assert (classes.units, classes.activation) == (10, keras.activations.softmax)


def test_it_consists_of_keras_own_layers(wrn_22):
    assert all(type(layer).__module__.startswith("keras.") for layer in wrn_22.layers)


def test_it_gives_ten_probabilities_for_each_image():
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    probabilities = wrn.build_wrn(10, 1).predict(images, verbose=0)
    assert probabilities.shape == (3, 10)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert not np.allclose(probabilities[0], probabilities[1])


# ---------------------------------------------------------------- Arguments


def test_defaults_are_wrn_40_2_without_dropout():
    defaults = {name: value.default for name, value in inspect.signature(wrn.build_wrn).parameters.items()}
    assert defaults == {"num_convs": 40, "k_factor": 2, "drop_rate": 0.0, "full_resolution": False}


@pytest.mark.parametrize(
    ("num_convs", "nearest"),
    [
        (12, "10 or 16"),
        (15, "10 or 16"),
        (41, "40 or 46"),
        (39, "34 or 40"),
        (4, "10"),
        (9, "10"),
        (0, "10"),
        (-2, "10"),
    ],
)
def test_a_number_of_convolutions_that_cannot_be_is_refused_with_the_nearest_that_can(num_convs, nearest):
    with pytest.raises(ValueError, match=rf"not {num_convs}; the nearest: {nearest}\Z"):
        wrn.build_wrn(num_convs)


@pytest.mark.parametrize("k_factor", [0, -1, 1.5])
def test_a_widening_factor_that_is_no_whole_number_from_1_is_refused(k_factor):
    with pytest.raises(ValueError, match=rf"widening factor.*not {k_factor}\Z"):
        wrn.build_wrn(10, k_factor)


@pytest.mark.parametrize("drop_rate", [-0.1, 1, 1.5, 30, float("nan")])
def test_a_drop_rate_outside_0_to_1_is_refused(drop_rate):
    with pytest.raises(ValueError, match=rf"drop rate.*not {drop_rate}\Z"):
        wrn.build_wrn(10, 1, drop_rate)


def test_the_output_block_wants_a_square_map_and_says_so():
    with pytest.raises(ValueError, match=r"must be square, got 4×8"):
        wrn.resnet_output_block(keras.Input((4, 8, 16)))


# ---------------------------------------------------------------- The script


def run_main(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(wrn, "draw_network", lambda network, path: drawn.append((network.name, Path(path))) or "drawn")
    wrn.main(arguments)
    return drawn


def test_the_script_prints_the_parameters_that_its_docstring_promises(tmp_path, capsys, monkeypatch):
    assert run_main([], monkeypatch, tmp_path) == [("wrn-40-2", Path("figures/wrn-40-2.png"))]
    printed = capsys.readouterr().out
    promised = re.findall(r"^    (.*params: .*)$", wrn.__doc__, re.MULTILINE)
    assert len(promised) == 3
    assert all(line in printed for line in promised)
    assert printed.endswith("drawn\n")


def test_the_script_builds_the_size_it_is_given(tmp_path, capsys, monkeypatch):
    drawn = run_main(["--num-convs", "10", "--k-factor", "1"], monkeypatch, tmp_path)
    assert drawn == [("wrn-10-1", Path("figures/wrn-10-1.png"))]
    assert "87,898" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--num-convs", "12"], ["--k-factor", "0"]])
def test_the_script_ends_with_one_line_for_a_size_that_cannot_be(arguments):
    """SystemExit with a text prints it as it is, and the exit status is 1."""
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]+\Z") as caught:
        wrn.main(arguments)
    assert isinstance(caught.value.code, str)
