"""Tests of train.py: its recipes and formulas, training and evaluation, the pictures, and the command line.

    pytest tests/test_train.py

Most train a tiny network of 490 parameters; `full_run` trains a real, small one through the command line.
"""

import contextlib
import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import matplotlib.image
import numpy as np
import pytest
from cifar_files import batch_bytes
from keras import layers
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import augment
import data
import train

SAMPLE = data.load_cifar10("sample")
X_TRAIN, Y_TRAIN, X_VAL, Y_VAL = SAMPLE.x_train[:60], SAMPLE.y_train[:60], SAMPLE.x_val[:30], SAMPLE.y_val[:30]
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def tiny_network(*_, name="tiny"):
    """Stands in for build_wrn: averages over 8×8 pixels, dropout, and one dense layer."""
    images = keras.Input((32, 32, 3))
    tensor = layers.Dropout(0.2)(layers.Flatten()(layers.AveragePooling2D(8)(images)))
    return keras.Model(images, layers.Dense(10, activation="softmax")(tensor), name=name)


def tiny_model(seed=0):
    keras.utils.set_random_seed(seed)
    return train.assemble(augment.standardiser(X_TRAIN, 3), tiny_network())


def train_tiny(model, out, **changes):
    keywords = {"epochs": 3, "batch_size": 20, "out": out} | changes
    optimizer = keywords.pop("optimizer", None)
    return train.compile_and_train(model, "tiny", X_TRAIN, Y_TRAIN, X_VAL, Y_VAL, 3, optimizer, **keywords)


def weights_of(model):
    return [np.array(value) for value in train.network_of(model).get_weights()]


def read_history(run_dir):
    with open(run_dir / "history.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """What a learner does in a notebook: a model, a name, the data; no folder, no optimizer."""
    model = tiny_model()
    history, run_dir = train_tiny(model, tmp_path_factory.mktemp("api"))
    return SimpleNamespace(model=model, history=history, run_dir=run_dir)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A whole run through main, of a WRN-10-1 on the sample."""
    out, printed = tmp_path_factory.mktemp("full"), io.StringIO()
    arguments = "wrn --num-convs 10 --k-factor 1 --scheme 3 --epochs 2 --batch-size 250 --data sample --out"
    with contextlib.redirect_stdout(printed):
        train.main([*arguments.split(), str(out)])
    run_dir = next(out.glob("*/*"))
    config, metrics = (json.loads((run_dir / f"{name}.json").read_text()) for name in ("config", "metrics"))
    model = keras.models.load_model(run_dir / "model.keras")
    return SimpleNamespace(run_dir=run_dir, config=config, metrics=metrics, model=model, printed=printed.getvalue())


@pytest.fixture
def figures(monkeypatch):
    """A list that fills with the figures that train.py draws."""
    made = []

    class RememberedFigure(Figure):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            made.append(self)

        def savefig(self, path):
            super().savefig(path, dpi=10)  # coarse, to be quick

    monkeypatch.setattr(train, "Figure", RememberedFigure)
    return made


# ---------------------------------------------------------------- Recipes


@pytest.mark.parametrize(
    ("network", "own"),
    [
        ("svgg", {"optimizer": "rmsprop", "learning_rate": 0.001, "schedule": "constant", "drop_rate": 0.5}),
        ("wrn", {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "inverse_time", "drop_rate": 0.3}),
    ],
)
def test_defaults_are_the_tutorials(network, own):
    _, options = train.parse_arguments([network])
    size = {"num_convs": 40, "k_factor": 2} if network == "wrn" else {"num_convs": None, "k_factor": None}
    common = {"network": network, "recipe": "tutorial", "scheme": 1, "epochs": 400, "batch_size": 128, "seed": 0}
    plain = {"warmup": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0}
    plain |= {"holdout": False, "no_test": False, "no_xla": False, "full_resolution": False}
    assert train.make_settings(options) == common | size | own | plain


def test_optimizers_are_rmsprop_with_its_defaults_and_sgd_with_nesterov_momentum():
    rmsprop, sgd = (train.make_optimizer(train.RECIPES["tutorial"][name], 391) for name in ("svgg", "wrn"))
    assert rmsprop.get_config() | {"name": ""} == keras.optimizers.RMSprop().get_config() | {"name": ""}
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.9, True, None)


@pytest.mark.parametrize(("epoch", "rounded"), [(10, 0.034), (100, 0.005), (400, 0.0013)])
def test_tutorials_learning_rate_decays_with_every_update(epoch, rounded):
    update = epoch * 391
    rate = float(train.learning_rate(train.RECIPES["tutorial"]["wrn"], 391)(update))
    assert rate == pytest.approx(0.1 / (1 + 0.0005 * update), rel=1e-6)
    assert rate == pytest.approx(rounded, rel=0.05)


def modern_rate(update, total, peak):
    warmup = total // 4
    if update < warmup:
        return peak * update / warmup
    return peak * (1 + math.cos(math.pi * min(1, (update - warmup) / (total - warmup)))) / 2


@pytest.mark.parametrize(("network", "peak"), [("wrn", 0.1), ("svgg", 0.03)])
def test_modern_learning_rate_rises_in_the_first_quarter_and_falls_to_zero(network, peak):
    rate = train.learning_rate(train.RECIPES["modern"][network], 391)
    for update in (0, 1, 1000, 1954, 1955, 1956, 4000, 7819, 7820):
        assert float(rate(update)) == pytest.approx(modern_rate(update, 20 * 391, peak), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(("warmup", "rises_until"), [(0.0, 0), (0.1, 10), (0.5, 50)])
def test_warmup_is_a_share_of_all_updates(warmup, rises_until):
    settings = train.RECIPES["modern"]["wrn"] | {"warmup": warmup, "epochs": 10}
    rate = train.learning_rate(settings, 10)
    rates = [float(rate(update)) for update in range(100)]
    assert np.argmax(rates) == rises_until
    assert rates[rises_until] == pytest.approx(0.1)
    assert rates[-1] < 0.001


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_weight_decay_works_with_both_optimizers(optimizer):
    settings = train.RECIPES["tutorial"]["svgg"] | {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.5}
    variable = keras.Variable(np.ones(3, "float32"), name="kernel")
    train.make_optimizer(settings, 1).apply([keras.ops.zeros(3)], [variable])
    np.testing.assert_allclose(variable.numpy(), 1 - 0.1 * 0.5)


def test_each_line_of_a_recipe_can_be_changed_on_the_command_line():
    changes = {"optimizer": "rmsprop", "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.5, "scheme": 2}
    changes |= {"weight_decay": 0.01, "label_smoothing": 0.2, "drop_rate": 0.1, "epochs": 3, "batch_size": 64}
    words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    _, options = train.parse_arguments(["wrn", *words])
    settings = train.make_settings(options)
    assert set(changes) == set(train.RECIPES["tutorial"]["wrn"])
    assert {name: settings[name] for name in changes} == changes


def test_modern_step_is_nesterov_with_decoupled_decay_of_the_kernels_only():
    settings = train.RECIPES["modern"]["wrn"] | {"epochs": 2, "weight_decay": 5e-3}
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
        rate = modern_rate(update, 12, 0.1)
        for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            if variable.name == "kernel":
                expected[i] -= rate * settings["weight_decay"] * expected[i]
            velocities[i] = 0.9 * velocities[i] - rate * gradient
            expected[i] += 0.9 * velocities[i] - rate * gradient
    assert {variable.name for variable in variables} == {"kernel", "bias", "gamma", "beta"}
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- Compile and train


def test_training_from_a_notebook_gives_history_and_folder(tiny_run):
    assert set(tiny_run.history) == set(METRICS)
    assert all(len(values) == 3 for values in tiny_run.history.values())
    assert re.fullmatch(r"\d{8}-\d{6}", tiny_run.run_dir.name)
    assert tiny_run.run_dir.parent.name == "tiny"
    assert isinstance(tiny_run.model.optimizer, keras.optimizers.RMSprop)
    rows = read_history(tiny_run.run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {name: [float(row[name]) for row in rows] for name in METRICS} == tiny_run.history


def test_rate_recorded_is_the_rate_that_was_used(tmp_path, monkeypatch):
    rates, snapshots = [0.5, 0.0, 0.25], []
    real = train.save_state
    monkeypatch.setattr(train, "save_state", lambda *given: (snapshots.append(given[1].get_weights()), real(*given)))
    model, optimizer = tiny_model(), keras.optimizers.SGD(9.0)
    snapshots.append(weights_of(model))
    history, run_dir = train_tiny(model, tmp_path, optimizer=optimizer, lr_schedule_fn=lambda epoch: rates[epoch])
    assert history["learning_rate"] == rates
    assert [float(row["learning_rate"]) for row in read_history(run_dir)] == rates
    moved = [any((a != b).any() for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(snapshots)]
    assert moved == [True, False, True]


def test_rate_of_a_schedule_is_that_of_the_epochs_first_update(tmp_path):
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 0.5))
    history, _ = train_tiny(tiny_model(), tmp_path, optimizer=optimizer, epochs=2)
    assert history["learning_rate"] == pytest.approx([0.1, 0.1 / (1 + 0.5 * 3)])


def test_starting_epoch_counts_on_and_draws_that_epochs_images(tmp_path):
    def optimizer():  # without momentum, so that nothing but the weights is carried over
        return keras.optimizers.SGD(0.1)

    whole, parts = tiny_model(), tiny_model()
    train_tiny(whole, tmp_path, optimizer=optimizer(), epochs=2)
    train_tiny(parts, tmp_path, optimizer=optimizer(), epochs=1)
    history, run_dir = train_tiny(parts, tmp_path, optimizer=optimizer(), epochs=2, starting_epoch=1)
    for a, b in zip(weights_of(whole), weights_of(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(history["loss"]) == 1
    assert [row["epoch"] for row in read_history(run_dir)] == ["2"]


def test_standardisation_is_not_trained_and_validation_not_augmented(tiny_run):
    before, after = augment.standardiser(X_TRAIN, 3), tiny_run.model.layers[0]
    for a, b in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert tiny_run.model.trainable_variables == train.network_of(tiny_run.model).trainable_variables
    again = tiny_run.model.evaluate(X_VAL, data.get_onehot(Y_VAL), verbose=0, return_dict=True)
    for name in ("loss", "accuracy"):
        assert again[name] == pytest.approx(tiny_run.history[f"val_{name}"][-1], rel=1e-5)


def test_no_xla_reaches_compile(tmp_path, monkeypatch):
    def stop(*_, jit_compile, **__):
        raise train.RunError(f"jit_compile={jit_compile}")

    monkeypatch.setattr(train.wrn, "build_wrn", tiny_network)
    monkeypatch.setattr(keras.Sequential, "compile", stop)
    for flags, value in (([], "auto"), (["--no-xla"], False)):
        with pytest.raises(SystemExit, match=f"jit_compile={value}"):
            train.main(["wrn", "--scheme", "3", "--data", "sample", "--out", str(tmp_path), *flags])


# ---------------------------------------------------------------- Evaluate


def test_one_image_at_a_time_gives_the_same_as_a_batch(tiny_run):
    labels = data.get_onehot(Y_VAL)
    single, batched = (tiny_run.model.evaluate(X_VAL, labels, size, verbose=0) for size in (1, 500))
    assert single == pytest.approx(batched, rel=1e-5)


def test_predictions_keep_the_order_of_the_images(tiny_run):
    predicted = train.predict_classes(tiny_run.model, X_TRAIN)
    order = np.random.default_rng(0).permutation(len(X_TRAIN))
    assert len(set(predicted)) > 2
    np.testing.assert_array_equal(train.predict_classes(tiny_run.model, X_TRAIN[order]), predicted[order])
    accuracy = tiny_run.model.evaluate(X_TRAIN, data.get_onehot(Y_TRAIN), verbose=0, return_dict=True)["accuracy"]
    assert np.mean(predicted == Y_TRAIN) == pytest.approx(accuracy)


def test_evaluate_performance_returns_end_and_best_and_gives_the_weights_back(tiny_run):
    own = weights_of(tiny_run.model)
    pair = train.evaluate_performance(tiny_run.model, tiny_run.history, tiny_run.run_dir, X_VAL, Y_VAL)
    for a, b in zip(own, weights_of(tiny_run.model), strict=True):
        np.testing.assert_array_equal(a, b)
    best = int(np.argmin(tiny_run.history["val_loss"]))
    assert pair == pytest.approx([tiny_run.history["val_accuracy"][epoch] for epoch in (-1, best)])
    assert (tiny_run.run_dir / "curves.png").exists()
    assert not (tiny_run.run_dir / "learning_rate.png").exists()  # it was constant


def test_best_weights_are_of_the_epoch_with_the_lowest_validation_loss(tmp_path):
    model, rates = tiny_model(), [0.1, 0.1, 5.0]  # the last step is so large that the loss rises
    history, run_dir = train_tiny(
        model, tmp_path, optimizer=keras.optimizers.SGD(1.0), lr_schedule_fn=rates.__getitem__
    )
    assert np.argmin(history["val_loss"]) != 2
    own = weights_of(model)
    with train.best_weights(train.network_of(model), run_dir):
        loss = model.evaluate(X_VAL, data.get_onehot(Y_VAL), verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(history["val_loss"]), rel=1e-5)
    for a, b in zip(own, weights_of(model), strict=True):  # the model has its own weights back
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("content", [None, b"", b"not HDF5", "truncated"])
def test_bad_best_weights_are_one_line_and_leave_the_model_alone(tiny_run, tmp_path, content):
    if content is not None:
        good = (tiny_run.run_dir / "best.weights.h5").read_bytes()
        (tmp_path / "best.weights.h5").write_bytes(good[: len(good) // 2] if content == "truncated" else content)
    own = weights_of(tiny_run.model)
    with pytest.raises(train.RunError, match=r"best\.weights\.h5 is missing, damaged") as caught:
        train.evaluate_performance(tiny_run.model, tiny_run.history, tmp_path, X_VAL, Y_VAL)
    assert "\n" not in str(caught.value)
    for a, b in zip(own, weights_of(tiny_run.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_model_takes_raw_pixels_in_a_process_without_our_code(full_run, tmp_path):
    images = SAMPLE.x_test[:40]
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys, keras, numpy as np
model = keras.models.load_model({str(full_run.run_dir / "model.keras")!r})
np.save("probabilities.npy", model.predict(np.load("images.npy"), verbose=0))
assert not {{"data", "augment", "svgg", "wrn", "train"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, capture_output=True)
    expected = full_run.model.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)


# ---------------------------------------------------------------- Pictures


@pytest.mark.parametrize(
    ("which", "wrong"),
    [
        ("all", 12),
        ("correct", 0),
        ("correct", 24),
        ("correct", 30),
        ("incorrect", 0),
        ("incorrect", 3),
        ("incorrect", 30),
    ],
)
def test_view_predictions_shows_what_was_asked_for(figures, tmp_path, which, wrong):
    predicted = Y_VAL.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 10
    candidates = {"all": 30, "correct": 30 - wrong, "incorrect": wrong}[which]
    train.view_predictions(X_VAL, Y_VAL, predicted, tmp_path / "picture.png", which)
    titles = [(axis.get_title(), axis.title.get_color()) for axis in figures[0].axes if axis.images]
    assert len(titles) == min(20, candidates)
    allowed = {"all": {"green", "red"}, "correct": {"green"}, "incorrect": {"red"}}[which]
    for title, color in titles:
        guess, truth = re.fullmatch(r"(\w+) \((\w+)\)", title).groups()
        assert color == ("green" if guess == truth else "red")
        assert color in allowed
    texts = [text.get_text() for axis in figures[0].axes for text in axis.texts]
    assert texts == ([] if candidates else [f"no {which} predictions"])


def test_view_predictions_titles_belong_to_their_images(figures, tmp_path):
    predicted = np.random.default_rng(3).integers(0, 10, len(Y_VAL))
    train.view_predictions(X_VAL, Y_VAL, predicted, tmp_path / "picture.png")
    shown = [axis for axis in figures[0].axes if axis.images]
    numbers = [int(np.flatnonzero((axis.images[0].get_array() == X_VAL).all((1, 2, 3)))[0]) for axis in shown]
    assert len(set(numbers)) == 20
    assert numbers != sorted(numbers)
    names = [f"{data.CLASS_NAMES[predicted[i]]} ({data.CLASS_NAMES[Y_VAL[i]]})" for i in numbers]
    assert [axis.get_title() for axis in shown] == names


@pytest.mark.parametrize("which", ["Correct", "None", None, ""])
def test_view_predictions_refuses_another_which(which, tmp_path):
    with pytest.raises(ValueError, match="must be 'all', 'correct' or 'incorrect'"):
        train.view_predictions(X_VAL, Y_VAL, Y_VAL, tmp_path / "picture.png", which)


def test_confusion_matrix_counts_true_classes_in_rows(figures, tmp_path):
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 9, 500), random.integers(0, 10, 500)  # of class 9 there is no image
    expected = [[0] * 10 for _ in range(10)]
    for truth, guess in zip(labels, predicted, strict=True):
        expected[truth][guess] += 1
    matrix = train.confusion_matrix(labels, predicted)
    assert matrix.tolist() == expected
    train.plot_confusion(matrix, tmp_path / "confusion.png")
    axis = figures[0].axes[0]
    assert [text.get_text() for text in axis.texts] == [str(number) for row in expected for number in row]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows[3] == f"cat  {expected[3][3] / sum(expected[3]):.1%}"
    assert rows[9] == "truck  0.0%"


@pytest.mark.parametrize("epochs", [1, 3])
def test_plot_histories_draws_every_run(figures, tmp_path, epochs):
    histories = {
        name: {metric: [factor * epoch for epoch in range(epochs)] for metric in METRICS}
        for name, factor in (("one", 1.0), ("two", 2.0))
    }
    train.plot_histories(histories, tmp_path / "curves.png")
    for axis in figures[0].axes:
        labels = ["one, training", "one, validation", "two, training", "two, validation"]
        assert [line.get_label() for line in axis.lines] == labels
        assert [line.get_linestyle() for line in axis.lines] == ["--", "-"] * 2
        assert len({line.get_color() for line in axis.lines}) == 2
        np.testing.assert_array_equal(
            axis.lines[2].get_data(), [range(1, epochs + 1), [2.0 * e for e in range(epochs)]]
        )
        assert (axis.lines[0].get_marker() == "o") == (epochs == 1)


# ---------------------------------------------------------------- The command line


def test_run_makes_every_file_and_records_its_settings(full_run):
    assert full_run.run_dir.parent.name == "wrn-10-1_scheme3_full"
    assert re.fullmatch(r"\d{8}-\d{6}", full_run.run_dir.name)
    settings = {"network": "wrn", "num_convs": 10, "k_factor": 1, "drop_rate": 0.3, "recipe": "tutorial", "scheme": 3}
    settings |= {"epochs": 2, "batch_size": 250, "seed": 0, "holdout": False}
    assert settings.items() <= full_run.config.items()
    assert {"source": "sample", "official": False, "sample": True}.items() <= full_run.config["data"].items()
    assert "chance is 10 %" in full_run.config["data"]["note"]
    assert full_run.config["versions"]["keras"] == keras.__version__
    assert "cores" in full_run.config["device"]
    files = {path.name for path in full_run.run_dir.iterdir()}
    pictures = {f"{name}.png" for name in ("curves", "learning_rate", "confusion")}
    pictures |= {f"predictions_{which}.png" for which in ("all", "correct", "incorrect")}
    records = {"config.json", "metrics.json", "history.csv", "model.keras", "best.weights.h5", "state.npz", "logs"}
    assert files == records | pictures | {"standardiser.keras", ".lock"}
    for name in pictures:
        assert matplotlib.image.imread(full_run.run_dir / name).std() > 0.01  # a picture, and not a blank one


def test_metrics_are_those_of_the_saved_model(full_run):
    metrics, labels = full_run.metrics, data.get_onehot(SAMPLE.y_test)
    assert metrics["result"] == "test_accuracy_end_of_training"
    accuracy = full_run.model.evaluate(SAMPLE.x_test, labels, verbose=0, return_dict=True)["accuracy"]
    assert metrics["test_accuracy_end_of_training"] == pytest.approx(accuracy)
    rows = read_history(full_run.run_dir)
    assert accuracy == pytest.approx(float(rows[-1]["val_accuracy"]))  # the test set is the validation data
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["test_accuracy_best_weights"] == pytest.approx(float(best["val_accuracy"]))
    assert metrics["images_per_second"] * metrics["seconds_per_epoch"] == pytest.approx(1500)
    assert metrics["parameters"] == train.network_of(full_run.model).count_params() == 87_898


def test_tensorboard_has_the_numbers_of_the_history(full_run):
    rows = read_history(full_run.run_dir)
    for split, prefix, names in (
        ("train", "", ("loss", "accuracy", "learning_rate")),
        ("validation", "val_", ("loss",)),
    ):
        log = EventAccumulator(str(full_run.run_dir / "logs" / split), size_guidance={"tensors": 0}).Reload()
        for name in names:
            events = log.Tensors(f"epoch_{name}")
            assert [event.step for event in events] == [0, 1]
            values = [float(event.tensor_proto.float_val[0]) for event in events]
            assert values == pytest.approx([float(row[prefix + name]) for row in rows], rel=1e-6)


def test_screen_says_what_to_expect_and_what_came_out(full_run):
    lines = full_run.printed.splitlines()
    assert lines[0].startswith("Data: A sample of CIFAR-10: expect ")
    assert lines[0].endswith("chance is 10 %.")
    assert "  batch_size      250" in lines
    metrics, run_dir = full_run.metrics, full_run.run_dir
    for expected in (
        r"wrn-10-1: 87,898 parameters; 6 steps an epoch",
        r"Learning rate: 0\.1 at the first update, 0\.0997 after one epoch, 0\.09945 at the last",
        rf"Run folder: {run_dir}",
        rf"To watch it: tensorboard --logdir {run_dir}/logs",
        r"epoch 2/2  accuracy 0\.\d+  loss \d.*val_accuracy.*val_loss.*learning_rate 0\.0997.*",
        r"Expected to end at \d{4}-\d\d-\d\d \d\d:\d\d, in \d:\d\d:\d\d",
        rf"Test accuracy, end-of-training weights: +{metrics['test_accuracy_end_of_training']:.4f}  <- the result",
        rf"Test accuracy, best weights: +{metrics['test_accuracy_best_weights']:.4f}  \(epoch .*: optimistic\)",
    ):
        assert any(re.fullmatch(expected, line) for line in lines), expected
    assert full_run.printed.count("<- the result") == 1
    assert len([line for line in lines if line.startswith("epoch ")]) == 2


def write_shaded_data(folder):
    """Write 200 training images of shade 50, the last tenth of shade 250, and 30 test images of shade 77."""
    folder.mkdir()
    shades = np.full((200, 32, 32, 3), 50, np.uint8)
    shades[180:] = 250
    for i, name in enumerate(data.TRAIN_FILES):
        (folder / name).write_bytes(batch_bytes(shades[40 * i : 40 * i + 40], np.arange(40) % 10))
    (folder / "test_batch").write_bytes(batch_bytes(np.full((30, 32, 32, 3), 77, np.uint8), np.arange(30) % 10))
    return folder


@pytest.mark.parametrize("no_test", [True, False])
def test_holdout_uses_each_split_for_its_purpose_only(tmp_path, monkeypatch, figures, capsys, no_test):
    seen = {"evaluate": [], "predict": []}
    for name, shades in seen.items():
        real = getattr(keras.Sequential, name)

        def spy(model, x=None, *arguments, real=real, shades=shades, **keywords):
            shades.append(int(np.max(x)))
            return real(model, x, *arguments, **keywords)

        monkeypatch.setattr(keras.Sequential, name, spy)
    monkeypatch.setattr(train.wrn, "build_wrn", lambda *_: tiny_network(name="wrn-10-1"))
    arguments = [
        "wrn",
        "--holdout",
        "--scheme",
        "3",
        "--epochs",
        "2",
        "--data",
        str(write_shaded_data(tmp_path / "data")),
    ]
    train.main([*arguments, "--out", str(tmp_path / "runs"), *(["--no-test"] if no_test else [])])

    run_dir = next((tmp_path / "runs/wrn-10-1_scheme3_holdout").iterdir())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    final, split = (250, "validation") if no_test else (77, "test")
    # After each epoch the validation split; at the end, with either weights, the split that is reported.
    assert seen == {"evaluate": [250, 250, final, final], "predict": [final]}
    names = {name for name in metrics if "accuracy" in name}
    assert names == {f"{split}_accuracy_end_of_training", f"{split}_accuracy_best_weights"}
    assert metrics["result"] == f"{split}_accuracy_best_weights"
    assert metrics["images_per_second"] * metrics["seconds_per_epoch"] == pytest.approx(180)
    printed = capsys.readouterr().out
    assert re.search(rf"{split.capitalize()} accuracy, best weights: .* <- the result .*held-out", printed)
    # Standardised by the first 90 %, which are all of shade 50: that is black, whatever the others are.
    standardise = keras.models.load_model(run_dir / "standardiser.keras")
    np.testing.assert_array_equal(np.asarray(standardise(np.full((1, 32, 32, 3), 50, np.uint8))), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("resnet", "invalid choice: 'resnet'"),
        ("", "say which network: svgg or wrn"),
        ("wrn --epochs 0", "'0' is not a whole number from 1"),
        ("wrn --epochs -1", "'-1' is not a whole number"),
        ("wrn --epochs abc", "'abc' is not a whole number"),
        ("wrn --epochs 1.5", "'1.5' is not a whole number"),
        ("wrn --epochs ٣", "is not a whole number"),
        ("wrn --batch-size 0", "'0' is not a whole number from 1"),
        ("wrn --warmup 1", "'1' is not a number from 0 to below 1"),
        ("wrn --weight-decay nan", "'nan' is not a number from 0"),
        ("wrn --label-smoothing -0.1", "'-0.1' is not a number from 0"),
        ("wrn --learning-rate fast", "'fast' is not a number from"),
        ("wrn --seed -1", "'-1' is not a whole number from 0"),
        ("wrn --seed 4294967296", "is not a whole number from 0 to 2147483647"),
        ("wrn --scheme 9", "invalid choice"),
        ("wrn --recipe best", "invalid choice"),
        ("wrn --num-convs 12", "the nearest: 10 or 16"),
        ("wrn --num-convs 4", "the nearest: 10"),
        ("wrn --drop-rate 1.5", "the drop rate must be at least 0 and below 1, not 1.5"),
        ("wrn --drop-rate nan", "the drop rate must be"),
        ("wrn --k-factor 0", "the widening factor"),
        ("svgg --num-convs 16", "num_convs can be set for the wrn only"),
        ("svgg --drop-rate 0.1", "drop_rate can be set for the wrn only"),
        ("wrn --no-test", "--no-test needs --holdout"),
        ("--resume runs/x --seed 1", "seed cannot be given with it"),
        ("wrn --resume runs/x", "network cannot be given with it"),
        ("--resume runs/x", "runs/x is not the folder of a run"),
        ("wrn --num-convs 10 --out file --data sample", "file cannot be written"),
        ("wrn --num-convs 10 --out file/below --data sample", "file/below cannot be written"),
        ("wrn --num-convs 10 --out /proc/below --data sample", "/proc/below cannot be written"),
        ("wrn --num-convs 10 --data nowhere", "nowhere"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SystemExit) as exit_:
        train.main(arguments.split())
    if isinstance(exit_.value.code, str):  # Python prints it, and the exit status is 1
        line = exit_.value.code
        assert "\n" not in line
    else:
        assert exit_.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line
    assert message in line
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]
