"""Tests of train.py: its recipes and formulas, training and evaluation, the pictures, and the command line.

    pytest tests/test_train.py

Most train a tiny network of 490 parameters; `full_run` trains a real, small one through the command line. What a run
survives is tested in test_runs.py.
"""

import contextlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    SAMPLE,
    X_TRAIN,
    X_VAL,
    Y_TRAIN,
    Y_VAL,
    EventAccumulator,
    Figure,
    assert_equal_arrays,
    evaluate,
    read_history,
    read_scalars,
    save_data,
    tiny_model,
    tiny_network,
    train_tiny,
)
from keras import layers

import augment
import data
import train

HISTORY = ["epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds"]
PICTURES = {"curves.png", "confusion.png", "feature_maps.png"}
PICTURES |= {f"predictions_{which}.png" for which in ("all", "correct", "incorrect")}
RECORDS = {"config.json", "metrics.json", "history.csv", "state.npz", "model.keras", "best.keras", "logs"}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def files_in(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def uneven_run(tmp_path_factory):
    """What a learner does in a notebook: a model, a name, lists of images, labels in one column; no optimizer.

    The learning rate stands still in the second epoch, and is so high in the third that the loss rises. `weights` are
    those at the beginning and after each epoch.
    """
    model, weights, printed, rates = tiny_model(), [], io.StringIO(), [0.01, 0.0, 2.0]

    def rate(epoch):
        weights.append(model.get_weights())
        return rates[epoch]

    arrays = (list(X_TRAIN), Y_TRAIN[:, None], list(X_VAL), Y_VAL[:, None].tolist())
    keywords = {"epochs": 3, "batch_size": 20, "lr_schedule_fn": rate, "out": tmp_path_factory.mktemp("notebook")}
    started = time.monotonic()
    with contextlib.redirect_stdout(printed):
        history, run_dir = train.compile_and_train(model, "tiny", *arrays, 3, **keywords)
    assert 0 < sum(history["seconds"]) < time.monotonic() - started
    weights.append(model.get_weights())
    left, printed = files_in(run_dir), printed.getvalue()
    return SimpleNamespace(model=model, history=history, run_dir=run_dir, weights=weights, left=left, printed=printed)


def plain_network(name="wrn-10-1"):
    """Like tiny_network, without dropout."""
    stack = [keras.Input((32, 32, 3)), layers.AveragePooling2D(8), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(10, activation="softmax")], name=name)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A whole run through main. The weights stay as they are, so that the losses can be computed again."""
    settings = {"scheme": 4, "seed": 3, "batch_size": 25, "label_smoothing": 0.3, "epochs": 2, "optimizer": "sgd"}
    settings |= {"schedule": "constant", "learning_rate": 1e-9, "weight_decay": 0.5}
    folder, printed = tmp_path_factory.mktemp("full"), io.StringIO()
    source, out = save_data(folder / "data.npz", 66, 20), folder / "runs"
    flags = [str(word) for name, value in settings.items() for word in (train.flag(name), value)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(train.wrn, "build_wrn", lambda *_: plain_network())
        train.main(["wrn", *flags, "--data", source, "--out", str(out)])
    run_dir, printed = next(out.glob("*/*")), printed.getvalue()
    config, model = read_json(run_dir / "config.json"), keras.models.load_model(run_dir / "model.keras")
    cifar10 = data.load_cifar10(source)
    return SimpleNamespace(
        run_dir=run_dir, config=config, model=model, printed=printed, settings=settings, source=source, cifar10=cifar10
    )


@pytest.fixture
def figures(monkeypatch):
    """A dict that fills with the figures that train.py draws, by the names of their files."""
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update({Path(path).name: figure}))
    return drawn


@pytest.fixture
def tiny_main(monkeypatch, tmp_path, figures):
    """A function that runs main with a tiny network in place of the WRN; returns the run's folder and its config."""

    def run(*arguments, network=tiny_network):
        monkeypatch.setattr(train.wrn, "build_wrn", lambda *_: network(name="wrn-10-1"))
        train.main(["wrn", "--scheme", "3", "--out", str(tmp_path / "runs"), *map(str, arguments)])
        run_dir = max(tmp_path.glob("runs/*/*"))
        return run_dir, read_json(run_dir / "config.json")

    return run


# ---------------------------------------------------------------- Recipes


def settings_of(words):
    return train.make_settings(vars(train.make_parser().parse_args(words.split())))


# tutorial svgg | tutorial wrn | modern
DEFAULTS = {
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


def test_defaults_are_those_of_the_recipe_and_stand_in_the_help(capsys):
    for words, i in {"svgg": 0, "wrn": 1, "svgg --recipe modern": 2, "wrn --recipe modern": 2}.items():
        expected = {name: values[i] for name, values in DEFAULTS.items()} | {"network": words.split()[0], "seed": 0}
        expected |= {"holdout": False, "no_test": False, "no_xla": False, "dtype_policy": "float32", "source": None}
        size = {"num_convs": 40, "k_factor": 2, "full_resolution": False}
        expected |= size if "wrn" in words else dict.fromkeys(size)
        assert settings_of(words) == expected | {"recipe": "modern" if "modern" in words else "tutorial"}
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, values in DEFAULTS.items():
        defaults = re.escape(f"[{' | '.join(map(str, values))}]")
        assert re.search(rf"{train.flag(name)} [^\[\]]*{defaults}", text), name


@pytest.mark.parametrize("network", ["svgg", "wrn"])
def test_each_line_of_a_recipe_is_a_flag_for_both_networks(network):
    changes = {"optimizer": "rmsprop", "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.5, "scheme": 2}
    changes |= {"weight_decay": 0.01, "label_smoothing": 0.2, "drop_rate": 0.1, "epochs": 3, "batch_size": 64}
    settings = settings_of(network + "".join(f" --{name.replace('_', '-')} {changes[name]}" for name in DEFAULTS))
    assert {name: settings[name] for name in DEFAULTS} == changes
    assert settings_of(f"{network} --recipe modern --schedule constant")["warmup"] == 0  # it would have no effect


def test_place_of_the_data_is_recorded_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_of("svgg --data mine.npz")["source"] == os.path.realpath(tmp_path / "mine.npz")


def test_size_drop_rate_and_seed_reach_the_network():
    def build(words):
        return train.build_network(settings_of(words))

    for words, rate in (("svgg --drop-rate 0.4", 0.4), ("wrn --num-convs 10 --drop-rate 0", 0.0)):
        assert {layer.rate for layer in build(words).layers if "dropout" in layer.name} == {rate}
    network = build("wrn --num-convs 16 --k-factor 3 --full-resolution --seed 1")
    expected = train.wrn.build_wrn(16, 3, full_resolution=True)
    assert [layer.output.shape for layer in network.layers] == [layer.output.shape for layer in expected.layers]
    small = "wrn --num-convs 10 --k-factor 1 --seed"
    assert_equal_arrays(build(f"{small} 1").get_weights(), build(f"{small} 1").get_weights())
    one, other = (build(f"{small} {seed}").layers[1].kernel.numpy() for seed in (1, 2))
    assert (one != other).all()


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


def test_each_setting_of_a_run_reaches_its_computation(full_run):
    model, cifar10, rows = full_run.model, full_run.cifar10, read_history(full_run.run_dir)
    keras.utils.set_random_seed(3)
    for found, drawn in zip(model.layers[1].get_weights(), plain_network().get_weights(), strict=True):
        np.testing.assert_allclose(found, drawn, atol=1e-6)
    x, y = np.concatenate([cifar10.x_train, cifar10.x_val]), np.concatenate([cifar10.y_train, cifar10.y_val])
    batches = list(augment.training_batches(x, y, 4, 25, seed=3).take(6))
    assert [len(images) for images, _ in batches] == [25, 25, 16, 25, 25, 16]  # the last one of an epoch is smaller
    losses = [smoothed_loss(model, batches[:3], 0.3), smoothed_loss(model, batches[3:], 0.3)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    test_loss = smoothed_loss(model, [(cifar10.x_test, np.eye(10)[cifar10.y_test])], 0.3)
    assert float(rows[0]["val_loss"]) == pytest.approx(test_loss, rel=1e-5)
    mean = np.asarray(model.layers[0].layers[0].mean)[0, 0, 0]
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    assert full_run.config["optimizer_config"]["weight_decay"] == 0.5


# ---------------------------------------------------------------- Compile and train


def test_training_from_a_notebook_gives_history_and_folder(uneven_run):
    run_dir, history = uneven_run.run_dir, uneven_run.history
    assert isinstance(uneven_run.model.optimizer, keras.optimizers.RMSprop)
    assert list(history) == HISTORY
    assert history["epoch"] == [1, 2, 3]
    assert history["learning_rate"] == pytest.approx([0.01, 0.0, 2.0])
    assert [{name: float(row[name]) for name in row} for row in read_history(run_dir)] == [
        dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)
    ]
    assert run_dir.parent.name == "tiny"
    assert re.fullmatch(r"\d{8}-\d{6}", run_dir.name)
    assert uneven_run.left == RECORDS - {"metrics.json"}
    assert "will not load" not in uneven_run.printed
    config = read_json(run_dir / "config.json")
    call = {"network": "own", "scheme": 3, "epochs": 3, "batch_size": 20, "seed": 0, "label_smoothing": 0.0}
    assert (call | {"dtype_policy": "float32", "no_xla": False}).items() <= config.items()
    assert config["optimizer_config"]["name"] == "RMSprop"
    assert (config["data"]["source"], config["data"]["train_count"], config["data"]["official"]) == (None, 60, False)


def test_rate_of_a_function_is_used_and_best_is_of_the_lowest_validation_loss(uneven_run):
    weights, history = uneven_run.weights, uneven_run.history
    moved = [any((a != b).any() for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(weights)]
    assert moved == [True, False, True]
    assert history["val_loss"][0] == history["val_loss"][1] < history["val_loss"][2]
    for name, after in (("best", 1), ("model", 3)):
        model = keras.models.load_model(uneven_run.run_dir / f"{name}.keras")
        assert_equal_arrays(model.get_weights(), weights[after])
        scores = history["val_loss"][after - 1], history["val_accuracy"][after - 1]
        found = model.evaluate(X_VAL, data.get_onehot(Y_VAL), 500, verbose=0)  # not augmented
        assert found == pytest.approx(scores, rel=1e-5)
        assert evaluate(model, X_VAL, Y_VAL)[1] == pytest.approx(scores[1])
    standardiser = uneven_run.model.layers[0]
    assert_equal_arrays(standardiser.get_weights(), augment.standardiser(X_TRAIN, 3).get_weights())


class Bystander(layers.Layer):  # not registered with Keras
    """Returns what it gets, and has a weight that counts for nothing."""

    def build(self, _):
        self.idle = self.add_weight(trainable=False)

    def call(self, tensor):
        return tensor


def test_weight_that_is_no_number_stops_the_run_before_anything_is_replaced(tmp_path):
    keras.utils.set_random_seed(0)
    bystander = Bystander()
    model = keras.Sequential([augment.standardiser(X_TRAIN, 3), bystander, tiny_network()])
    names, before = ("state.npz", "best.keras", "history.csv", "config.json"), {}

    def rate(epoch):
        if epoch == 2:  # the loss cannot tell
            bystander.idle.assign(np.nan)
            before.update({name: (tmp_path / name).read_bytes() for name in names})
        return 0.01

    with pytest.raises(train.RunError, match=r"no longer numbers after epoch 3\.") as caught:
        train_tiny(model, None, keras.optimizers.SGD(), epochs=9, lr_schedule_fn=rate, run_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert len(read_history(tmp_path)) == 2
    assert not [*tmp_path.glob("*.new.*")]
    improved = model.evaluate(X_VAL, np.eye(10)[Y_VAL], verbose=0)[0]
    assert improved < float(read_history(tmp_path)[1]["val_loss"])  # so that it would have been the best model


@pytest.mark.parametrize(
    ("units", "activation", "found"),
    [
        ([10], "linear", "must be probabilities"),
        ([10], "sigmoid", "must be probabilities"),
        ([10], lambda x: 1.1 * keras.activations.softmax(x), "the first image's sum to 1.1."),
        ([1], "sigmoid", "one of shape (B, 1)"),
        ([11], "softmax", "one of shape (B, 11)"),
        ([10, 10], "softmax", "several outputs"),
    ],
)
def test_outputs_that_are_no_probabilities_are_one_line_before_anything_is_done(tmp_path, units, activation, found):
    images = keras.Input((32, 32, 3))
    outputs = [layers.Dense(count, activation=activation)(layers.Flatten()(images)) for count in units]
    with pytest.raises(train.RunError, match=re.escape(found)) as caught:
        train_tiny(keras.Model(images, outputs if len(units) > 1 else outputs[0]), tmp_path)
    assert 'Dense(10, activation="softmax")' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_optimizer_is_used_once(tmp_path, uneven_run):
    with pytest.raises(train.RunError, match="used before"):
        train_tiny(tiny_model(), tmp_path, uneven_run.model.optimizer)
    assert not [*tmp_path.iterdir()]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [augment.standardiser(X_TRAIN, 3), Bystander(), tiny_network()]

    def call(self, tensor, training=None):
        for layer in self.stack:
            tensor = layer(tensor, training=training)
        return tensor


def test_any_keras_model_trains_and_is_told_before_that_its_files_need_its_code(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    model, weights = Subclassed(), []

    def rate(epoch):
        weights.append(model.get_weights())
        return [0.01, 5.0][epoch]  # the first epoch is the better one

    history, run_dir = train_tiny(model, tmp_path, keras.optimizers.SGD(), epochs=2, lr_schedule_fn=rate)
    printed = capsys.readouterr().out
    line, first_epoch = printed.index("will not load"), printed.index("Epoch 1/2")
    assert "register_keras_serializable" in printed[line:first_epoch]
    _, best = train.evaluate_performance(model, history, run_dir, X_VAL, Y_VAL)
    with train.best_weights(model, run_dir):
        assert_equal_arrays(model.get_weights(), weights[1])
        assert best == pytest.approx(evaluate(model, X_VAL, Y_VAL)[1])
    train.view_feature_maps(model, X_VAL[0], tmp_path / "maps.png")
    assert capsys.readouterr().out.splitlines()[-1].startswith("No feature maps drawn")
    assert not (tmp_path / "maps.png").exists()


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_has_the_numbers_of_the_history(uneven_run):
    for split, prefix in (("train", ""), ("validation", "val_")):
        scalars = read_scalars(uneven_run.run_dir / "logs" / split)
        for name in ("loss", "accuracy"):
            expected = dict(enumerate(uneven_run.history[prefix + name]))
            assert scalars[f"epoch_{name}"] == pytest.approx(expected, rel=1e-6)


def test_pictures_can_be_drawn_with_labels_in_a_column(uneven_run, tmp_path, figures):
    model, x, y = uneven_run.model, SAMPLE.x_test[:50], SAMPLE.y_test[:50]
    train.look(model, x, y[:, None], str(tmp_path))
    probabilities = np.asarray(model(x.astype("float32")))
    worst = max(np.flatnonzero(probabilities.argmax(axis=1) != y), key=lambda i: probabilities[i].max())
    np.testing.assert_array_equal(figures["feature_maps.png"].axes[0].images[0].get_array(), x[worst])
    assert figures.keys() == PICTURES - {"curves.png"}


def test_tensorboard_has_the_networks_graph(full_run):
    graph = EventAccumulator(str(full_run.run_dir / "logs" / "graph")).Reload().Graph()
    assert {"AvgPool", "MatMul", "Softmax"} <= {node.op for node in graph.node}


# ---------------------------------------------------------------- Evaluate


def test_which_number_is_the_result_depends_on_what_chose_the_best_weights(uneven_run, figures, capsys):
    model, run_dir, own = uneven_run.model, uneven_run.run_dir, uneven_run.model.get_weights()
    # As if the second epoch had been the best, the last the most accurate, and the second slow.
    history = uneven_run.history | {"seconds": [2.0, 9.0, 1.0], "val_accuracy": [0.1, 0.2, 0.3]}
    history["val_loss"] = [2.0, 1.0, 3.0]
    best = keras.models.load_model(run_dir / "best.keras")
    for x, y, split, result, why in (
        (X_VAL, Y_VAL, "test", "end_of_training", "chosen on the test set: optimistic"),
        (SAMPLE.x_test, SAMPLE.y_test, "validation", "best_weights", "chosen on validation images"),
    ):
        pair = train.evaluate_performance(model, history, str(run_dir), list(x), y[:, None])
        assert pair == pytest.approx([evaluate(of, x, y)[1] for of in (model, best)])
        assert read_json(run_dir / "metrics.json") == {
            "result": f"test_accuracy_{result}",
            "test_accuracy_end_of_training": pair[0],
            "test_accuracy_best_weights": pair[1],
            "best_epoch": 2,
            "parameters": 490,
            "seconds_per_epoch": 2.0,
            "images_per_second": 30.0,
        }
        arrows = ["  <- the result" if result == name else "" for name in ("end_of_training", "best_weights")]
        assert capsys.readouterr().out.splitlines() == [
            f"Test accuracy, end-of-training weights:   {pair[0]:.4f}{arrows[0]}  (model.keras)",
            f"Test accuracy, best weights:              {pair[1]:.4f}{arrows[1]}  (best.keras, epoch 2, {why})",
        ]
        legend = [text.get_text() for text in figures["curves.png"].axes[0].get_legend().texts]
        assert legend == [f"tiny, {split}", "tiny, training"]
        assert_equal_arrays(model.get_weights(), own)
    assert pair[0] != pair[1]


def test_parameters_of_the_whitening_are_not_counted(uneven_run, tmp_path, figures):
    (tmp_path / "config.json").write_bytes((uneven_run.run_dir / "config.json").read_bytes())
    whitening = keras.Sequential([keras.Input((32, 32, 3)), layers.Dense(3)], name="standardiser")
    model = train.assemble(whitening, plain_network())
    train.record_scores(model, uneven_run.history, tmp_path, 0.5, 0.5, "")
    assert read_json(tmp_path / "metrics.json")["parameters"] == 490


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_run_without_its_best_weights_has_one_score(uneven_run, tmp_path, figures, capsys, content):
    (tmp_path / "config.json").write_bytes((uneven_run.run_dir / "config.json").read_bytes())
    if content:
        (tmp_path / "best.keras").write_bytes(content)
    own = uneven_run.model.get_weights()
    x, y = SAMPLE.x_test[:100], SAMPLE.y_test[:100]
    end, best = train.evaluate_performance(uneven_run.model, uneven_run.history, tmp_path, x, y)
    assert (end, best) == (pytest.approx(evaluate(uneven_run.model, x, y)[1]), None)
    metrics = read_json(tmp_path / "metrics.json")
    assert (metrics["result"], metrics["test_accuracy_best_weights"]) == ("test_accuracy_end_of_training", None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "best.keras is missing or damaged" in lines[0]
    assert lines[1].startswith(f"Test accuracy, end-of-training weights:   {end:.4f}  <- the result")
    assert_equal_arrays(uneven_run.model.get_weights(), own)


def test_model_gets_its_own_weights_back_whatever_happens(uneven_run):
    own = uneven_run.model.get_weights()
    with contextlib.suppress(KeyError), train.best_weights(uneven_run.model, uneven_run.run_dir):
        assert_equal_arrays(uneven_run.model.get_weights(), uneven_run.weights[1])
        raise KeyError
    assert_equal_arrays(uneven_run.model.get_weights(), own)


@pytest.mark.parametrize("bad", [Y_VAL + 1, Y_VAL[:-1]])
def test_evaluation_and_pictures_refuse_labels_that_are_none(uneven_run, tmp_path, bad):
    with pytest.raises(data.DataError, match="y_test must be"):
        train.evaluate_performance(uneven_run.model, uneven_run.history, uneven_run.run_dir, X_VAL, bad)
    with pytest.raises(data.DataError, match="labels must be"):
        train.view_predictions(X_VAL, bad, np.eye(10)[Y_VAL], tmp_path / "picture.png")


# ---------------------------------------------------------------- Look


def shown_in(figure):
    """Return, for each image in a figure of view_predictions, its number in X_VAL, its title and the title's colour."""
    axes = [axis for axis in figure.axes if axis.images]
    numbers = [int(np.flatnonzero((axis.images[0].get_array() == X_VAL).all((1, 2, 3)))[0]) for axis in axes]
    return numbers, [axis.get_title() for axis in axes], [axis.title.get_color() for axis in axes]


@pytest.mark.parametrize(
    ("which", "wrong", "count"), [("all", 12, 20), ("all", 12, 23), ("correct", 24, 20), ("incorrect", 30, 20)]
)
def test_view_predictions_shows_what_was_asked_for(figures, tmp_path, which, wrong, count):
    predicted, random = Y_VAL.copy(), np.random.default_rng(3)
    predicted[30 - wrong :] = (predicted[30 - wrong :] + random.integers(1, 10, wrong)) % 10
    sure = random.permutation(np.linspace(0.31, 0.99, 30))
    probabilities = np.eye(10)[predicted] * sure[:, None] + (1 - np.eye(10)[predicted]) * (1 - sure[:, None]) / 9
    train.view_predictions(X_VAL, Y_VAL[:, None], probabilities, tmp_path / "picture.png", which, count)
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


def test_view_predictions_without_any_and_with_another_word(figures, tmp_path):
    train.view_predictions(X_VAL, Y_VAL, np.eye(10)[Y_VAL], tmp_path / "picture.png", "incorrect")
    assert shown_in(figures["picture.png"])[0] == []
    assert [text.get_text() for text in figures["picture.png"].axes[0].texts] == ["no incorrect predictions"]
    with pytest.raises(ValueError, match="must be 'all', 'correct' or 'incorrect', not 'wrong'"):
        train.view_predictions(X_VAL, Y_VAL, np.eye(10)[Y_VAL], tmp_path / "picture.png", "wrong")


def test_confusion_matrix_has_true_classes_in_rows(figures, tmp_path):
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 9, 500), random.integers(0, 10, 500)  # of class 9 there is no image
    predicted[:200] = labels[:200]
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predicted), 1)
    train.plot_confusion(labels, predicted, tmp_path / "confusion.png")
    axis = figures["confusion.png"].axes[0]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert written == {(t, p): str(expected[t, p]) for t in range(10) for p in range(10)}
    shares = expected / np.maximum(expected.sum(axis=1), 1)[:, None]
    np.testing.assert_allclose(axis.images[0].get_array(), shares)
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == [f"{name}  {shares[i, i]:.1%}" for i, name in enumerate(data.CLASS_NAMES)]
    assert [label.get_text() for label in axis.get_xticklabels()] == list(data.CLASS_NAMES)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class (accuracy)")


def test_plot_histories_draws_every_run(figures, tmp_path):
    histories = {"short": {"epoch": [1]}, "long": {"epoch": [1, 2, 3]}}
    for i, (history, name) in enumerate(itertools.product(histories.values(), HISTORY[1:])):
        history[name] = [(i + 1) / (epoch + 1) for epoch in history["epoch"]]
    train.plot_histories(histories, tmp_path / "curves.png", split="test")
    colours = {}
    for axis, metric in zip(figures["curves.png"].axes, ("accuracy", "loss", "learning_rate"), strict=True):
        columns = {", test": (f"val_{metric}", "-"), ", training": (metric, "--")}
        columns = {"": ("learning_rate", "-")} if metric == "learning_rate" else columns
        drawn = {line.get_label(): line for line in axis.lines}
        assert drawn.keys() == {run + ending for run in histories for ending in columns}
        for run, (ending, (column, style)) in itertools.product(histories, columns.items()):
            line = drawn[run + ending]
            np.testing.assert_array_equal(line.get_data(), [histories[run]["epoch"], histories[run][column]])
            assert line.get_linestyle() == style
            dots = {"-": "o", "--": "x"} if run == "short" else {}  # one point is no line
            assert line.get_marker() == dots.get(style, "None")
            assert colours.setdefault(run, line.get_color()) == line.get_color()
        assert axis.get_ylabel() == metric.replace("_", " ")
        axis.set_xlim(0.95, 1.05)  # as if there were no other epoch
        assert [tick for tick in axis.get_xticks() if 0.95 < tick < 1.05] == [1]
    assert colours["short"] != colours["long"]


def functional(stack):
    first = last = keras.Input((32, 32, 3))
    for layer in stack:
        last = layer(last)
    return keras.Model(first, last)


@pytest.mark.parametrize(
    "build",
    [
        lambda stack: keras.Sequential([keras.Input((32, 32, 3)), *stack]),
        functional,
        lambda stack: keras.Sequential([keras.Input((32, 32, 3)), stack[0], functional(stack[1:])]),
        lambda stack: functional([stack[0], functional(stack[1:3]), *stack[3:]]),
    ],
)
def test_feature_maps_are_in_the_row_of_their_size_the_strongest_first(figures, tmp_path, build):
    keras.utils.set_random_seed(0)
    stack = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 2, "same"), layers.ReLU(), layers.Conv2D(12, 3, 2, "same")]
    stack += [layers.Dropout(0.5), layers.GlobalMaxPooling2D(keepdims=True), layers.Flatten()]
    stack.append(layers.Dense(10, activation="softmax"))
    model = build(stack)
    outputs = [X_VAL[:1].astype("float32")]
    for layer in stack:
        outputs.append(np.asarray(layer(outputs[-1])))

    train.view_feature_maps(model, X_VAL[0], tmp_path / "maps.png", count=6)
    axes = np.reshape(figures["maps.png"].axes, (3, 7))
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), X_VAL[0])
    probabilities = outputs[-1][0]
    order = sorted(range(10), key=lambda i: -probabilities[i])[:3]
    assert axes[0, 0].get_title() == "\n".join(f"{data.CLASS_NAMES[i]} {probabilities[i]:.0%}" for i in order)
    rows = {1: "32×32, 3 of 3 maps", 3: "16×16, 4 of 4 maps", 4: "8×8, 6 of 12 maps"}  # by the last layer of a size
    for row, (last, title) in zip(axes[:, 1:], rows.items(), strict=True):
        assert row[0].get_title(loc="left") == title
        shown = [axis.images[0].get_array() for axis in row if axis.images]
        expected = sorted(outputs[last][0].transpose(2, 0, 1), key=np.max, reverse=True)[:6]
        np.testing.assert_allclose(shown, expected, atol=1e-6)


# ---------------------------------------------------------------- The command line


def test_run_makes_every_file_and_records_its_settings(full_run):
    run_dir, config = full_run.run_dir, full_run.config
    assert run_dir.parent.name == "wrn-10-1_scheme4_full"
    assert re.fullmatch(r"\d{8}-\d{6}", run_dir.name)
    assert (settings_of("wrn") | full_run.settings).items() <= (config | {"source": None}).items()
    found = {"source": full_run.source, "train_count": 66, "official": False, "sample": False}
    assert found.items() <= config["data"].items()
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    assert (versions | {"backend": "tensorflow"}).items() <= config["versions"].items()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert re.search(rf"\b{cores} cores", config["device"])
    assert files_in(run_dir) == RECORDS | PICTURES
    for name in PICTURES:
        assert matplotlib.image.imread(run_dir / name).std() > 0.01  # a picture, and not a blank one


def test_screen_says_what_to_expect_and_what_came_out(full_run):
    accuracy = evaluate(full_run.model, full_run.cifar10.x_test, full_run.cifar10.y_test)[1]
    run_dir, lines = re.escape(str(full_run.run_dir)), full_run.printed.splitlines()
    for expected in (
        r"  batch_size +25",
        r"wrn-10-1: 490 parameters; 66 images, 3 steps per epoch",
        r"Learning rate: 1e-09 at the first update, 1e-09 after one epoch, 1e-09 at the last",
        rf"Run folder: {run_dir}",
        rf"To watch it: tensorboard --logdir {run_dir}/logs",
        r"Epoch 2/2",
        r"Expected to end at \d{4}-\d\d-\d\d \d\d:\d\d, in \d:\d\d:\d\d",
        rf"Test accuracy, end-of-training weights: +{accuracy:.4f}  <- the result .*",
        r"Test accuracy, best weights: +0\.\d{4}  \(best.keras, epoch [12], chosen on the test set: optimistic\)",
        rf"Models, pictures and history: {run_dir}",
    ):
        assert sum(bool(re.fullmatch(expected, line)) for line in lines) == 1, expected


def test_end_is_expected_after_as_many_epochs_as_are_left(uneven_run, capsys):
    recorder = train.RunRecorder(uneven_run.run_dir, {"epoch": [1, 2], "seconds": [5.0, 9.0]}, {})
    recorder.set_model(uneven_run.model)
    recorder.set_params({"epochs": 10})
    recorder.on_epoch_begin(2)  # the third, and the first after a resume
    assert capsys.readouterr().out == ""
    recorder.history["seconds"].append(600.0)
    recorder.on_epoch_begin(3)
    assert capsys.readouterr().out.endswith(", in 1:10:00\n")


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


def test_holdout_uses_each_split_for_its_purpose_only(tiny_main, monkeypatch, figures, capsys):
    trained_on, flow = [], augment.training_batches

    def spy(*given, **keywords):
        trained_on.extend(given[:2])
        return flow(*given, **keywords)

    monkeypatch.setattr(augment, "training_batches", spy)
    flags = ["--holdout", "--epochs", 4, "--batch-size", 100, "--learning-rate", 1, "--data", "sample"]
    run_dir, config = tiny_main(*flags)
    rows, printed, metrics = read_history(run_dir), capsys.readouterr().out, read_json(run_dir / "metrics.json")
    model, best = (keras.models.load_model(run_dir / f"{name}.keras") for name in ("model", "best"))

    # Trained and standardised on the first 90 %, in fourteen steps an epoch.
    assert run_dir.parent.name == "wrn-10-1_scheme3_holdout"
    assert_equal_arrays(trained_on, SAMPLE[:2])
    found = {"source": "sample", "train_count": 1350, "official": False, "sample": True}
    assert found.items() <= config["data"].items()
    mean = np.asarray(model.layers[0].layers[0].mean)[0, 0, 0]
    np.testing.assert_allclose(mean, SAMPLE.x_train.mean((0, 1, 2)), rtol=1e-5)
    rates = [1 / (1 + 0.0005 * 14 * epoch) for epoch in range(4)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates, rel=1e-6)

    # The best weights are chosen on the validation images.
    epoch = min(range(4), key=lambda i: float(rows[i]["val_loss"]))
    assert epoch < 3
    scores = [float(rows[epoch][name]) for name in ("val_loss", "val_accuracy")]
    assert evaluate(best, SAMPLE.x_val, SAMPLE.y_val) == pytest.approx(scores, rel=1e-4)

    # What is reported and pictured is of the test images, by the best weights.
    result = evaluate(best, SAMPLE.x_test, SAMPLE.y_test)[1]
    assert metrics["result"] == "test_accuracy_best_weights"
    assert metrics["test_accuracy_best_weights"] == pytest.approx(result)
    assert f"{result:.4f}  <- the result  (best.keras, epoch {epoch + 1}, chosen on validation images)" in printed
    assert "That was a sample" in printed
    probabilities, others = (np.asarray(of(SAMPLE.x_test.astype("float32"))) for of in (best, model))
    predicted, counts = probabilities.argmax(axis=1), np.zeros((10, 10), int)
    np.add.at(counts, (SAMPLE.y_test, predicted), 1)
    assert (others.argmax(axis=1) != predicted).any()
    assert [text.get_text() for text in figures["confusion.png"].axes[0].texts] == [str(n) for n in counts.ravel()]
    worst = max(np.flatnonzero(predicted != SAMPLE.y_test), key=lambda i: probabilities[i].max())
    for name in ("feature_maps.png", "predictions_incorrect.png"):
        np.testing.assert_array_equal(figures[name].axes[0].images[0].get_array(), SAMPLE.x_test[worst])
    assert figures.keys() == PICTURES


def test_holdout_run_with_a_damaged_best_model_is_finished_with_its_last_weights(tiny_main, tmp_path, figures, capsys):
    source = save_data(tmp_path / "data.npz", 60, 20)
    run_dir, _ = tiny_main("--holdout", "--epochs", 1, "--data", source)
    (run_dir / "metrics.json").unlink()
    (run_dir / "best.keras").write_bytes(b"not a model")
    figures.clear()
    train.main(["--resume", str(run_dir)])
    assert "best.keras is missing or damaged" in capsys.readouterr().out
    assert read_json(run_dir / "metrics.json")["result"] == "test_accuracy_end_of_training"
    assert figures.keys() == PICTURES


def test_no_test_does_without_the_test_set(tiny_main, tmp_path, monkeypatch, figures, capsys):
    small = data.load_cifar10(save_data(tmp_path / "data.npz", 100, 10))
    monkeypatch.setattr(data, "load_cifar10", lambda _: small._replace(x_test=None, y_test=None))
    run_dir, _ = tiny_main("--holdout", "--no-test", "--epochs", 1)
    metrics = read_json(run_dir / "metrics.json")
    accuracy = evaluate(keras.models.load_model(run_dir / "model.keras"), small.x_val, small.y_val)[1]
    assert metrics["validation_accuracy_end_of_training"] == pytest.approx(accuracy)
    assert metrics["result"] == "validation_accuracy_end_of_training"  # of weights that these images did not choose
    assert not [name for name in metrics if "test" in name]
    assert f"Validation accuracy, end-of-training weights:   {accuracy:.4f}  <- the result" in capsys.readouterr().out
    assert len(figures["confusion.png"].axes[0].texts) == 100


def test_dtype_policy_is_recorded_computed_with_and_given_back(tiny_main, tmp_path, capsys):
    networks, small_data = [], save_data(tmp_path / "data.npz", 60, 20)

    def network(name):
        networks.append(tiny_network(name=name))
        return networks[-1]

    keras.config.set_dtype_policy("mixed_bfloat16")
    flags = ("--dtype-policy", "mixed_float16", "--epochs", 1, "--data", small_data)
    run_dir, config = tiny_main(*flags, network=network)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    with pytest.raises(SystemExit):
        train.main(["wrn", "--data", "nowhere", "--out", str(tmp_path)])  # float32
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    keras.config.set_dtype_policy("float32")

    assert config["dtype_policy"] == "mixed_float16"
    assert np.isfinite(float(read_history(run_dir)[0]["loss"]))
    printed = capsys.readouterr().out
    assert printed.index("mixed_float16 is much slower than float32 without a GPU") < printed.index(" - loss: ")
    assert [layer.compute_dtype for layer in networks[0].layers[1:]] == ["float16"] * 3 + ["float32"]
    # The saved model computes in float32 everywhere.
    saved = keras.models.load_model(run_dir / "model.keras").layers
    assert {layer.compute_dtype for part in saved for layer in part.layers} == {"float32"}


@pytest.mark.parametrize(
    ("policy", "flags", "gpus", "slow"),
    [
        ("mixed_float16", "avx512_bf16", [], True),
        ("mixed_float16", "sse2", ["GPU"], False),
        ("mixed_bfloat16", "sse2 avx2 avx512f", [], True),
        ("mixed_bfloat16", "avx512f avx512_bf16", [], False),
        ("mixed_bfloat16", "amx_bf16", [], False),
        ("mixed_bfloat16", None, [], False),  # not Linux
    ],
)
def test_slow_dtype_policy_is_told(tmp_path, monkeypatch, capsys, policy, flags, gpus, slow):
    if flags:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(train, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: gpus)
    train.say_if_slow(policy)
    assert ("slower than float32" in capsys.readouterr().out) == slow


@pytest.mark.parametrize(("flags", "value"), [([], "auto"), (["--no-xla"], False)])
def test_no_xla_reaches_compile(tiny_main, monkeypatch, flags, value):
    def stop(*_, jit_compile, **__):
        raise train.RunError(f"jit_compile={jit_compile}")

    monkeypatch.setattr(keras.Sequential, "compile", stop)
    with pytest.raises(SystemExit, match=f"jit_compile={value}"):
        tiny_main("--data", "sample", *flags)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_xla_compiles_both_networks_with_and_without_whitening(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    x, y = X_TRAIN[:8], Y_TRAIN[:8]
    for scheme, words in itertools.product((1, 3), ("svgg", "wrn --num-convs 10 --k-factor 1")):
        model = train.assemble(augment.standardiser(x, scheme), train.build_network(settings_of(words)))
        keywords = {"epochs": 1, "batch_size": 4, "out": tmp_path, "jit_compile": True}
        optimizer = keras.optimizers.SGD(0.001)
        history, _ = train.compile_and_train(model, "xla", x, y, x, y, scheme, optimizer, **keywords)
        assert model.jit_compile is True
        assert np.isfinite(history["val_loss"][0]), (words, scheme)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "say which network"),
        ("wrn --epochs 1.5", "argument --epochs: invalid whole number value: '1.5'"),
        ("wrn --batch-size 0", "argument --batch-size: must be at least 1"),
        ("wrn --warmup 1", "argument --warmup: must be at least 0.0 and below 1.0, not 1"),
        ("wrn --weight-decay nan", "argument --weight-decay: must be"),
        ("wrn --label-smoothing -0.1", "argument --label-smoothing: must be"),
        ("wrn --learning-rate fast", "argument --learning-rate: invalid number value: 'fast'"),
        ("wrn --learning-rate inf", "argument --learning-rate: must be"),
        ("svgg --drop-rate 1", "argument --drop-rate: must be"),
        ("wrn --seed -1", "argument --seed: must be"),
        ("wrn --seed 2147483648", "argument --seed: must be"),
        ("wrn --scheme 9", "argument --scheme: invalid choice"),
        ("wrn --num-convs 12", "the nearest: 10 or 16"),
        ("wrn --k-factor 0", "argument --k-factor: must be at least 1"),
        ("svgg --num-convs 16 --full-resolution", "--num-convs, --full-resolution can be set for the wrn only"),
        ("wrn --warmup 0.5", "--warmup goes with --schedule cosine only, not with inverse_time"),
        ("wrn --recipe modern --schedule constant --warmup 0.2", "--warmup goes with --schedule cosine only"),
        ("wrn --no-test", "--no-test needs --holdout"),
        ("wrn --num-convs 10 --data nowhere", "nowhere"),
        ("wrn --num-convs 10 --data file", "file"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not an archive")
    with pytest.raises(SystemExit) as exit_:
        train.main(arguments.split())
    line = capsys.readouterr().err if exit_.value.code == 2 else exit_.value.code  # a text is printed by Python
    assert line.startswith("error: ")
    assert "\n" not in line.rstrip("\n")
    assert message in line
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]
