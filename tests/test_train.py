"""Tests of train.py: its recipes and formulas, training and evaluation, the pictures, and the command line.

    pytest tests/test_train.py

Most train a tiny network of 490 parameters. What a run survives is tested in test_runs.py.
"""

import contextlib
import functools
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import helpers
import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from helpers import SAMPLE, X_TRAIN, X_VAL, Y_TRAIN, Y_VAL, evaluate, read_json, tiny_model, tiny_network, train_tiny
from keras import layers
from keras.models import load_model
from matplotlib.figure import Figure

import augment
import data
import train

HISTORY = ["epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds"]
PICTURES = {"curves.png", "confusion.png", "feature_maps.png"}
PICTURES |= {f"predictions_{which}.png" for which in ("all", "correct", "incorrect")}
RECORDS = {"config.json", "metrics.json", "history.csv", "state.npz", "model.keras", "best.keras", "logs"}


def files_in(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def uneven_run(tmp_path_factory):
    """What a learner does in a notebook: a model, a name, lists of images, labels in one column; a home folder "~".

    The learning rate stands still in the second epoch, and is so high in the third that the loss rises. `weights` are
    those at the beginning and after each epoch.
    """
    model, weights, home = tiny_model(), [], tmp_path_factory.mktemp("home")

    def rate(epoch):
        weights.append(model.get_weights())
        return [0.01, 0.0, 2.0][epoch]

    arrays = (list(X_TRAIN), Y_TRAIN[:, None], list(X_VAL), Y_VAL[:, None].tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        keywords = {"settings": helpers.TINY | {"optimizer": "rmsprop"}, "lr_schedule_fn": rate, "out": "~/runs"}
        history, run_dir = train.compile_and_train(model, "tiny", *arrays, **keywords)
    assert run_dir.parent == home / "runs" / "tiny"
    assert files_in(run_dir) == RECORDS - {"metrics.json"}
    return SimpleNamespace(model=model, history=history, run_dir=run_dir, weights=[*weights, model.get_weights()])


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A whole run through main. The weights stay as they are, so that the losses can be computed again."""
    settings = {"scheme": 4, "seed": 3, "batch_size": 25, "label_smoothing": 0.3, "epochs": 2, "optimizer": "sgd"}
    settings |= {"schedule": "constant", "learning_rate": 1e-9, "weight_decay": 0.5}
    folder, printed = tmp_path_factory.mktemp("full"), io.StringIO()
    source, out = helpers.save_data(folder / "data.npz", 66, 20), folder / "runs"
    flags = [str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    network = functools.partial(tiny_network, rate=0.0)
    with contextlib.redirect_stdout(printed):
        helpers.run_main(*flags, "--data", source, "--out", out, network=network, pictures=True)
    run_dir = next(out.glob("*/*"))
    model, cifar10, settings["source"] = load_model(run_dir / "model.keras"), data.load_cifar10(source), source
    return SimpleNamespace(run_dir=run_dir, model=model, cifar10=cifar10, settings=settings, printed=printed.getvalue())


@pytest.fixture
def figures(monkeypatch):
    """A dict that fills with the figures that train.py draws, by the names of their files."""
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update({Path(path).name: figure}))
    return drawn


def settings_of(words, run_dir=None):
    typed = vars(train.make_parser().parse_args(words.split()))
    return train.make_settings({name: value for name, value in typed.items() if value is not None}, run_dir)


RECIPES = {  # tutorial svgg | tutorial wrn | modern
    "scheme": (1, 1, 4),
    "drop_rate": (0.5, 0.3, 0.0),
    "optimizer": ("rmsprop", "sgd", "sgd"),
    "learning_rate": (0.001, 0.1, 0.1),
    "schedule": ("constant", "inverse_time", "cosine"),
    "warmup": (0.0, 0.0, 0.25),
    "weight_decay": (0.0, 0.0, 0.01),
    "label_smoothing": (0.0, 0.0, 0.1),
    "epochs": (400, 400, 20),
    "batch_size": (128, 128, 128),
}
OTHERS = {"num_convs": 40, "k_factor": 2, "full_resolution": False, "holdout": False, "no_test": False, "seed": 0}
OTHERS |= {"source": None, "dtype_policy": "float32", "no_xla": False}


@pytest.mark.parametrize(
    ("words", "column"), [("svgg", 0), ("wrn", 1), ("svgg --recipe modern", 2), ("wrn --recipe modern", 2)]
)
def test_defaults_are_those_of_the_recipe(words, column):
    recipe = {name: values[column] for name, values in RECIPES.items()}
    recipe["recipe"] = "modern" if "modern" in words else "tutorial"
    network = words.split()[0]
    assert settings_of(words) == OTHERS | recipe | {"network": network}
    assert train.RECIPES[recipe["recipe"], network] == recipe


CHANGES = {"optimizer": "rmsprop", "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.5, "scheme": 2}
CHANGES |= {"weight_decay": 0.02, "label_smoothing": 0.2, "drop_rate": 0.1, "epochs": 3, "batch_size": 64}
CHANGES |= {"num_convs": 16, "k_factor": 3, "full_resolution": True, "holdout": True, "seed": 5, "no_xla": True}
CHANGES |= {"dtype_policy": "mixed_bfloat16"}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_each_setting_is_a_flag(name, value):
    flag = f" --{name.replace('_', '-')} {'' if value is True else value}"
    expected = settings_of("wrn") | {name: value}
    assert settings_of("wrn" + flag) == expected
    assert type(settings_of("wrn" + flag)[name]) is type(value)
    assert {*train.TABLE, *train.DEFAULTS} == {*CHANGES, "network", "recipe", "source", "no_test"}


def test_what_is_typed_comes_before_what_is_recorded_and_that_before_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(augment.SCHEMES, "mine", {})
    recorded = {"network": "wrn", "recipe": "modern", "epochs": 7, "warmup": 0.5, "seed": 5, "source": "/old"}
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    expected = settings_of("wrn --recipe modern") | {"epochs": 9, "warmup": 0.5, "seed": 5, "scheme": "mine"}
    expected["source"] = os.path.realpath(tmp_path / "mine.npz")  # to be found from another folder
    assert settings_of("--epochs 9 --data mine.npz --scheme mine", tmp_path) == expected
    kept = {"seed": 5, "source": "/old"}  # another network or recipe has settings of its own
    assert settings_of("svgg", tmp_path) == settings_of("svgg --recipe modern") | kept
    assert settings_of("--recipe tutorial", tmp_path) == settings_of("wrn") | kept


@pytest.mark.parametrize(
    ("words", "rate"), [("svgg --drop-rate 0.4", 0.4), ("wrn --num-convs 16 --k-factor 3 --full-resolution", 0.3)]
)
def test_size_and_drop_rate_reach_the_network(words, rate, monkeypatch, tmp_path, capsys):
    built, assemble = [], train.assemble
    monkeypatch.setattr(train, "assemble", lambda *parts: built.append(parts[1]) or assemble(*parts))
    monkeypatch.setattr(train, "compile_and_train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        train.main([*words.split(), "--scheme", "3", "--data", helpers.save_data(tmp_path / "data.npz", 10, 1)])
    assert built[0].name == ("svgg" if "svgg" in words else "wrn-16-3-full-resolution")
    assert {layer.rate for layer in built[0].layers if "dropout" in layer.name} == {rate}


def test_optimizers_are_rmsprop_with_its_defaults_and_sgd_with_nesterov_momentum():
    rmsprop, sgd = (train.make_optimizer(train.RECIPES["tutorial", name], 391) for name in ("svgg", "wrn"))
    assert rmsprop.get_config() | {"name": ""} == keras.optimizers.RMSprop().get_config() | {"name": ""}
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.9, True, None)
    decaying = train.RECIPES["tutorial", "svgg"] | {"weight_decay": 0.02}
    assert train.make_optimizer(decaying, 391).weight_decay == 0.02


@pytest.mark.parametrize(("epoch", "rounded"), [(0, 0.1), (10, 0.034), (100, 0.005), (400, 0.0013)])
def test_tutorials_learning_rate_decays_with_every_update(epoch, rounded):
    update = epoch * 391
    rate = float(train.learning_rate(train.RECIPES["tutorial", "wrn"], 391)(update))
    assert rate == pytest.approx(0.1 / (1 + 0.0005 * update), rel=1e-6)
    assert rate == pytest.approx(rounded, rel=0.05)


def modern_rate(update, total, peak, warmup):
    rising = min(round(warmup * total), total - 1)
    if update < rising:
        return peak * update / rising
    return peak * (1 + math.cos(math.pi * min(1, (update - rising) / (total - rising)))) / 2


@pytest.mark.parametrize(
    ("changes", "steps"), [({}, 391), ({"warmup": 0.0}, 5), ({"warmup": 0.999}, 5), ({"epochs": 1}, 1)]
)
def test_modern_learning_rate_rises_in_a_share_of_all_updates_and_falls_to_zero(changes, steps):
    settings = train.RECIPES["modern", "wrn"] | changes
    rate, total, warmup = train.learning_rate(settings, steps), settings["epochs"] * steps, settings["warmup"]
    for update in {0, 1, int(warmup * total), round(warmup * total), total // 2, total - 1, total}:
        assert float(rate(update)) == pytest.approx(modern_rate(update, total, 0.1, warmup), rel=1e-4, abs=1e-8)


def test_modern_step_is_nesterov_with_decoupled_decay_of_the_kernels_only():
    settings = train.RECIPES["modern", "wrn"] | {"epochs": 2, "weight_decay": 5e-3}
    optimizer = train.make_optimizer(settings, 6)
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)])
    variables, random = network.trainable_variables, np.random.default_rng(1)
    for variable in variables:
        variable.assign(random.normal(size=variable.shape))
    expected = [variable.numpy().astype(float) for variable in variables]
    velocities = [np.zeros_like(value) for value in expected]
    for update in range(8):
        gradients = [random.normal(size=variable.shape) for variable in variables]
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32") for gradient in gradients], variables)
        rate = modern_rate(update, 12, 0.1, 0.25)
        for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            if variable.name == "kernel":
                expected[i] -= rate * settings["weight_decay"] * expected[i]
            velocities[i] = 0.9 * velocities[i] - rate * gradient
            expected[i] += 0.9 * velocities[i] - rate * gradient
    assert {variable.name for variable in variables} == {"kernel", "bias", "gamma", "beta"}
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-5)


def smoothed_loss(model, batches, smoothing):
    """Return the cross-entropy of (images, one-hot labels), averaged over all images, in float64 NumPy."""
    losses = []
    for images, onehot in batches:
        targets = np.asarray(onehot, float) * (1 - smoothing) + smoothing / 10
        losses.append(-(targets * np.log(np.asarray(model(images), float))).sum(axis=1))
    return np.concatenate(losses).mean()


def test_seed_batches_label_smoothing_and_standardisation_are_those_of_the_settings(full_run):
    model, cifar10, rows = full_run.model, full_run.cifar10, helpers.read_history(full_run.run_dir)
    keras.utils.set_random_seed(3)
    for found, drawn in zip(model.layers[1].get_weights(), tiny_network(rate=0.0).get_weights(), strict=True):
        np.testing.assert_allclose(found, drawn, atol=1e-6)
    x, y = np.concatenate([cifar10.x_train, cifar10.x_val]), np.concatenate([cifar10.y_train, cifar10.y_val])
    batches = list(augment.training_batches(x, y, 4, 25, seed=3).take(6))
    losses = [smoothed_loss(model, batches[:3], 0.3), smoothed_loss(model, batches[3:], 0.3)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    test_loss = smoothed_loss(model, [(cifar10.x_test, np.eye(10)[cifar10.y_test])], 0.3)
    assert float(rows[0]["val_loss"]) == pytest.approx(test_loss, rel=1e-5)
    mean = np.asarray(model.layers[0].layers[0].mean)[0, 0, 0]
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)


def test_training_from_a_notebook_gives_history_and_folder(uneven_run):
    run_dir, history = uneven_run.run_dir, uneven_run.history
    assert isinstance(uneven_run.model.optimizer, keras.optimizers.RMSprop)
    assert list(history) == HISTORY
    assert history["epoch"] == [1, 2, 3]
    assert history["learning_rate"] == pytest.approx([0.01, 0.0, 2.0])
    assert 0 < sum(history["seconds"]) < 60
    assert [{name: float(row[name]) for name in row} for row in helpers.read_history(run_dir)] == [
        dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)
    ]
    assert re.fullmatch(r"\d{8}-\d{6}", run_dir.name)
    config = read_json(run_dir / "config.json")
    call = {"network": "own", "scheme": 3, "epochs": 3, "batch_size": 20, "optimizer": "rmsprop", "holdout": False}
    assert call.items() <= config.items()
    assert config["data"]["train_count"] == 60


def test_rate_of_a_function_is_used_and_best_is_of_the_lowest_validation_loss(uneven_run):
    weights, history = uneven_run.weights, uneven_run.history
    moved = [any((a != b).any() for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(weights)]
    assert moved == [True, False, True]
    assert history["val_loss"][0] == history["val_loss"][1] < history["val_loss"][2]
    for name, after in (("best", 1), ("model", 3)):
        model = load_model(uneven_run.run_dir / f"{name}.keras")
        helpers.assert_equal_arrays(model.get_weights(), weights[after])
        scores = history["val_loss"][after - 1], history["val_accuracy"][after - 1]
        assert evaluate(model, X_VAL, Y_VAL)[1] == pytest.approx(scores[1])
        if name == "best":  # the other one is so sure and wrong that the floor in `evaluate` changes its loss
            assert evaluate(model, X_VAL, Y_VAL)[0] == pytest.approx(scores[0], rel=1e-5)
    standardiser = uneven_run.model.layers[0]
    helpers.assert_equal_arrays(standardiser.get_weights(), augment.standardiser(X_TRAIN, 3).get_weights())


class Bystander(layers.Layer):
    """Returns what it gets, and has a weight that counts for nothing."""

    def build(self, _):
        self.idle = self.add_weight(trainable=False)

    def call(self, tensor):
        return tensor


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_no_number_stops_the_run_before_anything_is_replaced(tmp_path, value):
    keras.utils.set_random_seed(0)
    bystander = Bystander()
    model = keras.Sequential([augment.standardiser(X_TRAIN, 3), bystander, tiny_network()])
    names, before = ("state.npz", "best.keras", "history.csv", "config.json"), {}

    def rate(epoch):
        if epoch == 2:  # the loss cannot tell
            bystander.idle.assign(value)
            before.update({name: (tmp_path / name).read_bytes() for name in names})
        return 0.01

    with pytest.raises(data.UserError, match="no longer numbers") as caught:
        train_tiny(model, tmp_path, epochs=9, lr_schedule_fn=rate)
    assert "\n" not in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert files_in(tmp_path) == {*names, "logs"}
    rows = helpers.read_history(tmp_path)
    assert len(rows) == 2
    improved = model.evaluate(X_VAL, np.eye(10)[Y_VAL], verbose=0)[0]
    assert improved < float(rows[1]["val_loss"])  # so that it would have been the best model


def negative(x):  # but the sum is one
    return 2 * keras.ops.softmax(x) - 0.1


@pytest.mark.parametrize(
    ("units", "activation"), [([10], negative), ([10], "sigmoid"), ([11], "softmax"), ([10, 10], "softmax")]
)
def test_outputs_that_are_no_ten_probabilities_are_one_line_before_anything_is_done(tmp_path, units, activation):
    images = keras.Input((32, 32, 3))
    outputs = [layers.Dense(count, activation=activation)(layers.Flatten()(images)) for count in units]
    assert_refused("softmax", tmp_path, model=keras.Model(images, outputs if len(units) > 1 else outputs[0]))


def assert_refused(word, tmp_path, model=None, **changes):
    with pytest.raises(data.UserError, match=word) as caught:
        train_tiny(model or tiny_model(), tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


BAD_SETTINGS = [("optimizer", "adam"), ("optimizer", keras.optimizers.Adam), ("momentum", 0.9), ("batch_size", 1.5)]
BAD_SETTINGS += [("epochs", 0), ("warmup", 1.0), ("schedule", "step")]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_unusable_settings_are_one_line_before_anything_is_done(tmp_path, name, value):
    assert_refused(name, tmp_path, **{name: value})


def test_missing_settings_and_an_optimizer_that_was_used_are_refused(tmp_path, uneven_run):
    assert_refused("used before", tmp_path, optimizer=uneven_run.model.optimizer)
    assert_refused("constant", tmp_path, lr_schedule_fn=float, schedule="cosine")
    with pytest.raises(ValueError, match="batch_size"):
        train.compile_and_train(tiny_model(), "tiny", *helpers.ARRAYS, {"epochs": 3}, run_dir=tmp_path)


def test_any_keras_model_trains_on_a_screen_that_only_writes(tmp_path, monkeypatch):
    written, model = [], tiny_network()  # raw pixels, no standardiser
    before = model.get_weights()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=written.append, flush=lambda: None))  # no isatty
    train_tiny(model, tmp_path, optimizer=keras.optimizers.Adam(), epochs=2)
    for network in (model, SimpleNamespace(layers=[np.asarray, layers.Layer()])):  # the second one is subclassed
        train.view_feature_maps(network, X_VAL[0], Y_VAL[0], tmp_path / "maps.png")
    monkeypatch.undo()
    assert "Epoch 2/2" in "".join(written)
    assert (before[0] != model.get_weights()[0]).any()
    assert "".join(written).count("No feature maps") == 2
    assert "--resume" not in "".join(written)  # no command can continue it
    assert not (tmp_path / "maps.png").exists()


def test_tensorboard_has_the_numbers_of_the_history_and_the_networks_graph(uneven_run, full_run):
    for split, prefix in (("train", ""), ("validation", "val_")):
        scalars = helpers.read_scalars(uneven_run.run_dir / "logs" / split)
        for name in ("loss", "accuracy"):
            expected = dict(enumerate(uneven_run.history[prefix + name]))
            assert scalars[f"epoch_{name}"] == pytest.approx(expected, rel=1e-6)
    graph = helpers.EventAccumulator(str(full_run.run_dir / "logs" / "graph")).Reload().Graph()
    assert {"AvgPool", "MatMul", "Softmax"} <= {node.op for node in graph.node}


def test_which_number_is_the_result_depends_on_what_chose_the_best_weights(uneven_run, figures, capsys):
    model, run_dir, own = uneven_run.model, uneven_run.run_dir, uneven_run.model.get_weights()
    # As if the second epoch had been the best, the last the most accurate, and the second slow.
    history = uneven_run.history | {"seconds": [2.0, 9.0, 1.0], "val_accuracy": [0.1, 0.2, 0.3]}
    history["val_loss"] = [2.0, 1.0, 3.0]
    best = load_model(run_dir / "best.keras")
    for x, y, result, why in (
        (X_VAL, Y_VAL, "end_of_training", "chosen on the test set: optimistic"),
        (SAMPLE.x_test, SAMPLE.y_test, "best_weights", "chosen on validation images"),
    ):
        pair = train.evaluate_performance(model, history, str(run_dir), list(x), y[:, None])
        assert pair == pytest.approx([evaluate(of, x, y)[1] for of in (model, best)])
        accuracies = {"test_accuracy_end_of_training": pair[0], "test_accuracy_best_weights": pair[1]}
        others = {"best_epoch": 2, "parameters": 490, "seconds_per_epoch": 2.0, "images_per_second": 30.0}
        metrics = {"result": f"test_accuracy_{result}"} | accuracies | others
        assert read_json(run_dir / "metrics.json") == metrics
        arrows = ["  <- the result" if result in name else "" for name in accuracies]
        assert capsys.readouterr().out.splitlines() == [
            f"Test accuracy, end-of-training weights:   {pair[0]:.4f}{arrows[0]}  (model.keras)",
            f"Test accuracy, best weights:              {pair[1]:.4f}{arrows[1]}  (best.keras, epoch 2, {why})",
        ]
        helpers.assert_equal_arrays(model.get_weights(), own)
    assert pair[0] != pair[1]
    train.look(model, list(x), y[:, None], str(run_dir))
    assert {"confusion.png", "feature_maps.png"} <= figures.keys()


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_damaged_best_weights_are_one_line(uneven_run, tmp_path, figures, content):
    (tmp_path / "config.json").write_bytes((uneven_run.run_dir / "config.json").read_bytes())
    if content:
        (tmp_path / "best.keras").write_bytes(content)
    own = uneven_run.model.get_weights()
    with pytest.raises(data.UserError, match=r"best\.keras"):
        train.evaluate_performance(uneven_run.model, uneven_run.history, tmp_path, X_VAL, Y_VAL)
    helpers.assert_equal_arrays(uneven_run.model.get_weights(), own)


def shown_in(figure):
    """Return, for each image in a figure of view_predictions, its number in X_VAL, its title and the title's colour."""
    axes = [axis for axis in figure.axes if axis.images]
    numbers = [int(np.flatnonzero((axis.images[0].get_array() == X_VAL).all((1, 2, 3)))[0]) for axis in axes]
    return numbers, [axis.get_title() for axis in axes], [axis.title.get_color() for axis in axes]


@pytest.mark.parametrize(
    ("which", "wrong", "count"),
    [("all", 12, 20), ("all", 12, 23), ("correct", 24, 20), ("incorrect", 30, 20), ("incorrect", 0, 20)],
)
def test_view_predictions_shows_what_was_asked_for(figures, tmp_path, which, wrong, count):
    predicted, random = Y_VAL.copy(), np.random.default_rng(3)
    predicted[30 - wrong :] = (predicted[30 - wrong :] + random.integers(1, 10, wrong)) % 10
    sure = random.permutation(np.linspace(0.31, 0.99, 30))
    probabilities = np.eye(10)[predicted] * sure[:, None] + (1 - np.eye(10)[predicted]) * (1 - sure[:, None]) / 9
    train.view_predictions(X_VAL, Y_VAL, probabilities, tmp_path / "picture.png", which, count)
    numbers, titles, colours = shown_in(figures["picture.png"])
    candidates = {"all": range(30), "correct": range(30 - wrong), "incorrect": range(30 - wrong, 30)}[which]
    assert len(numbers) == len(set(numbers)) == min(count, len(candidates))
    assert set(numbers) <= set(candidates)
    if which == "incorrect":  # the most confident first
        assert numbers == sorted(candidates, key=lambda i: -sure[i])[:count]
    else:  # at random
        assert numbers not in (sorted(numbers), sorted(numbers, key=lambda i: -sure[i]))
    names = data.CLASS_NAMES
    assert titles == [f"{names[predicted[i]]} {sure[i]:.0%} ({names[Y_VAL[i]]})" for i in numbers]
    assert colours == ["green" if predicted[i] == Y_VAL[i] else "red" for i in numbers]


def test_confusion_matrix_has_true_classes_in_rows(figures, tmp_path):
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 9, 500), random.integers(0, 10, 500)  # of class 9 there is no image
    predicted[:200] = labels[:200]
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predicted), 1)
    train.plot_confusion(labels, predicted, tmp_path / "confusion.png")
    axis = figures["confusion.png"].axes[0]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true class (accuracy)", "predicted class")
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert written == {(t, p): str(expected[t, p]) for t in range(10) for p in range(10)}
    rows = [label.get_text() for label in axis.get_yticklabels()]
    accuracies = expected.diagonal() / expected.sum(axis=1).clip(1)
    assert rows == [f"{name}  {accuracies[i]:.1%}" for i, name in enumerate(data.CLASS_NAMES)]


def test_plot_histories_draws_every_run(figures, tmp_path):
    histories = {"short": {"epoch": [1]}, "long": {"epoch": [1, 2, 3]}}
    for i, (history, name) in enumerate(itertools.product(histories.values(), HISTORY[1:])):
        history[name] = [(i + 1) / (epoch + 1) for epoch in history["epoch"]]
    train.plot_histories(histories, tmp_path / "curves.png")
    columns = (["val_accuracy", "accuracy"], ["val_loss", "loss"], ["learning_rate"])  # solid, then dashed
    for axis, names in zip(figures["curves.png"].axes, columns, strict=True):
        drawn = [[list(values) for values in line.get_data()] for line in axis.lines]
        assert drawn == [[history["epoch"], history[name]] for history in histories.values() for name in names]
        assert [line.get_linestyle() for line in axis.lines] == ["-", "--"][: len(names)] * 2
        assert axis.lines[0].get_color() != axis.lines[-1].get_color()
        assert axis.lines[0].get_marker() != "None"  # one point is no line
    legend = [text.get_text() for text in figures["curves.png"].axes[0].get_legend().texts]
    assert legend == [f"{run}, {split}" for run in histories for split in ("validation", "training")]


def test_feature_maps_are_in_the_row_of_their_size_the_strongest_first(figures, tmp_path):
    images = keras.Input((32, 32, 3))
    small = layers.Conv2D(12, 3, 2, "same")(layers.ReLU()(layers.Conv2D(4, 3, padding="same")(images)))
    network = keras.Model(images, layers.Dense(10, activation="softmax")(layers.Flatten()(layers.Dropout(0.5)(small))))
    model, outputs = train.assemble(augment.standardiser(X_TRAIN, 3), network), []
    for layer in (model.layers[0], *network.layers[1:]):
        outputs.append(np.asarray(layer(outputs[-1] if outputs else X_VAL[:1].astype("float32"))))

    train.view_feature_maps(model, X_VAL[0], 3, tmp_path / "maps.png", count=6)
    axes = np.reshape(figures["maps.png"].axes, (3, 7))
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), X_VAL[0])
    predicted = data.CLASS_NAMES[int(outputs[-1].argmax())]
    assert axes[0, 0].get_title(loc="left") == f"predicted: {predicted}\ntrue: cat"
    for row, last, title in zip(axes[:, 1:], (0, 2, 3), ("stand", "32×32", "16×16"), strict=True):
        assert row[0].get_title(loc="left").startswith(title)
        shown = [axis.images[0].get_array() for axis in row if axis.images]
        expected = sorted(outputs[last][0].transpose(2, 0, 1), key=np.max, reverse=True)[:6]
        np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_run_makes_every_file_and_records_its_settings(full_run):
    run_dir, config = full_run.run_dir, read_json(full_run.run_dir / "config.json")
    assert run_dir.parent.name == "wrn-10-1_tutorial_scheme4"
    assert (settings_of("wrn") | full_run.settings).items() <= config.items()
    assert "  learning_rate   1e-09\n" in full_run.printed
    assert f"python train.py --resume {run_dir}\n" in full_run.printed
    assert re.fullmatch("[0-9a-f]{64}", config["data"]["fingerprint"])
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    assert versions.items() <= config["versions"].items()
    assert config["device"]
    assert files_in(run_dir) == RECORDS | PICTURES
    for name in PICTURES:
        assert matplotlib.image.imread(run_dir / name).std() > 0.01  # a picture, and not a blank one


def test_saved_model_takes_raw_pixels_in_a_process_without_our_code(full_run, tmp_path):
    images = SAMPLE.x_test[:40].astype("float32")
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys, keras, numpy as np
np.save("probabilities.npy", keras.models.load_model("{full_run.run_dir}/model.keras")(np.load("images.npy")))
assert not {{"data", "augment", "svgg", "wrn", "train"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), full_run.model(images), atol=1e-6)


def test_holdout_uses_each_split_for_its_purpose_only(tmp_path, monkeypatch, figures, capsys):
    trained_on, flow = [], augment.training_batches

    def spy(*given, **keywords):
        trained_on.extend(given[:2])
        return flow(*given, **keywords)

    monkeypatch.setattr(augment, "training_batches", spy)
    flags = ["--holdout", "--epochs", 4, "--batch-size", 100, "--learning-rate", 0.5, "--data", "sample"]
    helpers.run_main(*flags, "--resume", tmp_path, pictures=True)
    rows, printed = helpers.read_history(tmp_path), capsys.readouterr().out
    metrics, config = (read_json(tmp_path / f"{name}.json") for name in ("metrics", "config"))
    model, best = (load_model(tmp_path / f"{name}.keras") for name in ("model", "best"))

    # Trained and standardised on the first 90 %, in fourteen steps an epoch.
    helpers.assert_equal_arrays(trained_on, SAMPLE[:2])
    assert (config["holdout"], config["source"], config["data"]["train_count"]) == (True, "sample", 1350)
    mean = np.asarray(model.layers[0].layers[0].mean)[0, 0, 0]
    np.testing.assert_allclose(mean, SAMPLE.x_train.mean((0, 1, 2)), rtol=1e-5)
    rates = [0.5 / (1 + 0.0005 * 14 * epoch) for epoch in range(4)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates, rel=1e-6)

    # The best weights are chosen on the validation images.
    epoch = min(range(4), key=lambda i: float(rows[i]["val_loss"]))
    assert epoch < 3
    scores = [float(rows[epoch][name]) for name in ("val_loss", "val_accuracy")]
    assert evaluate(best, SAMPLE.x_val, SAMPLE.y_val) == pytest.approx(scores, rel=1e-4)

    # What is reported is of the test images, by the best weights; what is pictured, by those in model.keras.
    result = evaluate(best, SAMPLE.x_test, SAMPLE.y_test)[1]
    assert metrics["result"] == "test_accuracy_best_weights"
    assert metrics["test_accuracy_best_weights"] == pytest.approx(result)
    assert f"{result:.4f}  <- the result  (best.keras, epoch {epoch + 1}, chosen on validation images)" in printed
    probabilities = np.asarray(model(SAMPLE.x_test.astype("float32")))
    predicted, counts = probabilities.argmax(axis=1), np.zeros((10, 10), int)
    np.add.at(counts, (SAMPLE.y_test, predicted), 1)
    assert [text.get_text() for text in figures["confusion.png"].axes[0].texts] == [str(n) for n in counts.ravel()]
    worst = max(np.flatnonzero(predicted != SAMPLE.y_test), key=lambda i: probabilities[i].max())
    assert worst != probabilities.max(axis=1).argmax()  # the surest of all is right
    for name in ("feature_maps.png", "predictions_incorrect.png"):
        np.testing.assert_array_equal(figures[name].axes[0].images[0].get_array(), SAMPLE.x_test[worst])
    assert figures.keys() == PICTURES


def test_no_test_does_without_the_test_set(tmp_path, monkeypatch, figures, capsys):
    small = data.load_cifar10(helpers.save_data(tmp_path / "data.npz", 100, 10))
    monkeypatch.setattr(data, "load_cifar10", lambda _: small._replace(x_test=None, y_test=None))
    monkeypatch.chdir(tmp_path)
    helpers.run_main("--holdout", "--no-test", "--epochs", 1, pictures=True)
    (run_dir,) = tmp_path.glob("runs/wrn-10-1_tutorial_scheme3_holdout/*")
    metrics = read_json(run_dir / "metrics.json")
    accuracy = evaluate(load_model(run_dir / "model.keras"), small.x_val, small.y_val)[1]
    assert metrics["validation_accuracy_end_of_training"] == pytest.approx(accuracy)
    assert metrics["result"] == "validation_accuracy_end_of_training"  # of weights that these images did not choose
    assert not [name for name in metrics if "test" in name]
    assert f"Validation accuracy, end-of-training weights:   {accuracy:.4f}  <- the result" in capsys.readouterr().out
    assert len(figures["confusion.png"].axes[0].texts) == 100


@pytest.mark.parametrize(("no_xla", "jit_compile"), [(False, "auto"), (True, False)])
def test_no_xla_reaches_compile(tmp_path, monkeypatch, no_xla, jit_compile):
    monkeypatch.setattr(keras.Sequential, "compile", lambda *_, jit_compile, **__: given.append(jit_compile))
    given = []
    with pytest.raises(AttributeError):  # it has no optimizer
        train_tiny(tiny_network(), tmp_path, no_xla=no_xla)
    assert given == [jit_compile]


def test_number_format_that_is_recorded_is_the_one_in_use(tmp_path, mixed_precision):
    train_tiny(tiny_model(), tmp_path, epochs=1)  # its settings say float32
    assert read_json(tmp_path / "config.json")["dtype_policy"] == "mixed_float16"


def test_mixed_precision_trains_and_its_probabilities_are_float32(tmp_path, figures):
    source = helpers.save_data(tmp_path / "data.npz", 100, 40)
    flags = ["--dtype-policy", "mixed_float16", "--epochs", 1, "--data", source, "--resume", tmp_path]
    helpers.run_main(*flags, pictures=True)
    assert figures.keys() == PICTURES
    assert read_json(tmp_path / "config.json")["dtype_policy"] == "mixed_float16"
    assert np.isfinite(float(helpers.read_history(tmp_path)[0]["loss"]))
    standardiser, network = load_model(tmp_path / "model.keras").layers
    assert {layer.compute_dtype for layer in standardiser.layers} == {"float32"}
    assert [layer.compute_dtype for layer in network.layers] == ["float16"] * (len(network.layers) - 1) + ["float32"]


BAD_ARGUMENTS = {
    "": "which network",
    "wrn --epochs 1.5": "--epochs",
    "wrn --learning-rate nan": "learning_rate",
    "wrn --scheme 9": "scheme",
    "wrn --num-convs 12": "6N + 4",
    "wrn --no-test": "holdout",
    "--resume nowhere": "which network",
    "wrn --num-convs 10 --data nowhere": "nowhere",
}


@pytest.mark.parametrize(("arguments", "word"), BAD_ARGUMENTS.items())
def test_bad_arguments_are_one_line_and_write_nothing(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        train.main(arguments.split())
    line = capsys.readouterr().err if exit_.value.code == 2 else exit_.value.code  # a text is printed by Python
    assert line.startswith("error: ")
    assert "\n" not in line.rstrip("\n")
    assert word in line
    assert not [*tmp_path.rglob("*")]
