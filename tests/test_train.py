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
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import augment
import data
import train

SAMPLE = data.load_cifar10("sample")
X_TRAIN, Y_TRAIN, X_VAL, Y_VAL = SAMPLE.x_train[:60], SAMPLE.y_train[:60], SAMPLE.x_val[:30], SAMPLE.y_val[:30]
METRICS = ["accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds"]


def tiny_network(*_, name="tiny"):
    """Stands in for build_wrn: averages over 8×8 pixels, dropout, and one dense layer."""
    images = keras.Input((32, 32, 3))
    tensor = layers.Dropout(0.2)(layers.Flatten()(layers.AveragePooling2D(8)(images)))
    return keras.Model(images, layers.Dense(10, activation="softmax", dtype="float32")(tensor), name=name)


def tiny_model(seed=0):
    keras.utils.set_random_seed(seed)
    return train.assemble(augment.standardiser(X_TRAIN, 3), tiny_network())


def flat_model(seed=0):
    """A learner's own network: no model inside a model. (A CPU is slow at convolutions in float16.)"""
    keras.utils.set_random_seed(seed)
    stack = [
        keras.Input((32, 32, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, 4, dtype="float32"),
        layers.Dropout(0.5),
    ]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10, activation="softmax", dtype="float32")])


def train_tiny(model, out, optimizer=None, **changes):
    keywords = {"epochs": 3, "batch_size": 20, "out": out} | changes
    return train.compile_and_train(model, "tiny", X_TRAIN, Y_TRAIN, X_VAL, Y_VAL, 3, optimizer, **keywords)


def save_data(path, train_count, test_count, shades=None):
    """Write an .npz file of the sample's first images; return its path."""
    arrays = {"x_train": SAMPLE.x_train, "y_train": SAMPLE.y_train, "x_test": SAMPLE.x_test, "y_test": SAMPLE.y_test}
    counts = {"train": train_count, "test": test_count}
    np.savez(path, **{name: array[: counts[name[2:]]] for name, array in arrays.items()} | (shades or {}))
    return str(path)


def read_history(run_dir):
    with open(run_dir / "history.csv") as file:
        return list(csv.DictReader(file))


def read_scalars(folder):
    """Return {tag: {step: value}} of a folder of TensorBoard; a step that was repeated counts once."""
    log = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    tags = log.Tags()["tensors"]
    return {tag: {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in log.Tensors(tag)} for tag in tags}


def evaluate(model, images, labels, batch_size=500):
    """Return loss and accuracy from the probabilities, in NumPy."""
    probabilities = model.predict(images, batch_size, verbose=0).astype(float)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return loss, (probabilities.argmax(1) == labels).mean()


def assert_equal_arrays(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def usual_dtype_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """What a learner does in a notebook: a model, a name, the data; no folder, no optimizer. And what fit was given."""
    model, callbacks, fit = tiny_model(), [], keras.Sequential.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keras.Sequential, "fit", lambda *given, **kw: callbacks.extend(kw["callbacks"]) or fit(*given, **kw)
        )
        history, run_dir = train_tiny(model, tmp_path_factory.mktemp("api"))
    return SimpleNamespace(model=model, history=history, run_dir=run_dir, callbacks=callbacks)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A whole run through main, of a WRN-10-1 on the sample."""
    out, printed = tmp_path_factory.mktemp("full"), io.StringIO()
    arguments = "wrn --num-convs 10 --k-factor 1 --scheme 3 --epochs 2 --batch-size 250 --data sample --out"
    with contextlib.redirect_stdout(printed):
        train.main([*arguments.split(), str(out)])
    run_dir = next(out.glob("*/*"))
    config, metrics = (json.loads((run_dir / f"{name}.json").read_text()) for name in ("config", "metrics"))
    model, best = (keras.models.load_model(run_dir / f"{name}.keras") for name in ("model", "best"))
    printed = printed.getvalue()
    return SimpleNamespace(run_dir=run_dir, config=config, metrics=metrics, model=model, best=best, printed=printed)


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


@pytest.fixture
def tiny_main(monkeypatch, tmp_path, figures):
    """A function that runs main with a tiny network in place of the WRN; returns the run's folder, config, history."""
    monkeypatch.setattr(train.wrn, "build_wrn", lambda *_: tiny_network(name="wrn-10-1"))

    def run(*arguments):
        train.main(["wrn", "--scheme", "3", "--out", str(tmp_path / "runs"), *map(str, arguments)])
        run_dir = max(tmp_path.glob("runs/*/*"))
        return run_dir, json.loads((run_dir / "config.json").read_text()), read_history(run_dir)

    return run


# ---------------------------------------------------------------- Recipes


@pytest.mark.parametrize(
    ("network", "own"),
    [
        ("svgg", {"optimizer": "rmsprop", "learning_rate": 0.001, "schedule": "constant", "drop_rate": 0.5}),
        ("wrn", {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "inverse_time", "drop_rate": 0.3}),
    ],
)
def test_defaults_are_the_tutorials(network, own):
    options = train.parse_arguments([network])
    size = {"num_convs": 40, "k_factor": 2} if network == "wrn" else {"num_convs": None, "k_factor": None}
    common = {"network": network, "recipe": "tutorial", "scheme": 1, "epochs": 400, "batch_size": 128, "seed": 0}
    plain = {"warmup": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "full_resolution": False}
    plain |= {"holdout": False, "no_test": False, "no_xla": False, "mixed_precision": False}
    assert train.make_config(options) == common | size | own | plain


@pytest.mark.parametrize("network", ["svgg", "wrn"])
def test_each_line_of_a_recipe_is_a_flag_for_both_networks(network):
    changes = {"optimizer": "rmsprop", "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.5, "scheme": 2}
    changes |= {"weight_decay": 0.01, "label_smoothing": 0.2, "drop_rate": 0.1, "epochs": 3, "batch_size": 64}
    words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    config = train.make_config(train.parse_arguments([network, *words]))
    assert set(changes) == set(train.SETTINGS) == set(train.RECIPES["tutorial"][network])
    assert {name: config[name] for name in changes} == changes


def test_drop_rate_on_the_command_line_reaches_either_network():
    for arguments in ("svgg --drop-rate 0.4", "wrn --num-convs 10 --drop-rate 0.4", "wrn --num-convs 10 --drop-rate 0"):
        network = train.build_network(train.make_config(train.parse_arguments(arguments.split())))
        rates = {layer.rate for layer in network.layers if "dropout" in layer.name}
        assert rates == {float(arguments.split()[-1])}


def test_help_shows_the_groups_and_all_four_defaults_of_each_line(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{group}:" in text for group in ("what to run", "the recipe", "the run"))
    for flag, defaults in {
        "scheme": "[1 | 1 | 4 | 4]",
        "drop-rate": "[0.5 | 0.3 | 0.5 | 0.0]",
        "optimizer": "[rmsprop | sgd | sgd | sgd]",
        "learning-rate": "[0.001 | 0.1 | 0.03 | 0.1]",
        "schedule": "[constant | inverse_time | cosine | cosine]",
        "warmup": "[0.0 | 0.0 | 0.25 | 0.25]",
        "weight-decay": "[0.0 | 0.0 | 0.02 | 0.01]",
        "label-smoothing": "[0.0 | 0.0 | 0.1 | 0.1]",
        "epochs": "[400 | 400 | 20 | 20]",
        "batch-size": "[128 | 128 | 128 | 128]",
    }.items():
        assert re.search(rf"--{flag} [^\[\]]*{re.escape(defaults)}", text), flag


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


@pytest.mark.parametrize(("warmup", "rises_until"), [(0.0, 0), (0.1, 10), (0.5, 50), (0.99, 99), (0.999, 99)])
def test_warmup_is_a_share_of_all_updates(warmup, rises_until):
    rate = train.learning_rate(train.RECIPES["modern"]["wrn"] | {"warmup": warmup, "epochs": 10}, 10)
    rates = [float(rate(update)) for update in range(101)]
    assert np.argmax(rates) == rises_until
    assert rates[rises_until] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_weight_decay_works_with_both_optimizers(optimizer):
    settings = train.RECIPES["tutorial"]["svgg"] | {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.5}
    variable = keras.Variable(np.ones(3, "float32"), name="kernel")
    train.make_optimizer(settings, 1).apply([keras.ops.zeros(3)], [variable])
    np.testing.assert_allclose(variable.numpy(), 1 - 0.1 * 0.5)


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


# Of 30 images: batches of 30 and 64 give one update per epoch.
@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ("--optimizer rmsprop --schedule constant --epochs 1 --batch-size 64 --warmup 0.5", [0.1]),
        ("--optimizer rmsprop --schedule inverse_time --epochs 2 --batch-size 10 --weight-decay 0.5", [0.1, 0.099850]),
        ("--optimizer rmsprop --schedule cosine --epochs 1 --batch-size 30 --warmup 0.99", [0.1]),
        ("--optimizer sgd --schedule constant --epochs 2 --batch-size 30 --label-smoothing 0.99", [0.1, 0.1]),
        ("--optimizer sgd --schedule inverse_time --epochs 1 --batch-size 1 --learning-rate 0.001", [0.001]),
        ("--optimizer sgd --schedule cosine --epochs 2 --batch-size 10 --warmup 0.99", [0.0, 0.06]),
    ],
)
def test_each_optimizer_with_each_schedule_trains_also_in_corner_cases(
    tiny_main, tmp_path, monkeypatch, arguments, rates
):
    histories = []
    monkeypatch.setattr(train, "evaluate_run", lambda model, history, *_: histories.append(history))
    small_data = save_data(tmp_path / "data.npz", 30, 10)
    tiny_main("--learning-rate", 0.1, "--data", small_data, *arguments.split())
    assert histories[0]["learning_rate"] == pytest.approx(rates, rel=1e-4)
    assert np.isfinite(list(histories[0].values())).all()


# ---------------------------------------------------------------- Compile and train


def test_training_from_a_notebook_gives_history_and_folder(tiny_run):
    assert sorted(tiny_run.history) == sorted(METRICS)
    assert all(len(values) == 3 for values in tiny_run.history.values())
    assert re.fullmatch(r"\d{8}-\d{6}", tiny_run.run_dir.name)
    assert tiny_run.run_dir.parent.name == "tiny"
    assert isinstance(tiny_run.model.optimizer, keras.optimizers.RMSprop)
    assert tiny_run.history["learning_rate"] == pytest.approx([0.001] * 3)
    assert {path.name for path in tiny_run.run_dir.iterdir()} == {
        *("model.keras", "best.keras", "history.csv", "state.npz", "logs")
    }


def test_history_csv_gives_the_exact_numbers_back(tiny_run):
    rows = read_history(tiny_run.run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {name: [float(row[name]) for row in rows] for name in METRICS} == tiny_run.history


def test_fit_gets_keras_own_callbacks_and_the_recorder_last(tiny_run):
    callbacks = keras.callbacks
    assert [type(one) for one in tiny_run.callbacks] == [
        *(callbacks.ModelCheckpoint, callbacks.TensorBoard, train.RunRecorder)
    ]


def test_rate_of_a_function_is_used_and_recorded_and_best_is_of_the_lowest_validation_loss(tmp_path, monkeypatch):
    rates, weights, types = [0.1, 0.0, 5.0], [], []  # the last step is so large that the loss rises
    recorded, fit = train.RunRecorder.on_epoch_end, keras.Sequential.fit

    def on_epoch_end(self, *given):
        recorded(self, *given)
        weights.append(self.model.get_weights())

    def spied_fit(*given, **keywords):
        types.extend(type(callback) for callback in keywords["callbacks"])
        return fit(*given, **keywords)

    monkeypatch.setattr(train.RunRecorder, "on_epoch_end", on_epoch_end)
    monkeypatch.setattr(keras.Sequential, "fit", spied_fit)
    model = tiny_model()
    weights.append(model.get_weights())
    history, run_dir = train_tiny(model, tmp_path, keras.optimizers.SGD(9.0), lr_schedule_fn=rates.__getitem__)

    assert history["learning_rate"] == pytest.approx(rates)
    moved = [any((a != b).any() for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(weights)]
    assert moved == [True, False, True]
    callbacks = keras.callbacks
    assert types[-2:] == [callbacks.LearningRateScheduler, train.RunRecorder]
    assert set(types[:-2]) == {callbacks.ModelCheckpoint, callbacks.TensorBoard}

    assert np.argmin(history["val_loss"]) == 0
    best = keras.models.load_model(run_dir / "best.keras")
    assert_equal_arrays(best.get_weights(), weights[1])
    assert_equal_arrays(keras.models.load_model(run_dir / "model.keras").get_weights(), weights[3])
    loss, accuracy = evaluate(best, X_VAL, Y_VAL)
    assert (loss, accuracy) == pytest.approx((history["val_loss"][0], history["val_accuracy"][0]), rel=1e-5)
    pair = train.evaluate_performance(model, history, run_dir, X_VAL, Y_VAL[:, None])
    assert pair == pytest.approx([history["val_accuracy"][-1], accuracy])
    assert_equal_arrays(model.get_weights(), weights[3])  # the model has kept its own weights


def test_starting_epoch_counts_on_and_draws_that_epochs_images(tmp_path):
    def optimizer():  # without momentum, so that nothing but the weights is carried over
        return keras.optimizers.SGD(0.1)

    whole, parts = tiny_model(), tiny_model()
    train_tiny(whole, tmp_path, optimizer(), epochs=2)
    train_tiny(parts, tmp_path, optimizer(), epochs=1)
    history, run_dir = train_tiny(parts, tmp_path, optimizer(), epochs=2, starting_epoch=1)
    assert_equal_arrays(whole.get_weights(), parts.get_weights())
    assert len(history["loss"]) == 1
    assert [row["epoch"] for row in read_history(run_dir)] == ["2"]


def test_standardisation_is_not_trained_and_validation_not_augmented(tiny_run):
    before, after = augment.standardiser(X_TRAIN, 3), tiny_run.model.layers[0]
    assert_equal_arrays(before.get_weights(), after.get_weights())
    assert tiny_run.model.trainable_variables == tiny_run.model.layers[1].trainable_variables
    loss, accuracy = evaluate(tiny_run.model, X_VAL, Y_VAL)
    assert (loss, accuracy) == pytest.approx([tiny_run.history[f"val_{name}"][-1] for name in ("loss", "accuracy")])


@pytest.fixture(scope="module")
def own_model_runs(tmp_path_factory):
    """In either precision, a flat model of one's own, trained at once and in two parts; labels (N, 1)."""

    def train_flat(model, run_dir, epochs):
        given = (model, "mine", X_TRAIN, Y_TRAIN[:, None], X_VAL, Y_VAL[:, None], 3, keras.optimizers.SGD(0.1, 0.9))
        return train.compile_and_train(*given, epochs=epochs, batch_size=20, run_dir=run_dir)[0]

    runs = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        whole, begun, resumed = (flat_model(seed) for seed in (0, 0, 1))
        folders = [tmp_path_factory.mktemp(name) for name in ("whole", "parts")]
        train_flat(begun, folders[1], 2)
        histories = [train_flat(whole, folders[0], 3), train_flat(resumed, folders[1], 3)]
        runs[policy] = SimpleNamespace(model=resumed, folders=folders, histories=histories)
    keras.config.set_dtype_policy("float32")
    return runs


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_own_model_resumes_bit_for_bit_from_its_folder(own_model_runs, policy):
    states, histories = [], []
    for folder, history in zip(own_model_runs[policy].folders, own_model_runs[policy].histories, strict=True):
        with np.load(folder / "state.npz") as file:
            states.append(dict(file))
        assert [float(row["val_loss"]) for row in read_history(folder)] == history["val_loss"]
        histories.append({name: values for name, values in history.items() if name != "seconds"})
    assert histories[0] == histories[1]
    assert states[0].keys() == states[1].keys()
    assert_equal_arrays(list(states[0].values()), list(states[1].values()))
    random_states = [array for array in states[0].values() if array.shape == (2,) and array.dtype.kind in "iu"]
    assert len(random_states) == 1  # that of the dropout layer


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_saved_model_gives_the_probabilities_of_the_trained_one(own_model_runs, policy):
    loaded = keras.models.load_model(own_model_runs[policy].folders[1] / "model.keras", compile=False)
    expected = own_model_runs[policy].model.predict(X_VAL, verbose=0)
    np.testing.assert_array_equal(loaded.predict(X_VAL, verbose=0), expected)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-6)
    assert loaded.layers[2].compute_dtype == ("float32" if policy == "float32" else "float16")


BAD_DATA = {
    "floats": {"x_train": X_TRAIN / 255},
    "floats to validate": {"x_val": X_VAL.astype("float32")},
    "grey images": {"x_train": X_TRAIN[..., :1]},
    "one-hot labels": {"y_train": np.eye(10)[Y_TRAIN]},
    "float labels": {"y_val": Y_VAL.astype(float)},
    "labels from 1 to 10": {"y_train": Y_TRAIN + 1},
    "a label of -1": {"y_val": np.where(Y_VAL == 3, -1, Y_VAL)},
    "fewer labels": {"y_train": Y_TRAIN[:-1]},
    "more labels": {"y_val": np.zeros(31, int)},
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_unusable_images_or_labels_are_refused_before_a_folder_is_made(tiny_run, tmp_path, case):
    given = {"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_val": X_VAL, "y_val": Y_VAL} | BAD_DATA[case]
    with pytest.raises(data.DataError) as caught:
        train.compile_and_train(tiny_run.model, "tiny", *given.values(), 3, out=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_xla_reaches_compile(tiny_main, monkeypatch):
    def stop(*_, jit_compile, **__):
        raise train.RunError(f"jit_compile={jit_compile}")

    monkeypatch.setattr(keras.Sequential, "compile", stop)
    for flags, value in (([], "auto"), (["--no-xla"], False)):
        with pytest.raises(SystemExit, match=f"jit_compile={value}"):
            tiny_main("--data", "sample", *flags)


# ---------------------------------------------------------------- A run that diverges


def diverge(model, run_dir, rates, batch_size):
    """Train with the last of `rates` so large that training fails; return the loss that Keras logged in that epoch."""
    losses, before, names = [], [], ("state.npz", "best.keras", "history.csv")
    recorded = train.RunRecorder.on_epoch_end

    def rate(epoch):
        if epoch == len(rates) - 1:
            before.extend((run_dir / name).read_bytes() for name in names)
        return rates[epoch]

    def on_epoch_end(self, epoch, logs=None):
        losses.append(logs["loss"])
        recorded(self, epoch, logs)

    optimizer, x, y = keras.optimizers.SGD(0.1, 0.9, nesterov=True), X_TRAIN, Y_TRAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.RunRecorder, "on_epoch_end", on_epoch_end)
        keywords = {"epochs": 9, "batch_size": batch_size, "lr_schedule_fn": rate, "run_dir": run_dir}
        with pytest.raises(train.RunError, match=rf"no longer numbers after epoch {len(rates)}\. ") as caught:
            train.compile_and_train(model, "nan", x, y, x, y, 3, optimizer, **keywords)
    assert "\n" not in str(caught.value)
    assert [(run_dir / name).read_bytes() for name in names] == before
    assert len(read_history(run_dir)) == len(rates) - 1
    return losses[-1]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_loss_that_is_not_a_number_stops_the_run_and_spoils_nothing(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    assert not np.isfinite(diverge(tiny_model(), tmp_path, [0.1, 1e38], 20))


@pytest.mark.long
def test_weights_that_are_not_numbers_stop_the_run_although_the_loss_is_one(tmp_path):
    keras.utils.set_random_seed(0)
    model = train.assemble(augment.standardiser(X_TRAIN, 3), train.wrn.build_wrn(10, 1))
    assert np.isfinite(diverge(model, tmp_path, [0.01, 1e6], 15))


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_has_the_numbers_of_the_history(tiny_run):
    rows = read_history(tiny_run.run_dir)
    for split, prefix in (("train", ""), ("validation", "val_")):
        scalars = read_scalars(tiny_run.run_dir / "logs" / split)
        for name in ("loss", "accuracy"):
            expected = {step: float(row[prefix + name]) for step, row in enumerate(rows)}
            assert scalars[f"epoch_{name}"] == pytest.approx(expected, rel=1e-6)


def test_tensorboard_has_the_networks_graph(full_run):
    graph = EventAccumulator(str(full_run.run_dir / "logs" / "graph")).Reload().Graph()
    operations = [node.op for node in graph.node]
    assert operations.count("Conv2D") == 10  # one in the input block, and in each of three groups two and the shortcut
    assert len({node.name.split("/")[0] for node in graph.node if node.name.startswith("add")}) == 3


# ---------------------------------------------------------------- Evaluate


def test_one_image_at_a_time_gives_the_same_as_a_batch(tiny_run):
    single, batched = (evaluate(tiny_run.model, X_VAL, Y_VAL, size) for size in (1, 500))
    assert single == pytest.approx(batched, rel=1e-5)


def test_predictions_keep_the_order_of_the_images(tiny_run):
    predicted = train.predict_classes(tiny_run.model, X_TRAIN)
    order = np.random.default_rng(0).permutation(len(X_TRAIN))
    assert len(set(predicted)) > 2
    np.testing.assert_array_equal(train.predict_classes(tiny_run.model, X_TRAIN[order]), predicted[order])
    assert np.mean(predicted == Y_TRAIN) == evaluate(tiny_run.model, X_TRAIN, Y_TRAIN)[1]


@pytest.mark.parametrize("content", [None, b"", b"not a model", "truncated"])
def test_bad_best_model_is_one_line(tiny_run, tmp_path, figures, content):
    if content is not None:
        good = (tiny_run.run_dir / "best.keras").read_bytes()
        (tmp_path / "best.keras").write_bytes(good[: len(good) // 2] if content == "truncated" else content)
    with pytest.raises(train.RunError, match=r"best\.keras is missing or damaged") as caught:
        train.evaluate_performance(tiny_run.model, tiny_run.history, tmp_path, X_VAL, Y_VAL)
    assert "\n" not in str(caught.value)


def test_evaluation_and_pictures_take_labels_in_one_column_and_refuse_others(tiny_run, tmp_path, figures):
    def view(labels, predicted):
        train.view_predictions(X_VAL, labels, predicted, tmp_path / "picture.png")

    column = Y_VAL[:, None]
    view(column, column)
    assert (train.confusion_matrix(column, column) == train.confusion_matrix(Y_VAL, Y_VAL)).all()
    for bad in (Y_VAL + 1, Y_VAL - 1, np.eye(10)[Y_VAL], Y_VAL.astype(float), Y_VAL[:-1]):
        for function, *given in (
            (train.evaluate_performance, tiny_run.model, tiny_run.history, tmp_path, X_VAL, bad),
            (view, bad, Y_VAL),
            (view, Y_VAL, bad),
            (train.confusion_matrix, Y_VAL, bad),
            (train.confusion_matrix, bad, Y_VAL),
        ):
            with pytest.raises(data.DataError):
                function(*given)


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
    for count in (1, 23):
        train.view_predictions(X_VAL, Y_VAL, predicted, tmp_path / "picture.png", count=count)
        shown = [axis for axis in figures[-1].axes if axis.images]
        numbers = [int(np.flatnonzero((axis.images[0].get_array() == X_VAL).all((1, 2, 3)))[0]) for axis in shown]
        assert len(set(numbers)) == count
        assert count == 1 or numbers != sorted(numbers)
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


@pytest.mark.parametrize("runs", [["one"], ["one", "two"]])
@pytest.mark.parametrize("epochs", [1, 3])
def test_plot_histories_draws_every_run(figures, tmp_path, runs, epochs):
    histories = {
        run: {name: [(i + 1) * (k + 1) / (epoch + 2) for epoch in range(epochs)] for k, name in enumerate(METRICS)}
        for i, run in enumerate(runs)
    }
    train.plot_histories(histories, tmp_path / "curves.png")
    colours = {}
    for axis, metric in zip(figures[0].axes, ("accuracy", "loss", "learning_rate"), strict=True):
        columns = {"validation": (f"val_{metric}", "-"), "training": (metric, "--")}
        drawn = {line.get_label(): line for line in axis.lines}
        assert len(drawn) == len(axis.lines) == len(runs) * (1 if metric == "learning_rate" else 2)
        for label, line in drawn.items():
            run, split = label.split(", ")
            column, style = columns[split]
            np.testing.assert_array_equal(line.get_data(), [range(1, epochs + 1), histories[run][column]])
            assert line.get_linestyle() == style
            assert (line.get_marker() == "o") == (epochs == 1)
            assert colours.setdefault(run, line.get_color()) == line.get_color()
    assert len(set(colours.values())) == len(runs)
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().texts]
    assert sorted(legend) == sorted(f"{run}, {split}" for run in runs for split in ("training", "validation"))


# ---------------------------------------------------------------- The command line


def test_run_makes_every_file_and_records_its_settings(full_run):
    assert full_run.run_dir.parent.name == "wrn-10-1_scheme3_full"
    assert re.fullmatch(r"\d{8}-\d{6}", full_run.run_dir.name)
    settings = {"network": "wrn", "num_convs": 10, "k_factor": 1, "full_resolution": False, "drop_rate": 0.3}
    settings |= {"recipe": "tutorial", "scheme": 3, "epochs": 2, "batch_size": 250, "seed": 0, "holdout": False}
    assert settings.items() <= full_run.config.items()
    found = {"source": "sample", "fingerprint": data.fingerprint(SAMPLE), "official": False, "sample": True}
    assert found.items() <= full_run.config["data"].items()
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    assert (versions | {"backend": "tensorflow"}).items() <= full_run.config["versions"].items()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert re.search(rf"\b{cores} cores", full_run.config["device"])
    pictures = {
        "curves.png",
        "confusion.png",
        *(f"predictions_{which}.png" for which in ("all", "correct", "incorrect")),
    }
    records = {"config.json", "metrics.json", "history.csv", "model.keras", "best.keras", "state.npz", "logs"}
    assert {path.name for path in full_run.run_dir.iterdir()} == records | pictures
    for name in pictures:
        assert matplotlib.image.imread(full_run.run_dir / name).std() > 0.01  # a picture, and not a blank one


def test_metrics_are_those_of_the_saved_models(full_run):
    metrics, rows = full_run.metrics, read_history(full_run.run_dir)
    assert metrics["result"] == "test_accuracy_end_of_training"
    for model, weights in ((full_run.model, "end_of_training"), (full_run.best, "best_weights")):
        accuracy = evaluate(model, SAMPLE.x_test, SAMPLE.y_test)[1]
        assert metrics[f"test_accuracy_{weights}"] == pytest.approx(accuracy)
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["test_accuracy_best_weights"] == pytest.approx(float(best["val_accuracy"]))  # on the test set
    assert metrics["images_per_second"] * metrics["seconds_per_epoch"] == pytest.approx(1500)
    assert metrics["parameters"] == 87_898


def test_screen_says_what_to_expect_and_what_came_out(full_run):
    metrics, run_dir = full_run.metrics, full_run.run_dir
    lines = full_run.printed.splitlines()
    for expected in (
        r"  batch_size +250",
        r"Data: the sample, 1500 images for training",
        r"wrn-10-1: 87,898 parameters; 6 steps per epoch",
        r"Learning rate: 0\.1 at the first update, 0\.0997 after one epoch, 0\.09945 at the last",
        rf"Run folder: {run_dir}",
        rf"To watch it: tensorboard --logdir {run_dir}/logs",
        r"Epoch 2/2",
        r"Expected to end at \d{4}-\d\d-\d\d \d\d:\d\d, in \d:\d\d:\d\d",
        rf"Test accuracy, end-of-training weights: +{metrics['test_accuracy_end_of_training']:.4f}"
        r"  <- the result  \(model\.keras\)",
        rf"Test accuracy, best weights: +{metrics['test_accuracy_best_weights']:.4f}"
        rf"  \(best\.keras, epoch {metrics['best_epoch']}, .*: optimistic\)",
    ):
        assert any(re.fullmatch(expected, line) for line in lines), expected
    assert full_run.printed.count("<- the result") == 1


def test_saved_models_take_raw_pixels_in_a_process_without_our_code(full_run, own_model_runs, tmp_path):
    images = SAMPLE.x_test[:40]
    folders = {"full": full_run.run_dir, "mixed": own_model_runs["mixed_float16"].folders[0]}
    paths = {f"{name}_{kind}": str(folders[name] / f"{kind}.keras") for name in folders for kind in ("model", "best")}
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys, keras, numpy as np
images = np.load("images.npy")
models = {{name: keras.models.load_model(path) for name, path in {paths!r}.items()}}
np.savez("probabilities.npz", **{{name: model.predict(images, verbose=0) for name, model in models.items()}})
assert not {{"data", "augment", "svgg", "wrn", "train"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, capture_output=True)
    with np.load(tmp_path / "probabilities.npz") as found:
        assert set(found) == set(paths)
        for name, path in paths.items():
            expected = keras.models.load_model(path, compile=False).predict(images, verbose=0)
            np.testing.assert_allclose(found[name], expected, atol=1e-6)


@pytest.mark.parametrize("no_test", [True, False])
def test_holdout_uses_each_split_for_its_purpose_only(tiny_main, tmp_path, monkeypatch, capsys, no_test):
    # 200 training images of shade 50, the last tenth of shade 250, and 30 test images of shade 77.
    shades = {"x_train": np.full((200, 32, 32, 3), 50, np.uint8), "x_test": np.full((30, 32, 32, 3), 77, np.uint8)}
    shades["x_train"][180:] = 250
    small_data = save_data(tmp_path / "shades.npz", 200, 30, shades)
    seen, trained_on, flow = {"evaluate": [], "predict": []}, [], augment.training_batches
    for name, maxima in seen.items():
        real = getattr(keras.Sequential, name)

        def spy(model, x=None, *arguments, real=real, maxima=maxima, **keywords):
            maxima.append(int(np.max(x)))
            return real(model, x, *arguments, **keywords)

        monkeypatch.setattr(keras.Sequential, name, spy)
    monkeypatch.setattr(augment, "training_batches", lambda x, *given: trained_on.append(x) or flow(x, *given))
    flags = ["--no-test"] if no_test else []
    run_dir, config, _ = tiny_main("--holdout", "--epochs", 2, "--data", small_data, *flags)

    assert run_dir.parent.name == "wrn-10-1_scheme3_holdout"
    metrics = json.loads((run_dir / "metrics.json").read_text())
    final, split = (250, "validation") if no_test else (77, "test")
    # After each epoch the validation split; at the end, with either weights, the split that is reported.
    assert seen == {"evaluate": [250, 250, final, final], "predict": [final]}
    assert len(trained_on) == 1
    assert len(trained_on[0]) == config["data"]["train_count"] == 180
    assert (trained_on[0] == 50).all()
    names = {name for name in metrics if "accuracy" in name}
    assert names == {f"{split}_accuracy_end_of_training", f"{split}_accuracy_best_weights"}
    # The result is of weights that were not chosen on the scored images.
    weights, file = ("end_of_training", "model.keras") if no_test else ("best_weights", "best.keras")
    assert metrics["result"] == f"{split}_accuracy_{weights}"
    assert metrics["images_per_second"] * metrics["seconds_per_epoch"] == pytest.approx(180)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "<- the result" in line]
    assert re.fullmatch(
        rf"{split.capitalize()} accuracy, {weights.split('_')[0]}.*{metrics[metrics['result']]:.4f} .*{file}.*", line
    )
    # Standardised by the first 90 %, which are all of shade 50: that is black, whatever the others are.
    standardise = keras.models.load_model(run_dir / "model.keras").layers[0]
    np.testing.assert_array_equal(np.asarray(standardise(np.full((1, 32, 32, 3), 50, np.uint8))), 0)


def test_mixed_precision_computes_the_network_in_float16_and_the_rest_in_float32(tiny_main, tmp_path):
    small_data = save_data(tmp_path / "data.npz", 60, 20)
    run_dir, config, history = tiny_main("--mixed-precision", "--epochs", 1, "--batch-size", 20, "--data", small_data)
    assert config["mixed_precision"] is True
    assert np.isfinite(float(history[0]["loss"]))
    standardiser, network = keras.models.load_model(run_dir / "model.keras").layers
    assert {layer.compute_dtype for layer in standardiser.layers} == {"float32"}
    assert [layer.compute_dtype for layer in network.layers[1:]] == ["float16"] * 3 + ["float32"]
    assert {weight.dtype for weight in network.weights} == {"float32"}


@pytest.mark.long
def test_xla_compiles_both_networks_with_and_without_whitening_in_both_precisions(tmp_path):
    x, y = X_TRAIN[:8], Y_TRAIN[:8]
    for scheme in (1, 3):
        standardiser = augment.standardiser(x, scheme)
        for network, mixed in itertools.product(("svgg", "wrn"), (False, True)):
            config = train.make_config({"network": network, "mixed_precision": mixed})
            config |= {"num_convs": 10, "k_factor": 1}
            model = train.assemble(standardiser, train.build_network(config))
            keywords = {"epochs": 1, "batch_size": 4, "out": tmp_path, "jit_compile": True}
            optimizer = keras.optimizers.SGD(0.001)
            history, _ = train.compile_and_train(model, "xla", x, y, x, y, scheme, optimizer, **keywords)
            assert model.jit_compile is True
            assert np.isfinite(history["val_loss"][0]), (network, scheme, mixed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("resnet", "invalid choice: 'resnet'"),
        ("", "say which network"),
        ("wrn --epochs 0", "epochs"),
        ("wrn --epochs -1", "epochs"),
        ("wrn --epochs abc", "'abc'"),
        ("wrn --epochs 1.5", "'1.5'"),
        ("wrn --batch-size 0", "batch-size"),
        ("wrn --warmup 1", "warmup"),
        ("wrn --weight-decay nan", "weight-decay"),
        ("wrn --label-smoothing -0.1", "label-smoothing"),
        ("wrn --label-smoothing 1", "label-smoothing"),
        ("wrn --learning-rate fast", "'fast'"),
        ("wrn --learning-rate inf", "learning-rate"),
        ("wrn --learning-rate 0", "learning-rate"),
        ("wrn --seed -1", "seed"),
        ("wrn --seed 4294967296", "seed"),
        ("wrn --scheme 9", "invalid choice"),
        ("wrn --recipe best", "invalid choice"),
        ("wrn --optimizer adam", "invalid choice"),
        ("wrn --schedule linear", "invalid choice"),
        ("wrn --num-convs 12", "the nearest: 10 or 16"),
        ("wrn --num-convs 4", "the nearest: 10"),
        ("wrn --drop-rate 1.5", "drop-rate"),
        ("svgg --drop-rate nan", "drop-rate"),
        ("wrn --k-factor 0", "the widening factor"),
        ("svgg --num-convs 16", "num_convs can be set for the wrn only"),
        ("svgg --full-resolution", "full_resolution can be set for the wrn only"),
        ("wrn --no-test", "--no-test needs --holdout"),
        ("--resume runs/x --seed 1", "seed cannot be given with it"),
        ("wrn --resume runs/x", "network cannot be given with it"),
        ("--resume runs/x", "runs/x is not the folder of a run"),
        ("wrn --num-convs 10 --data nowhere", "nowhere"),
        ("wrn --num-convs 10 --data file", "file"),
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
