"""Step 3: the simplified VGG, layer by layer, and the drawing of a network's graph."""

import importlib.util
import re
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import svgg
from data import draw_network

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CAN_DRAW = bool(importlib.util.find_spec("pydot") and shutil.which("dot"))


@pytest.fixture(scope="module")
def network():
    return svgg.build_svgg()


def count_numbers(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def test_it_has_the_tutorials_5354570_parameters_of_which_5352778_are_trained(network):
    assert count_numbers(network.weights) == 5_354_570
    assert count_numbers(network.trainable_weights) == 5_352_778


def test_it_is_a_sequence_of_keras_own_layers_in_the_tutorials_order(network):
    convolution = ["Conv2D", "BatchNormalization"]
    block = [*convolution, *convolution, "MaxPooling2D"]
    assert isinstance(network, keras.Sequential)
    assert [type(layer).__name__ for layer in network.layers] == [*block * 3, "Flatten", "Dense", "Dropout", "Dense"]
    assert all(type(layer).__module__.startswith("keras.") for layer in network.layers)


def test_filters_double_where_the_size_halves(network):
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [64, 64, 128, 128, 256, 256]
    pools = [layer for layer in network.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert [layer.output.shape[1:] for layer in pools] == [(16, 16, 64), (8, 8, 128), (4, 4, 256)]


def test_each_layer_has_the_tutorials_settings(network):
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (1, 1), "same")
            assert layer.activation is keras.activations.relu
            assert layer.use_bias
    hidden, dropout, classes = network.layers[-3:]
    assert (hidden.units, hidden.activation) == (1024, keras.activations.relu)
    assert dropout.rate == 0.5
    assert svgg.build_svgg(0.2).layers[-2].rate == 0.2
    assert (classes.units, classes.activation) == (10, keras.activations.softmax)


def test_it_gives_ten_probabilities_for_each_image(network):
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    probabilities = network.predict(images, verbose=0)
    assert probabilities.shape == (3, 10)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert not np.allclose(probabilities[0], probabilities[1])


def test_the_script_prints_the_parameters_that_its_docstring_promises(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(svgg.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    promised = re.findall(r"^    (.*params: .*)$", svgg.__doc__, re.MULTILINE)
    assert len(promised) == 3
    assert all(line in printed for line in promised)
    assert Path("figures/svgg.png").exists() == CAN_DRAW


# ---------------------------------------------------------------- Drawing a network's graph


@pytest.mark.skipif(not CAN_DRAW, reason="drawing needs pydot and graphviz")
def test_the_graph_is_drawn_where_pydot_and_graphviz_are_installed(network, tmp_path):
    path = tmp_path / "new folder" / "graph.png"
    assert str(path) in draw_network(network, path)
    assert path.read_bytes().startswith(PNG_SIGNATURE)


def test_without_pydot_or_graphviz_one_line_says_how_to_get_them(network, tmp_path, monkeypatch):
    def missing(*arguments, **settings):
        raise ImportError("You must install pydot")

    monkeypatch.setattr(keras.utils, "plot_model", missing)
    line = draw_network(network, tmp_path / "graph.png")
    assert "pip install pydot" in line
    assert "graphviz" in line
    assert "\n" not in line
    assert not (tmp_path / "graph.png").exists()
