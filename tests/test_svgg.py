"""Step 3: the simplified VGG, layer by layer, and its script."""

import importlib.util
import re
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import svgg

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


def test_under_mixed_precision_the_probabilities_alone_are_float32(mixed_precision):
    network = svgg.build_svgg()
    assert [layer.compute_dtype for layer in network.layers] == ["float16"] * (len(network.layers) - 1) + ["float32"]
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    probabilities = np.asarray(network(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)  # float16 would be off by 1e-4


@pytest.mark.parametrize("drop_rate", [-0.1, 1.1, float("nan")])
def test_a_drop_rate_outside_0_to_1_is_refused(drop_rate):
    with pytest.raises(ValueError, match="rate"):
        svgg.build_svgg(drop_rate)


# ---------------------------------------------------------------- The script


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The script draws into the current folder, so each test gets an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def missing(*arguments, **settings):
    """What plot_model does where pydot or graphviz is not installed."""
    raise ImportError("You must install pydot")


def test_the_script_prints_the_parameters_that_its_docstring_promises(folder, capsys):
    runpy.run_path(svgg.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    promised = re.findall(r"^    (.*params: .*)$", svgg.__doc__, re.MULTILINE)
    assert len(promised) == 3
    assert all(line in printed for line in promised)
    assert (folder / "figures" / "svgg.png").exists() == CAN_DRAW


@pytest.mark.skipif(not CAN_DRAW, reason="drawing needs pydot and graphviz")
def test_the_graph_is_a_picture_where_pydot_and_graphviz_are_installed(folder):
    svgg.main()
    assert (folder / "figures" / "svgg.png").read_bytes().startswith(PNG_SIGNATURE)


def test_the_graph_shows_shapes_but_no_names_and_goes_to_a_folder_that_is_there(folder, capsys, monkeypatch):
    drawn = []

    def plot_model(network, path, **settings):
        assert (folder / path).parent.is_dir()
        drawn.append((network.name, Path(path), settings))

    monkeypatch.setattr(keras.utils, "plot_model", plot_model)
    path = Path("figures", "svgg.png")
    svgg.main()
    assert drawn == [("svgg", path, {"show_shapes": True, "show_layer_names": False})]
    assert capsys.readouterr().out.endswith(f"The network's graph: {path}\n")
    svgg.main()  # a folder that is there already is no obstacle
    assert len(drawn) == 2


def test_without_pydot_or_graphviz_the_last_line_says_how_to_get_them(folder, capsys, monkeypatch):
    monkeypatch.setattr(keras.utils, "plot_model", missing)
    svgg.main()
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert "pip install pydot" in last_line
    assert "graphviz" in last_line
    assert not list(folder.glob("**/*.png"))


@pytest.mark.parametrize("installed", [True, False], ids=["with pydot", "without pydot"])
def test_a_file_in_the_place_of_the_folder_for_figures_is_one_line(folder, installed, monkeypatch):
    """SystemExit with a text prints it as it is, and the exit status is 1."""
    monkeypatch.setattr(keras.utils, "plot_model", (lambda *_, **__: None) if installed else missing)
    (folder / "figures").touch()
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*figures[^\n]*\Z"):
        svgg.main()


def test_a_folder_for_figures_that_cannot_be_written_is_one_line(folder, monkeypatch):
    def plot_model(network, path, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(keras.utils, "plot_model", plot_model)
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*denied[^\n]*figures[^\n]*\Z"):
        svgg.main()


def test_a_current_folder_that_cannot_be_written_is_one_line_without_pydot_too(folder, monkeypatch):
    def mkdir(path, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(keras.utils, "plot_model", missing)
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*denied[^\n]*figures[^\n]*\Z"):
        svgg.main()
