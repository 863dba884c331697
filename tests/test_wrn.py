"""Step 4: the Wide ResNet, by its parameters and by walking along its graph."""

import importlib.util
import inspect
import itertools
import re
import shutil
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

import wrn

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CAN_DRAW = bool(importlib.util.find_spec("pydot") and shutil.which("dot"))


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


def test_under_mixed_precision_the_probabilities_alone_are_float32(mixed_precision):
    network = wrn.build_wrn(10, 1)
    *others, last = (layer.compute_dtype for layer in network.layers[1:])  # without the InputLayer
    assert (set(others), last) == ({"float16"}, "float32")
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    probabilities = np.asarray(network(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)  # float16 would be off by 1e-4


# ---------------------------------------------------------------- The first group in full resolution


@pytest.fixture(scope="module")
def halved_and_full():
    return wrn.build_wrn(16, 2, drop_rate=0.3), wrn.build_wrn(16, 2, drop_rate=0.3, full_resolution=True)


def test_full_resolution_is_part_of_the_name(halved_and_full):
    assert [network.name for network in halved_and_full] == ["wrn-16-2", "wrn-16-2-full-resolution"]


def test_full_resolution_changes_no_parameter(halved_and_full):
    halved, full = ([weight.shape for weight in network.weights] for network in halved_and_full)
    assert full == halved
    halved, full = ([weight.shape for weight in network.trainable_weights] for network in halved_and_full)
    assert full == halved
    assert wrn.build_wrn(40, 2, full_resolution=True).count_params() == 2_268_394


def test_in_full_resolution_only_the_second_and_third_groups_halve_the_image(halved_and_full):
    shapes = [[layer.output.shape[1:] for layer in layers_of(network, "Add")] for network in halved_and_full]
    assert shapes[0] == [(16, 16, 32)] * 2 + [(8, 8, 64)] * 2 + [(4, 4, 128)] * 2
    assert shapes[1] == [(32, 32, 32)] * 2 + [(16, 16, 64)] * 2 + [(8, 8, 128)] * 2
    assert [layers_of(network, "AveragePooling2D")[0].pool_size for network in halved_and_full] == [(4, 4), (8, 8)]
    assert all(network.output.shape == (None, 10) for network in halved_and_full)


def test_in_full_resolution_only_the_strides_of_the_first_miniblock_differ(halved_and_full):
    """The 1×1 convolution on the shortcut stays: it also changes the number of channels."""
    halved, full = (
        [(layer.filters, layer.kernel_size[0], layer.strides[0]) for layer in layers_of(network, "Conv2D")]
        for network in halved_and_full
    )
    assert {(32, 3, 2), (32, 1, 2)} <= set(halved)
    assert full == [
        (32, size, 1) if (filters, strides) == (32, 2) else (filters, size, strides)
        for filters, size, strides in halved
    ]
    main, shortcut = layers_of(halved_and_full[1], "Add")[0].input
    assert maker_of(halved_and_full[1], shortcut).kernel_size == (1, 1)
    assert walk_back(halved_and_full[1], main, 5)[0] == ["Conv2D", *BN_RELU, "SpatialDropout2D", "Conv2D"]


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


def test_a_group_has_the_tutorials_parameters_and_downsamples_by_what_it_is_given():
    names = list(inspect.signature(wrn.resnet_block).parameters)
    assert names == ["x_in", "num_filters", "num_miniblocks", "downsampling", "drop_rate"]
    for downsampling, side in (1, 8), (2, 4), (4, 2):
        x_in = keras.Input((8, 8, 5))
        group = keras.Model(x_in, wrn.resnet_block(x_in, 7, 3, downsampling, 0.2))
        assert group.output.shape == (None, side, side, 7)
        assert len(layers_of(group, "Add")) == 3
        assert [layer.rate for layer in layers_of(group, "SpatialDropout2D")] == [0.2] * 3


def test_the_output_block_wants_a_square_map_and_says_so():
    with pytest.raises(ValueError, match=r"must be square, got 4×8"):
        wrn.resnet_output_block(keras.Input((4, 8, 16)))


# ---------------------------------------------------------------- The script


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The script draws into the current folder, so each test gets an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(folder, monkeypatch):
    """Nothing is drawn; return the list of what would have been."""
    drawn = []

    def plot_model(network, path, **settings):
        assert (folder / path).parent.is_dir()
        drawn.append((network.name, Path(path), settings))

    monkeypatch.setattr(keras.utils, "plot_model", plot_model)
    return drawn


SMALL = ["--num-convs", "10", "--k-factor", "1"]
SETTINGS = {"show_shapes": True, "show_layer_names": False}


def missing(*arguments, **settings):
    """What plot_model does where pydot or graphviz is not installed."""
    raise ImportError("You must install pydot")


def test_the_script_prints_the_parameters_that_its_docstring_promises(drawn, capsys):
    wrn.main([])
    path = Path("figures", "wrn-40-2.png")
    assert drawn == [("wrn-40-2", path, SETTINGS)]
    printed = capsys.readouterr().out
    promised = re.findall(r"^    (.*params: .*)$", wrn.__doc__, re.MULTILINE)
    assert len(promised) == 3
    assert all(line in printed for line in promised)
    assert printed.endswith(f"The network's graph: {path}\n")


@pytest.mark.parametrize(
    ("more", "name", "last_map"),
    [([], "wrn-10-1", "(None, 4, 4, 64)"), (["--full-resolution"], "wrn-10-1-full-resolution", "(None, 8, 8, 64)")],
)
def test_the_script_builds_the_network_it_is_asked_for(more, name, last_map, drawn, capsys):
    wrn.main([*SMALL, *more])
    assert drawn == [(name, Path("figures", f"{name}.png"), SETTINGS)]
    printed = capsys.readouterr().out
    assert "87,898" in printed
    assert last_map in printed


@pytest.mark.skipif(not CAN_DRAW, reason="drawing needs pydot and graphviz")
def test_the_graph_is_a_picture_where_pydot_and_graphviz_are_installed(folder):
    wrn.main(SMALL)
    assert (folder / "figures" / "wrn-10-1.png").read_bytes().startswith(PNG_SIGNATURE)


def test_without_pydot_or_graphviz_the_last_line_says_how_to_get_them(folder, capsys, monkeypatch):
    monkeypatch.setattr(keras.utils, "plot_model", missing)
    wrn.main(SMALL)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert "pip install pydot" in last_line
    assert "graphviz" in last_line
    assert not list(folder.glob("**/*.png"))


@pytest.mark.parametrize("installed", [True, False], ids=["with pydot", "without pydot"])
def test_a_file_in_the_place_of_the_folder_for_figures_is_one_line(drawn, folder, installed, monkeypatch):
    """SystemExit with a text prints it as it is, and the exit status is 1."""
    if not installed:
        monkeypatch.setattr(keras.utils, "plot_model", missing)
    (folder / "figures").touch()
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*figures[^\n]*\Z"):
        wrn.main(SMALL)
    assert not drawn


def test_a_folder_for_figures_that_cannot_be_written_is_one_line(folder, monkeypatch):
    def plot_model(network, path, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(keras.utils, "plot_model", plot_model)
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*denied[^\n]*figures[^\n]*\Z"):
        wrn.main(SMALL)


def test_a_current_folder_that_cannot_be_written_is_one_line_without_pydot_too(folder, monkeypatch):
    def mkdir(path, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(keras.utils, "plot_model", missing)
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*denied[^\n]*figures[^\n]*\Z"):
        wrn.main(SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-convs", "12"], "a WRN has 6N + 4 convolutions (10, 16, 22, …), not 12; the nearest: 10 or 16"),
        (["--k-factor", "0"], "the widening factor K must be a whole number from 1, not 0"),
        (["--k-factor", "1.5"], "argument --k-factor: invalid int value: '1.5'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_the_script_refuses_a_size_that_cannot_be_as_argparse_does(arguments, message, drawn, folder, capsys):
    """Below argparse's reminder of the usage there is one line, and the exit status is 2."""
    with pytest.raises(SystemExit) as caught:
        wrn.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    usage, error = printed.err.removesuffix("\n").split(": error: ")
    assert usage.startswith("usage: ")
    assert error == message
    assert printed.out == ""
    assert not drawn
    assert not list(folder.iterdir())
