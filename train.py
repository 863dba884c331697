"""Step 5 of the tutorial: compile, train with callbacks, evaluate, and look at the predictions. The program to run.

    python train.py wrn                             the tutorial's WRN-40-2: 400 epochs, made for a GPU
    python train.py svgg                            the tutorial's simplified VGG
    python train.py wrn --recipe modern             the same network with newer settings, 20 epochs
    python train.py wrn --data sample --epochs 2    two epochs on the small slice that comes with the code
    python train.py --resume runs/NAME/TIME         continue an interrupted run

A run prints its settings, Keras's progress, and at the end

    Test accuracy, end-of-training weights:   0.…   <- the result (model.keras)
    Test accuracy, best weights:              0.…   (best.keras, epoch …, chosen on the test set: optimistic)

Its folder, runs/NAME/TIME, has all it makes: config.json (the settings), history.csv (one row per epoch), metrics.json
(the results), model.keras and best.keras (models that take raw pixels 0…255 and load without this code), state.npz (to
resume from), logs/ (for TensorBoard) and the pictures.

Keras shortens the way from an idea to its result: `compile_and_train` trains and records any network, so trying another
takes ten lines (see README.md).

Different from the tutorial. It calls the score of its best weights a test accuracy, although the test set chose them;
here the result is the score of the end-of-training weights, which the test set did not choose. With --holdout the best
weights are chosen on 5,000 training images, and the test set is used once, after training. And a killed run can be
resumed: on the same CPU it ends with exactly the weights of an uninterrupted one.

Shapes: B images in a batch, N images in all, H = W = 32 pixels, C = 3 channels.
"""

import argparse
import csv
import datetime
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

import augment  # before Keras: it imports data.py, which sets Keras up
import data
import svgg
import wrn

# isort: split
import keras
import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

BATCH_SIZE_FOR_EVALUATION = 500  # any number gives the same result; the tutorial's 1 takes many times as long


class RunError(ValueError):
    """A run cannot start or continue. The message is one line that says what to do."""


# ---------------------------------------------------------------- Recipes
#
# A recipe is the settings of a training. Each setting is also a flag of train.py (`--weight-decay 0`), so that you can
# see the effect of one change.

SETTINGS = {  # setting: (its meaning, the list of choices or (smallest value, upper limit, itself excluded))
    "scheme": ("augmentation scheme: how training images are transformed and standardised", list(augment.SCHEMES)),
    "drop_rate": ("dropout: share of values (svgg) or feature maps (wrn) set to zero while training", (0.0, 1.0)),
    "optimizer": ("how gradients change the weights, see make_optimizer", ["rmsprop", "sgd"]),
    "learning_rate": ("size of each change; the largest value if it varies", (1e-9, 1000.0)),
    "schedule": ("how the learning rate varies, see learning_rate", ["constant", "inverse_time", "cosine"]),
    "warmup": ("cosine only: share of all updates in which the learning rate first rises from zero", (0.0, 1.0)),
    "weight_decay": ("each update shrinks the weights by this share times the learning rate", (0.0, 1.0)),
    "label_smoothing": ("share of a label's probability that is spread evenly over all classes", (0.0, 1.0)),
    "epochs": ("how often all training images are used", (1, 2**31)),
    "batch_size": ("images per update", (1, 2**31)),
}
# fmt: off
TABLE = {
    #                   tutorial                    modern: the same networks in twenty epochs
    #                   svgg        wrn             svgg      wrn
    "scheme":          (1,          1,              4,        4),
    "drop_rate":       (0.5,        0.3,            0.5,      0.0),  # too few epochs to overfit
    "optimizer":       ("rmsprop",  "sgd",          "sgd",    "sgd"),
    "learning_rate":   (0.001,      0.1,            0.03,     0.1),
    "schedule":        ("constant", "inverse_time", "cosine", "cosine"),
    "warmup":          (0.0,        0.0,            0.25,     0.25),
    "weight_decay":    (0.0,        0.0,            0.02,     0.01),
    "label_smoothing": (0.0,        0.0,            0.1,      0.1),
    "epochs":          (400,        400,            20,       20),
    "batch_size":      (128,        128,            128,      128),
}
# fmt: on


def recipe_column(number):
    """Return one recipe of the table: setting -> value."""
    return {name: values[number] for name, values in TABLE.items()}


RECIPES = {
    "tutorial": {"svgg": recipe_column(0), "wrn": recipe_column(1)},
    "modern": {"svgg": recipe_column(2), "wrn": recipe_column(3)},
}


# ---------------------------------------------------------------- Optimizer and learning rate


def learning_rate(config, steps_per_epoch):
    """Return a number, or one of Keras's schedules: a function from the update to the learning rate.

    (A saved model with a schedule class of our own would not load without this code.)
    """
    rate, updates = config["learning_rate"], config["epochs"] * steps_per_epoch
    if config["schedule"] == "inverse_time":
        # rate / (1 + 0.0005 · update): a tenth after 46 epochs. It is what the tutorial's `decay=0.0005` did in Keras
        # 2; the paper's 0.0005 is a *weight* decay. After 400 epochs the tutorial's WRN was still improving, but this
        # rate had become too small.
        return keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=0.0005)
    if config["schedule"] == "cosine":
        # The rate rises from 0.0 to `rate` (warm-up: large changes are unstable at first), then falls to zero along
        # half a cosine, so that the weights settle.
        warmup = min(round(config["warmup"] * updates), updates - 1)
        return keras.optimizers.schedules.CosineDecay(0.0, updates - warmup, warmup_target=rate, warmup_steps=warmup)
    return rate


def make_optimizer(config, steps_per_epoch):
    """Return the Keras optimizer that `config` describes."""
    rate, decay = learning_rate(config, steps_per_epoch), config["weight_decay"] or None
    if config["optimizer"] == "rmsprop":
        # Divides each weight's gradient by the root of its recent mean square: all weights move about equally fast.
        optimizer = keras.optimizers.RMSprop(rate, weight_decay=decay)
    else:
        # Momentum: each change is a running sum of gradients. What they agree on adds up (to 10 gradients, with 0.9),
        # what they disagree on cancels. Nesterov's form measures the gradient where the momentum is about to carry the
        # weights.
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    # Keras's weight decay is decoupled from the gradient: w −= rate · decay · w. The paper adds it to the gradient,
    # where momentum multiplies it by 10, so the paper's 5e-4 is 5e-3 here; our twenty-epoch recipes use more. Biases
    # and the scales and shifts of batch normalisation are left out: they are few and hardly overfit.
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def assemble(standardiser, network):
    """Return model = standardiser + network: raw pixels (B, 32, 32, 3), 0…255 -> (B, 10) class probabilities.

    This is what is trained, saved and used. standardiser: frozen layers from augment.standardiser; network: from
    build_svgg or build_wrn, or one of your own.
    """
    return keras.Sequential([keras.Input(data.IMAGE_SHAPE), standardiser, network], name="cifar10")


# ---------------------------------------------------------------- Callbacks
#
# A callback is code that Keras runs during training, at the start or end of each batch or epoch. compile_and_train uses
# Keras's ModelCheckpoint and TensorBoard, LearningRateScheduler if asked to, and RunRecorder, which is defined here.


def replace(new, path):
    """Give the complete file `new` the name `path`. A crash leaves the old file or the new one, never a part of one."""
    with open(new, "r+b") as file:  # Windows synchronises only what is open for writing
        os.fsync(file.fileno())  # wait until the content is on the disk
    os.replace(new, path)


def training_state(model):
    """Return all variables that training changes, in a fixed order.

    They are the weights, the running averages of batch normalisation, the random state of the dropout layers (which
    `.weights` leaves out), and the optimizer's momentum and update count.
    """
    trained = [variable for layer in model.layers if layer.trainable for variable in layer.variables]
    return trained + list(model.optimizer.variables)


class RunRecorder(keras.callbacks.Callback):
    """Records each epoch in history.csv and saves the training state in state.npz; the last callback in the list.

    The state is written last. If the run is killed before that, the epoch counts as not done, and a resumed run repeats
    it: from the same state it comes out the same and writes the same files, so nothing ever needs repair. (On a GPU, or
    with another number of CPU cores, the last digits differ. Then best.keras may be from the interrupted attempt until
    there is a better one; its score is measured from the file.)

    Keras's own BackupAndRestore keeps weights, optimizer and epoch too, but forgets the dropout layers' random state,
    overwrites its file in place, and deletes it at the end.
    """

    def __init__(self, run_dir, rows):
        """run_dir: the run's folder; rows: the epochs so far, one dict per row of history.csv."""
        super().__init__()
        self.run_dir, self.rows, self.epochs_before = run_dir, rows, len(rows)

    def on_epoch_begin(self, epoch, logs=None):
        """Note the time and the learning rate of the epoch's first update; estimate the end after the first epoch."""
        self.started = time.perf_counter()
        self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if len(self.rows) == self.epochs_before + 1:
            left = datetime.timedelta(seconds=round(self.rows[-1]["seconds"] * (self.params["epochs"] - epoch)))
            print(f"Expected to end at {datetime.datetime.now() + left:%Y-%m-%d %H:%M}, in {left}", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        """Write the files. Raises RunError, before anything is replaced, if the loss or a weight is not a number."""
        row = {"epoch": epoch + 1} | {name: logs[name] for name in ("accuracy", "loss", "val_accuracy", "val_loss")}
        row |= {"learning_rate": self.rate, "seconds": time.perf_counter() - self.started}
        arrays = [keras.ops.convert_to_numpy(variable) for variable in training_state(self.model)]
        # The loss alone does not tell: fast ReLU kernels turn NaN into 0, so it can be finite when the weights are not.
        if not all(np.isfinite(values).all() for values in (list(row.values()), *arrays)):
            (self.run_dir / "best.new.keras").unlink(missing_ok=True)
            raise RunError(
                f"the loss or the weights are no longer numbers after epoch {epoch + 1}. Likely causes: a learning rate"
                f" that is too high, or damaged data. The state after epoch {epoch} and the best model are untouched;"
                " start a new run with a lower --learning-rate"
            )
        self.rows.append(row)
        if (self.run_dir / "best.new.keras").exists():  # ModelCheckpoint has just written it
            replace(self.run_dir / "best.new.keras", self.run_dir / "best.keras")
        with open(self.run_dir / "history.new.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        replace(self.run_dir / "history.new.csv", self.run_dir / "history.csv")
        np.savez(self.run_dir / "state.new.npz", *arrays, epoch=epoch + 1)
        replace(self.run_dir / "state.new.npz", self.run_dir / "state.npz")


def restore(model, run_dir):
    """Bring a compiled model to the state in run_dir; return the rows of history.csv, none if no epoch is done.

    Raises RunError if the state, the history or the best model is missing or damaged.
    """
    (run_dir / "best.new.keras").unlink(missing_ok=True)  # of an epoch that did not end
    if not (run_dir / "state.npz").exists():
        return []
    try:
        with np.load(run_dir / "state.npz", allow_pickle=False) as state:  # only arrays, nothing that runs
            epoch, arrays = int(state["epoch"]), [state[f"arr_{i}"] for i in range(len(state.files) - 1)]
        for variable, value in zip(training_state(model), arrays, strict=True):
            variable.assign(value)
        with open(run_dir / "history.csv", newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        rows = [row | {"epoch": int(row["epoch"])} for row in rows if row["epoch"] <= epoch]
        load_best(run_dir)  # complain now, not after the last epoch
        if rows[-1]["epoch"] != epoch:
            raise ValueError("history.csv ends before the state")
        return rows
    except Exception as error:  # zip, NumPy, CSV and Keras each raise exceptions of their own
        reason = " ".join(str(error).split())[:150]
        raise RunError(f"{run_dir} cannot be resumed: a file in it is missing or damaged ({reason})") from None


def log_graph(model, folder):
    """Write the graph of the network for TensorBoard's page Graphs, unless `folder` exists already."""
    # TensorBoard's callback has write_graph=True for this, but it cannot draw a model inside a model, as ours is.
    network = model.layers[-1] if isinstance(model.layers[-1], keras.Model) else model
    if not folder.exists():
        graph = tf.function(network.call).get_concrete_function(tf.TensorSpec(network.input_shape)).graph
        with tf.summary.create_file_writer(str(folder)).as_default() as writer:
            tf.summary.graph(graph)
            writer.close()


# ---------------------------------------------------------------- Compile and train


def new_run_dir(out, run_name):
    """Make and return the folder out/run_name/YYYYMMDD-HHMMSS."""
    while True:
        run_dir = Path(out, run_name, datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:  # another run of this name began in the same second
            time.sleep(1)


def compile_and_train(
    model,
    run_name,
    x_train,
    y_train,
    x_val,
    y_val,
    scheme,
    optimizer=None,
    *,
    epochs=400,
    batch_size=128,
    seed=0,
    label_smoothing=0.0,
    lr_schedule_fn=None,
    starting_epoch=0,
    out="runs",
    run_dir=None,
    jit_compile="auto",
):
    """Train `model` and record the run in a folder of its own. Return (history, run_dir).

    model:            any Keras model, raw pixels (B, 32, 32, 3) -> (B, 10) probabilities; `assemble` makes one
    run_name:         the folder is out/run_name/YYYYMMDD-HHMMSS
    x_…, y_…:         images uint8 (N, 32, 32, 3), labels (N,) or (N, 1) of 0…9; the validation images choose best.keras
    scheme:           a key of augment.SCHEMES, or a dict like those; used for the random transformations
    optimizer:        a Keras optimizer; RMSprop with its defaults if None
    epochs:           the number of the last epoch, as in Keras's fit
    lr_schedule_fn:   a function from the epoch, counted from 0, to its learning rate; for an optimizer without schedule
    starting_epoch:   the number of the first epoch if the model has been trained before
    run_dir:          continue the run in this folder, from its state.npz if there is one; default: a new folder
    jit_compile:      False switches the XLA compiler off; "auto" lets Keras decide (on with a GPU)

    history maps accuracy, loss, val_accuracy, val_loss, learning_rate and seconds to lists with one number per epoch.
    Raises ValueError for an unknown scheme or unusable images or labels, RunError if training diverges or run_dir is
    damaged.
    """
    augment.scheme_settings(scheme)
    data.check_images(x_train)
    data.check_images(x_val)
    y_train, y_val = data.check_labels(y_train, len(x_train)), data.check_labels(y_val, len(x_val))
    run_dir = Path(run_dir) if run_dir else new_run_dir(out, run_name)

    # Compiling says what is minimised (the loss), how (the optimizer) and what is shown beside it (the metrics).
    # Cross-entropy is −log of the probability that the network gives to the true class, averaged over the batch: 0 if
    # it is sure and right, and confident mistakes cost most. It is computed from one-hot labels. Label smoothing keeps
    # the network from becoming too sure.
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    model.compile(optimizer or keras.optimizers.RMSprop(), loss, metrics=["accuracy"], jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)  # create the momentum variables, for `restore` to assign to
    rows = restore(model, run_dir)
    log_graph(model, run_dir / "logs" / "graph")

    callbacks = [
        # Saves the whole model whenever the validation loss is lower than ever before. The loss, not the accuracy: it
        # changes with every image, and it notices confident mistakes. RunRecorder gives the file its final name.
        keras.callbacks.ModelCheckpoint(
            str(run_dir / "best.new.keras").replace("{", "{{").replace("}", "}}"),  # Keras formats the path
            monitor="val_loss",
            save_best_only=True,
            initial_value_threshold=min((row["val_loss"] for row in rows), default=None),  # the best so far
        ),
        # Logs the curves of loss and accuracy, to be watched in a browser while the network trains.
        keras.callbacks.TensorBoard(run_dir / "logs", write_graph=False),
    ]
    if lr_schedule_fn:
        # Sets the learning rate at the start of each epoch.
        callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch: float(lr_schedule_fn(epoch))))
    callbacks.append(RunRecorder(run_dir, rows))

    first_epoch = rows[-1]["epoch"] if rows else starting_epoch
    # For each batch `fit` computes the predictions, the loss and its gradients, and lets the optimizer change the
    # weights; after each epoch it evaluates the validation images.
    if first_epoch < epochs:
        model.fit(
            augment.training_batches(x_train, y_train, scheme, batch_size, seed, first_epoch),
            initial_epoch=first_epoch,
            epochs=epochs,
            steps_per_epoch=math.ceil(len(x_train) / batch_size),  # the training batches never end
            validation_data=(x_val, data.get_onehot(y_val)),
            validation_batch_size=BATCH_SIZE_FOR_EVALUATION,
            callbacks=callbacks,
            shuffle=False,  # training_batches shuffles
            verbose=1 if sys.stdout.isatty() else 2,  # a progress bar, or one line per epoch
        )
    model.save(run_dir / "model.new.keras")
    replace(run_dir / "model.new.keras", run_dir / "model.keras")
    # The History object that `fit` returns knows only the epochs since the last start.
    history = {name: [row[name] for row in rows] for name in (rows[0] if rows else {}) if name != "epoch"}
    return history, run_dir


# ---------------------------------------------------------------- Evaluate


def plot_histories(histories, path):
    """Write a figure of accuracy, loss and learning rate over the epochs to `path`.

    histories: {name: history}, a history as returned by compile_and_train; each name gets a colour. How to read it: a
    gap between training (dashed) and validation (solid) is overfitting; if the accuracy is still rising at the end,
    more epochs or a larger learning rate may help. In the tutorial the SVGG's training accuracy saturates near epoch
    100, but its validation loss is lowest near epoch 50.
    """
    figure = Figure(figsize=(16, 4.5))
    for axis, metric in zip(figure.subplots(1, 3), ("accuracy", "loss", "learning_rate"), strict=True):
        for i, (name, history) in enumerate(histories.items()):
            for split, column, line in (("validation", f"val_{metric}", "-"), ("training", metric, "--")):
                if column in history:
                    values = history[column]
                    marker = "o" if len(values) == 1 else None  # a line through one point cannot be seen
                    label, epochs = f"{name}, {split}", range(1, len(values) + 1)
                    axis.plot(epochs, values, line, color=f"C{i}", marker=marker, label=label)
        axis.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def evaluate_performance(model, history, run_dir, x_test, y_test):
    """Draw the curves of a run, and return its accuracy on x_test as a pair of fractions.

    The first is of `model`, which has the end-of-training weights, the second of best.keras in run_dir, saved in the
    epoch with the lowest validation loss. Writes curves.png into run_dir. Raises RunError if best.keras is missing or
    damaged, data.DataError for unusable images or labels.
    """
    data.check_images(x_test)
    labels = data.check_labels(y_test, len(x_test))
    plot_histories({Path(run_dir).parent.name: history}, Path(run_dir, "curves.png"))
    labels, size = data.get_onehot(labels), BATCH_SIZE_FOR_EVALUATION
    # `evaluate` returns the loss and the metrics. Nothing has to be prepared: the model takes raw pixels.
    results = [m.evaluate(x_test, labels, size, verbose=0, return_dict=True) for m in (model, load_best(run_dir))]
    return results[0]["accuracy"], results[1]["accuracy"]


def load_best(run_dir):
    """Return the model in best.keras, saved in the epoch with the lowest validation loss. RunError if there is none."""
    try:
        model = keras.models.load_model(Path(run_dir, "best.keras"), compile=False)
        model.compile(loss="categorical_crossentropy", metrics=["accuracy"])  # for `evaluate`
        return model
    except Exception as error:  # a zip, JSON and HDF5 file in one can be damaged in many ways
        reason = " ".join(str(error).split())[:150]
        raise RunError(f"{Path(run_dir, 'best.keras')} is missing or damaged ({reason})") from None


def predict_classes(model, images):
    """Return the most probable class of each image, int (N,), in the order of `images`, uint8 (N, 32, 32, 3)."""
    # `predict` returns ten probabilities per image.
    return model.predict(images, BATCH_SIZE_FOR_EVALUATION, verbose=0).argmax(axis=1)


def view_predictions(images, labels, predicted, path, which="all", count=20, seed=0):
    """Write a figure of up to `count` random images with their predicted and true classes to `path`.

    images: uint8 (N, 32, 32, 3); labels, predicted: int (N,), in the same order. which: "all", "correct" or
    "incorrect". A title says "predicted (true)", in green where they agree and in red where they do not. Accuracy says
    how many; pictures say which: cats and dogs, ships and airplanes, and some that a person would get wrong too.
    Raises ValueError for another `which`, data.DataError for unusable images or labels.
    """
    data.check_images(images)
    labels, predicted = (data.check_labels(classes, len(images)) for classes in (labels, predicted))
    right = predicted == labels
    groups = {"all": right | ~right, "correct": right, "incorrect": ~right}
    if which not in groups:
        raise ValueError(f"which must be 'all', 'correct' or 'incorrect', not {which!r}")
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(groups[which]))[:count]
    rows = max(1, math.ceil(len(chosen) / 5))
    figure = Figure(figsize=(11, 2.2 * rows))
    axes = figure.subplots(rows, 5, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(images[i])
        title = f"{data.CLASS_NAMES[predicted[i]]} ({data.CLASS_NAMES[labels[i]]})"
        axis.set_title(title, fontsize=9, color="green" if right[i] else "red")
    if len(chosen) == 0:
        axes[0].text(0, 0.5, f"no {which} predictions")
    figure.tight_layout()
    figure.savefig(path)


def confusion_matrix(labels, predicted):
    """Return int (10, 10): in row t and column p, how many images of class t were taken for class p."""
    labels, predicted = data.check_labels(labels, len(labels)), data.check_labels(predicted, len(labels))
    return tf.math.confusion_matrix(labels, predicted, len(data.CLASS_NAMES)).numpy()


def plot_confusion(matrix, path):
    """Write a figure of a confusion matrix, with the accuracy of each class in its row's label, to `path`."""
    totals = np.maximum(matrix.sum(axis=1), 1)
    figure = Figure(figsize=(8, 7))
    axis = figure.subplots()
    axis.imshow(matrix / totals[:, None], cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix):
        dark = number > totals[row] / 2
        axis.text(column, row, number, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    names = data.CLASS_NAMES
    accuracies = [f"{name}  {share:.1%}" for name, share in zip(names, np.diag(matrix) / totals, strict=True)]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), accuracies)
    axis.set(xlabel="predicted", ylabel="true class, and how much of it was recognised")
    figure.tight_layout()
    figure.savefig(path)


# ---------------------------------------------------------------- The command line
#
# `options` has only the flags that were given. `config` has all settings of a run: those of the recipe and the other
# defaults, replaced by the options. It is saved as config.json.


def parse_arguments(arguments):
    """Return the flags that were given, a dict: flag -> value."""
    parser = argparse.ArgumentParser(description="Step 5: train, evaluate and picture a network on CIFAR-10.")
    run = parser.add_argument_group("what to run")
    run.add_argument("network", nargs="?", choices=["svgg", "wrn"], help="simplified VGG or Wide ResNet")
    run.add_argument("--recipe", choices=list(RECIPES), help="the settings of the training (default: tutorial)")
    run.add_argument("--resume", metavar="RUN", help="continue the run in this folder; with --epochs, lengthen it")
    run.add_argument("--data", metavar="SOURCE", help="folder, archive, .npz, or sample (default: download CIFAR-10)")

    size = parser.add_argument_group("the network: WRN-n-K")
    size.add_argument("--num-convs", type=int, metavar="n", help="number of convolutions, 6N + 4 (default: 40)")
    size.add_argument("--k-factor", type=int, metavar="K", help="widening factor (default: 2)")
    size.add_argument("--full-resolution", action="store_true", help="the first group keeps 32×32 pixels (default: no)")

    lines = parser.add_argument_group(
        "the recipe", "Defaults in brackets: tutorial svgg | tutorial wrn | modern svgg | modern wrn."
    )
    for name, (meaning, allowed) in SETTINGS.items():
        text = f"{meaning} [{' | '.join(map(str, TABLE[name]))}]"
        flag = f"--{name.replace('_', '-')}"
        if isinstance(allowed, list):
            known = {str(choice): choice for choice in allowed}  # "1" -> 1
            lines.add_argument(flag, type=lambda word, known=known: known.get(word, word), choices=allowed, help=text)
        else:
            lines.add_argument(flag, type=type(TABLE[name][0]), metavar="X", help=text)

    how = parser.add_argument_group("the run")
    how.add_argument("--holdout", action="store_true", help="train on 45,000, choose the best weights on 5,000 images")
    how.add_argument("--no-test", action="store_true", help="leave the test set untouched, to tune; needs --holdout")
    how.add_argument("--seed", type=int, metavar="X", help="of weights, order, transformations (default: 0)")
    how.add_argument("--mixed-precision", action="store_true", help="compute in float16, faster on a GPU (default: no)")
    how.add_argument("--no-xla", action="store_true", help="do not compile with XLA, see README.md (default: do)")
    how.add_argument("--out", metavar="DIR", help="folder for the runs (default: runs)")

    given = vars(parser.parse_args(arguments)).items()
    options = {name: value for name, value in given if value is not None and value is not False}
    ranges = {name: allowed for name, (_, allowed) in SETTINGS.items() if isinstance(allowed, tuple)}
    for name, (least, limit) in {**ranges, "seed": (0, 2**31)}.items():
        if name in options and not least <= options[name] < limit:
            parser.error(f"--{name.replace('_', '-')} must be at least {least} and below {limit}, not {options[name]}")
    if "resume" in options and (other := sorted(set(options) - {"resume", "epochs", "data"})):
        parser.error(f"--resume takes the settings of the run; {', '.join(other)} cannot be given with it")
    if "resume" not in options and "network" not in options:
        parser.error("say which network, svgg or wrn, or --resume RUN")
    if "no_test" in options and "holdout" not in options:
        parser.error("--no-test needs --holdout: without it the test set is the validation data")
    if options.get("network") == "svgg" and (other := {"num_convs", "k_factor", "full_resolution"} & set(options)):
        parser.error(f"{', '.join(sorted(other))} can be set for the wrn only")
    return options


def make_config(options):
    """Return the config of a new run: the recipe's settings and the other defaults, replaced by what `options` has."""
    network, recipe = options["network"], options.get("recipe", "tutorial")
    wrn_size = {"num_convs": 40, "k_factor": 2} if network == "wrn" else {"num_convs": None, "k_factor": None}
    config = {"network": network, **wrn_size, "full_resolution": False, "recipe": recipe, **RECIPES[recipe][network]}
    config |= {"seed": 0, "holdout": False, "no_test": False, "mixed_precision": False, "no_xla": False}
    return {name: options.get(name, default) for name, default in config.items()}


def build_network(config):
    """Return the untrained network of a run, its weights drawn from the seed. RunError if there is no such network."""
    # Under mixed_float16 layers compute in float16, and keep their weights in float32.
    keras.config.set_dtype_policy("mixed_float16" if config["mixed_precision"] else "float32")
    keras.utils.set_random_seed(config["seed"])
    try:
        if config["network"] == "svgg":
            return svgg.build_svgg(config["drop_rate"])
        return wrn.build_wrn(config["num_convs"], config["k_factor"], config["drop_rate"], config["full_resolution"])
    except ValueError as error:
        raise RunError(str(error)) from None


def describe_machine():
    """Return what a run records about where it was made: the versions of its packages and the device."""
    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    versions |= {"numpy": np.__version__, "matplotlib": matplotlib.__version__, "backend": keras.config.backend()}
    # The cores that this process may use, not all of the machine: with another number, sums are rounded differently.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ", ".join(map(str, keras.distribution.list_devices()))
    return {"versions": versions, "device": f"{devices} ({platform.machine()}, {cores} cores)"}


def write_json(path, content):
    """Write `content` as JSON to `path`, the whole file or nothing."""
    new = path.with_suffix(".new.json")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    replace(new, path)


def open_run(options):
    """Return (config, run_dir) of the run that --resume names, lengthened if --epochs says so."""
    run_dir = Path(options["resume"])
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        config |= make_config(config)  # settings that older runs lack get their defaults
        epochs, source, here = config["epochs"], config["data"]["source"], describe_machine()
        changed = [f"{config[name]} then, {here[name]} now" for name in here if config[name] != here[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise RunError(f"{run_dir} is not the folder of a run, or its config.json is damaged ({reason})") from None
    config["data"]["source"], config["epochs"] = options.get("data", source), options.get("epochs", epochs)
    if config["epochs"] < epochs:
        raise RunError(f"{run_dir} has {epochs} epochs; --epochs can lengthen it, not shorten it")
    if config["epochs"] > epochs and config["schedule"] == "cosine":
        raise RunError(f"{run_dir} cannot be longer: its learning rate is zero after {epochs} epochs; start a new run")
    if config["epochs"] == epochs and (run_dir / "metrics.json").exists():
        raise RunError(f"{run_dir} is finished: all {epochs} epochs are done, the result is in metrics.json")
    if changed:
        print(f"Another machine or another version, so the last digits will differ: {'; '.join(changed)}")
    if not (run_dir / "state.npz").exists():
        print("No epoch of this run is complete: it begins again")
    return config, run_dir


def load_data(config):
    """Return the Cifar10 tuple of a run and note in config["data"] what it is; RunError if it is not the run's."""
    print("Loading the data", flush=True)
    source, recorded = config["data"]["source"], config["data"].get("fingerprint")
    cifar10 = data.load_cifar10(source)
    found = data.fingerprint(cifar10)
    if recorded not in (None, found):
        raise RunError("this run was trained on other data (their fingerprints differ); name those with --data")
    if source not in (None, "sample"):
        source = os.path.realpath(os.path.expanduser(source))  # to be found again from another folder
    kind = data.FINGERPRINTS.get(found)  # None for images of one's own
    config["data"] = {
        "source": source,
        "fingerprint": found,
        "official": kind == "official",
        "sample": kind == "sample",
    }
    return cifar10


def print_config(config, network, run_dir):
    """Say what is about to be done, so that you notice a mistake before training for hours."""
    for name, value in config.items():
        if not isinstance(value, dict) and value is not None:
            print(f"  {name:<15} {value}")
    kind = "official" if config["data"]["official"] else "the sample" if config["data"]["sample"] else "your own images"
    steps = math.ceil(config["data"]["train_count"] / config["batch_size"])
    rate = learning_rate(config, steps)
    rates = [float(rate(update)) if callable(rate) else rate for update in (0, steps, config["epochs"] * steps - 1)]
    print(f"Data: {kind}, {config['data']['train_count']} images for training")
    print(f"{network.name}: {network.count_params():,} parameters; {steps} steps per epoch")
    print("Learning rate: {:.4g} at the first update, {:.4g} after one epoch, {:.4g} at the last".format(*rates))
    print(f"Run folder: {run_dir}")
    print(f"To watch it: {shlex.join(['tensorboard', '--logdir', str(run_dir / 'logs')])}", flush=True)


def evaluate_run(model, history, run_dir, config, x, y):
    """Evaluate and picture a finished run, write metrics.json, and print the two accuracies."""
    end, best = evaluate_performance(model, history, run_dir, x, y)
    # The result is the score of weights that were not chosen on the scored images: the best weights if they were chosen
    # on other images, else the end-of-training weights.
    result = "best_weights" if config["holdout"] and not config["no_test"] else "end_of_training"
    predicted = predict_classes(load_best(run_dir) if result == "best_weights" else model, x)
    for which in ("all", "correct", "incorrect"):
        view_predictions(x, y, predicted, run_dir / f"predictions_{which}.png", which)
    plot_confusion(confusion_matrix(y, predicted), run_dir / "confusion.png")

    split, seconds = "validation" if config["no_test"] else "test", float(np.median(history["seconds"]))
    best_epoch = int(np.argmin(history["val_loss"])) + 1
    metrics = {
        "result": f"{split}_accuracy_{result}",
        f"{split}_accuracy_end_of_training": end,
        f"{split}_accuracy_best_weights": best,
        "best_epoch": best_epoch,
        "parameters": model.layers[-1].count_params(),
        "seconds_per_epoch": seconds,  # median, validation included
        "images_per_second": config["data"]["train_count"] / seconds,
    }
    write_json(run_dir / "metrics.json", metrics)

    chosen_on = "validation images" if config["holdout"] else "the test set: optimistic"
    title, arrow = f"{split.capitalize()} accuracy", "  <- the result"
    end_arrow, best_arrow = ("", arrow) if result == "best_weights" else (arrow, "")
    print(f"{title}, end-of-training weights:   {end:.4f}{end_arrow}  (model.keras)")
    note = f"best.keras, epoch {best_epoch}, chosen on {chosen_on}"
    print(f"{title}, best weights:              {best:.4f}{best_arrow}  ({note})")


def train_run(config, run_dir, network, cifar10):
    """Train `network` as `config` says, from where the run in run_dir is, and evaluate it."""
    (run_dir / "metrics.json").unlink(missing_ok=True)  # of a run that is now lengthened
    x_train, y_train, x_val, y_val, x_test, y_test = cifar10
    # As in the tutorial: all 50,000 for training, the test set as validation data. The tutorial allows this because
    # nothing is chosen by it. That holds for the end-of-training weights, but not for the best weights.
    if not config["holdout"]:
        x_train, y_train = np.concatenate([x_train, x_val]), np.concatenate([y_train, y_val])
        x_val, y_val = x_test, y_test
    config["data"]["train_count"] = len(x_train)
    write_json(run_dir / "config.json", config)
    print_config(config, network, run_dir)
    print("Fitting the standardisation to the training images", flush=True)
    model = assemble(augment.standardiser(x_train, config["scheme"]), network)
    history, _ = compile_and_train(
        model,
        run_dir.parent.name,
        x_train,
        y_train,
        x_val,
        y_val,
        config["scheme"],
        make_optimizer(config, math.ceil(len(x_train) / config["batch_size"])),
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        seed=config["seed"],
        label_smoothing=config["label_smoothing"],
        run_dir=run_dir,
        jit_compile=False if config["no_xla"] else "auto",
    )
    # With --no-test the validation images stand in for the test images.
    x, y = (x_val, y_val) if config["no_test"] else (x_test, y_test)
    evaluate_run(model, history, run_dir, config, x, y)
    print(f"Models, pictures and history: {run_dir}")
    if config["data"]["sample"]:
        print("That was a sample, 3 % of CIFAR-10. For all of it: python train.py wrn --recipe modern")
    else:
        print(f"To compare runs: {shlex.join(['tensorboard', '--logdir', str(run_dir.parent.parent)])}")


def main(arguments=None):
    """Train, or continue to train, then evaluate: the command line of this step."""
    options = parse_arguments(arguments)
    out, run_dir = Path(options.get("out", "runs")), None
    advice = "nothing was written; give the same command again"
    try:
        if "resume" in options:
            config, run_dir = open_run(options)
        else:
            config = make_config(options) | {"data": {"source": options.get("data")}} | describe_machine()
        network = build_network(config)
        if not run_dir:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()  # complain now if nothing can be written there
        cifar10 = load_data(config)
        if not run_dir:
            recipe = "" if config["recipe"] == "tutorial" else f"_{config['recipe']}"
            protocol = "holdout" if config["holdout"] else "full"
            run_dir = new_run_dir(out, f"{network.name}{recipe}_scheme{config['scheme']}_{protocol}")
        advice = f"continue with: {shlex.join(['python', sys.argv[0], '--resume', str(run_dir)])}"
        train_run(config, run_dir, network, cifar10)
    except (data.DataError, RunError) as error:
        raise SystemExit(f"error: {error}") from None
    except (OSError, tf.errors.OpError) as error:  # the disk is full, or the run's folder has been taken away
        raise SystemExit(f"error: {' '.join(str(error).split())[:300]}. Fix that, then {advice}") from None
    except KeyboardInterrupt:
        print(f"\nStopped; {advice}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
