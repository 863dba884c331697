"""Step 5 of 5: compile, train with callbacks, evaluate, and look at the predictions. The program to run.

    python train.py wrn                             the tutorial's WRN-40-2: 400 epochs, better on a GPU
    python train.py svgg                            the tutorial's simplified VGG
    python train.py wrn --recipe modern             the same network with newer settings, 20 epochs
    python train.py wrn --data sample --epochs 2    two epochs on the small slice that comes with the code
    python train.py --resume runs/NAME/TIME         continue an interrupted run

A run prints its settings, Keras's progress, and at the end

    Test accuracy, end-of-training weights:   0.…   <- the result  (model.keras)
    Test accuracy, best weights:              0.…   (best.keras, epoch …, chosen on the test set: optimistic)

The tutorial in four lines, which this module wraps in functions:

    model.compile(optimizer, loss, metrics=["accuracy"])             what is minimised, how, and what is shown beside it
    history = model.fit(batches, validation_data=…, callbacks=…)     train, epoch after epoch
    loss, accuracy = model.evaluate(x_test, onehot_labels)           how many are right
    probabilities = model.predict(x_test)                            which ones, and how sure the network is

The order of the parts: recipes and optimizer; compile and train; evaluate; look. Behind them stand the recording of a
run and the command line, which you need not read to train a network.

The tutorial calls the score of its best weights a test accuracy, although the test set chose them. Here the result is
the score of the end-of-training weights, which the test set did not choose; or, with --holdout, that of the best
weights, chosen on 5,000 training images.

Shapes: B images in a batch, N images in all, H = W = 32 pixels, C = 3 channels.
"""

import argparse
import contextlib
import csv
import datetime
import json
import math
import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import time
import zipfile
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

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

BATCH_SIZE_FOR_EVALUATION = 500  # the result is the same up to rounding; the tutorial's 1 takes many times as long


# ---------------------------------------------------------------- Recipes
#
# A recipe is the settings of a training. Each line of this table is also a flag of the command line, so that you can
# see the effect of one change: `--weight-decay 0`. `python train.py --help` says what each means.

# fmt: off
TABLE = {
    #                   tutorial                    modern
    #                   svgg        wrn             both       points: WRN-16-2 in ten epochs, see results/README.md
    "scheme":          (1,          1,              4),        # small shifts by whole pixels: +5.5 points
    "drop_rate":       (0.5,        0.3,            0.0),      # +5.6 points: it overfits little in ten epochs
    "optimizer":       ("rmsprop",  "sgd",          "sgd"),    # the paper's, with its learning rate
    "learning_rate":   (0.001,      0.1,            0.1),      # 0.2 was no better
    "schedule":        ("constant", "inverse_time", "cosine"), # falls to zero, so that the weights settle
    "warmup":          (0.0,        0.0,            0.25),     # share of all updates: +2.2 points
    "weight_decay":    (0.0,        0.0,            0.01),     # half of it: +3.2 points; all of it: about the same
    "label_smoothing": (0.0,        0.0,            0.1),      # no difference in ten epochs
    "epochs":          (400,        400,            20),       # an evening on two CPU cores
    "batch_size":      (128,        128,            128),      # the paper's; 64 was no better
}
# fmt: on
COLUMNS = {("tutorial", "svgg"): 0, ("tutorial", "wrn"): 1, ("modern", "svgg"): 2, ("modern", "wrn"): 2}
RECIPES = {which: {name: values[i] for name, values in TABLE.items()} for which, i in COLUMNS.items()}


# ---------------------------------------------------------------- Optimizer and learning rate


def learning_rate(settings, steps_per_epoch):
    """Return a number, or one of Keras's schedules: a function from the number of the update to the learning rate.

    An update is one change of the weights, by the gradient of one batch; an epoch has `steps_per_epoch` of them.
    settings: a recipe, or a dict with the same keys. (The schedules are Keras's own, so that a saved model loads
    without this code.)
    """
    rate, updates = settings["learning_rate"], settings["epochs"] * steps_per_epoch
    if settings["schedule"] == "inverse_time":
        # rate / (1 + 0.0005 · update): a tenth after 46 epochs, an eightieth (0.0013) after 400. It is what the
        # tutorial's `decay=0.0005` did in Keras 2; the paper's 0.0005 is a *weight* decay. The accuracy of the
        # tutorial's WRN was still rising after 400 epochs.
        return keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=0.0005)
    if settings["schedule"] == "cosine":
        # The rate rises from 0.0 to `rate` (warm-up: large changes are unstable at first), then falls to zero along
        # half a cosine, so that the weights settle.
        warmup = min(round(settings["warmup"] * updates), updates - 1)
        return keras.optimizers.schedules.CosineDecay(0.0, updates - warmup, warmup_target=rate, warmup_steps=warmup)
    return rate


def make_optimizer(settings, steps_per_epoch):
    """Return the Keras optimizer that `settings` describe; see learning_rate."""
    rate, decay = learning_rate(settings, steps_per_epoch), settings["weight_decay"] or None
    if settings["optimizer"] == "rmsprop":
        # Divides each weight's gradient by the root of its recent mean square: all weights move about equally fast.
        optimizer = keras.optimizers.RMSprop(rate, weight_decay=decay)
    else:
        # Momentum: each change is a sum of gradients, in which an older one counts 0.9 times as much as the next. What
        # they agree on adds up (a constant gradient to ten times its size), what they disagree on cancels. Nesterov's
        # form measures the gradient where the momentum is about to carry the weights. The paper's settings for its WRN:
        # this optimizer, 0.1, and batches of 128.
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    # Weight decay shrinks every weight a little at each update, against overfitting. Keras's is decoupled from the
    # gradient: w −= rate · decay · w. The paper adds it to the gradient, where momentum multiplies it by 10, so the
    # paper's 5e-4 is 5e-3 here; the modern recipe has twice that. Biases and the scales and shifts of batch
    # normalisation are left out: they are few and hardly overfit.
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


# ---------------------------------------------------------------- Compile and train


def assemble(standardiser, network):
    """Return model = standardiser + network: raw pixels (B, 32, 32, 3), 0…255 -> (B, 10) class probabilities.

    This is what is trained, saved and used. standardiser: frozen layers from augment.standardiser; network: from
    build_svgg or build_wrn, or one of your own.
    """
    return keras.Sequential([keras.Input(data.IMAGE_SHAPE), standardiser, network], name="cifar10")


def training_and_validation(cifar10, holdout=False):
    """Return x_train, y_train, x_val, y_val of a Cifar10 tuple.

    As in the tutorial, all 50,000 images are for training, and the test set is the validation data. The tutorial says
    why that is allowed: nothing is chosen by it. That holds for the end-of-training weights, not for the best weights.
    With `holdout` 45,000 images are for training and 5,000 for validation, and the test set is kept for the end.
    """
    x_train, y_train, x_val, y_val, x_test, y_test = cifar10
    if holdout:
        return x_train, y_train, x_val, y_val
    return np.concatenate([x_train, x_val]), np.concatenate([y_train, y_val]), x_test, y_test


def make_callbacks(run_dir, history, config, lr_schedule_fn=None):
    """Return the list of callbacks for `fit`: code that Keras runs at the start or end of each batch or epoch.

    run_dir: the run's folder; history: a dict of lists with one entry per epoch; config: the content of config.json;
    lr_schedule_fn: see compile_and_train.
    """
    # ModelCheckpoint saves the whole model whenever the validation loss is lower than ever before. The loss, not the
    # accuracy: it also notices how sure each answer is, and most of all confident mistakes.
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(run_dir / "best.new.keras").replace("{", "{{").replace("}", "}}"),  # Keras formats the path
        monitor="val_loss",
        save_best_only=True,
        initial_value_threshold=min(history["val_loss"], default=None),  # the lowest so far, if the run is resumed
    )
    # TensorBoard logs the curves of loss and accuracy, to be watched in a browser during training. (Its learning
    # rate is that of the epoch's end; history.csv has that of the beginning. For the graph see open_run.)
    tensorboard = keras.callbacks.TensorBoard(run_dir / "logs", write_graph=False)
    # RunRecorder, our own, does all that makes a run resumable, and gives best.keras its name when the epoch is
    # complete. So it comes last.
    callbacks = [checkpoint, tensorboard, RunRecorder(run_dir, history, config)]
    if lr_schedule_fn:
        # LearningRateScheduler sets the learning rate at the start of each epoch.
        callbacks.insert(-1, keras.callbacks.LearningRateScheduler(lambda epoch: float(lr_schedule_fn(epoch))))
    return callbacks


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
    out="runs",
    run_dir=None,
    jit_compile="auto",
    notes=None,
):
    """Train `model` and record the run in a folder of its own. Return (history, run_dir).

    model:            any Keras model, raw pixels (B, 32, 32, 3) -> (B, 10) probabilities; `assemble` makes one
    run_name:         the folder is out/run_name/YYYYMMDD-HHMMSS
    x_…, y_…:         images uint8 (N, 32, 32, 3), labels (N,) or (N, 1) of 0…9; the validation images choose best.keras
    scheme:           a key of augment.SCHEMES, or a dict like those; used for the random transformations
    optimizer:        a new Keras optimizer; RMSprop with its defaults if None
    epochs:           the number of the last epoch, as in Keras's fit
    batch_size:       images per update
    seed:             of the order of the images and their transformations (the weights are drawn before, see
                      keras.utils.set_random_seed)
    label_smoothing:  share of a label's probability that is spread evenly over all classes
    lr_schedule_fn:   a function from the epoch, counted from 0, to its learning rate; for an optimizer without schedule
    run_dir:          continue the run in this folder, or begin it there; default: a new folder
    jit_compile:      False switches the XLA compiler off; "auto" lets Keras decide (on with a GPU)
    notes:            a dict of further entries for config.json

    history maps epoch, accuracy, loss, val_accuracy, val_loss, learning_rate and seconds to lists with one entry per
    epoch. To resume, build model and optimizer as before and give run_dir. Raises ValueError (of which RunError and
    data.DataError are kinds) for unusable arguments, and RunError if training diverges, if another process uses
    run_dir, or if the run in run_dir has other settings or is damaged (then the run and the model's weights stay as
    they are).
    """
    # Complain now, not after an hour, about what cannot be right; then note what the run is (see "Recording a run").
    x_train, y_train = data.check_data(x_train, y_train, "x_train", "y_train")
    x_val, y_val = data.check_data(x_val, y_val, "x_val", "y_val")
    augment.scheme_settings(scheme)
    optimizer = optimizer or keras.optimizers.RMSprop()
    check_model(model, optimizer, x_train[:4])
    call = {"scheme": scheme, "epochs": epochs, "batch_size": batch_size, "label_smoothing": label_smoothing}
    call |= {"seed": seed, "no_xla": not jit_compile, **(notes or {})}
    config = describe_run(call, (x_train, y_train, x_val, y_val), optimizer)

    # Compiling says what is minimised (the loss), how (the optimizer) and what is shown beside it (the metrics).
    # Cross-entropy is −log of the probability that the network gives to the true class, averaged over the batch: 0 if
    # it is sure and right, and confident mistakes cost most. It is computed from one-hot labels. Label smoothing keeps
    # the network from becoming too sure.
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)

    run_dir = Path(run_dir) if run_dir else new_run_dir(out, run_name)
    # An interrupted run goes on with its weights and history.
    with open_run(model, run_dir, config) as history, interrupts_between_batches() as stopper:
        # For each batch `fit` computes the predictions, the loss and its gradients, and lets the optimizer change the
        # weights; after each epoch it evaluates the validation images. It returns a History of the epochs of this call;
        # ours, kept by RunRecorder, has those from before a resume too.
        epochs_done = len(history["epoch"])
        if epochs_done < epochs:
            model.fit(
                augment.training_batches(x_train, y_train, scheme, batch_size, seed, first_epoch=epochs_done),
                initial_epoch=epochs_done,
                epochs=epochs,
                steps_per_epoch=math.ceil(len(x_train) / batch_size),  # the training batches never end
                validation_data=(x_val, data.get_onehot(y_val)),
                validation_batch_size=BATCH_SIZE_FOR_EVALUATION,
                callbacks=[stopper, *make_callbacks(run_dir, history, config, lr_schedule_fn)],
                shuffle=False,  # training_batches shuffles
                verbose=1 if sys.stdout.isatty() else 2,  # a progress bar, or one line per epoch
            )
        model.save(run_dir / "model.new.keras")
        keep_model(run_dir / "model.new.keras", run_dir / "model.keras")
        write_json(run_dir / "config.json", config)  # if no epoch was left to train, RunRecorder has not done it
    return history, run_dir


# ---------------------------------------------------------------- Evaluate


def plot_histories(histories, path, split="validation"):
    """Write a figure of accuracy, loss and learning rate over the epochs to `path`.

    histories: {name: history}, a history as returned by compile_and_train; each name gets a colour. split: what the
    legend calls the validation data, "validation" or "test". How to read it: if training (dashed) is much better than
    validation (solid), the network overfits. Training may also be the worse one, since augmentation and dropout make it
    harder. If the accuracy is still rising at the end, more epochs or a larger learning rate may help. In the tutorial
    the SVGG's training accuracy saturates near epoch 100, but its validation loss is lowest near epoch 50 and then
    jumps about: there a learning rate that falls would help.
    """
    figure = Figure(figsize=(16, 4.5), layout="constrained")
    for axis, metric in zip(figure.subplots(1, 3), ("accuracy", "loss", "learning_rate"), strict=True):
        for i, (name, history) in enumerate(histories.items()):
            style = {"color": f"C{i}"}
            dot, cross = ("o", "x") if len(history["epoch"]) == 1 else (None, None)  # one point makes no line
            if metric == "learning_rate":
                axis.plot(history["epoch"], history[metric], label=name, marker=dot, **style)
            else:
                axis.plot(history["epoch"], history[f"val_{metric}"], label=f"{name}, {split}", marker=dot, **style)
                axis.plot(history["epoch"], history[metric], "--", label=f"{name}, training", marker=cross, **style)
        axis.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path)


@contextlib.contextmanager
def best_weights(model, run_dir):
    """Within a `with` block `model` has the weights of best.keras in run_dir; then it gets its own back.

    best.keras is a whole model: keras.models.load_model loads it anywhere. Here its weights are enough, which works for
    layers of your own too, and keeps what the model was compiled with. Raises RunError if the file is missing or
    damaged.
    """
    weights = model.get_weights()
    try:
        try:
            model.load_weights(Path(run_dir, "best.keras"))
        except Exception as error:  # a zip, JSON and HDF5 file in one can be damaged in many ways
            raise RunError(
                f"{Path(run_dir, 'best.keras')} is missing or damaged ({data.one_line(error)[:150]})"
            ) from None
        yield
    finally:
        model.set_weights(weights)


def evaluate_performance(model, history, run_dir, x_test, y_test):
    """Evaluate a run. Return its accuracy on x_test as a pair of fractions: end-of-training weights, best weights.

    The first is of `model` as it is, the second of best.keras, saved in the epoch with the lowest validation loss (None
    if that file is missing or damaged). Draws the curves, curves.png, and writes both numbers to metrics.json in
    run_dir, and says which is the result: if x_test was the validation data, it chose the best weights, so the
    end-of-training weights' score counts; otherwise the best weights' score. Raises data.DataError for unusable
    images or labels, RunError if run_dir is not the folder of a run.
    """
    x_test, y_test = data.check_data(x_test, y_test, "x_test", "y_test")
    onehot, size = data.get_onehot(y_test), BATCH_SIZE_FOR_EVALUATION
    # `evaluate` returns the loss and the metrics. Nothing has to be prepared: the model takes raw pixels.
    end = model.evaluate(x_test, onehot, size, verbose=0, return_dict=True)["accuracy"]
    try:
        with best_weights(model, run_dir):
            best = model.evaluate(x_test, onehot, size, verbose=0, return_dict=True)["accuracy"]
    except RunError as error:
        print(f"The best weights have no score: {error}")
        best = None
    record_scores(model, history, Path(run_dir), end, best, data.fingerprint((x_test, y_test)))
    return end, best


# ---------------------------------------------------------------- Look
#
# Accuracy says how many; pictures say which, and why.


def view_predictions(images, labels, probabilities, path, which="all", count=20, seed=0):
    """Write a figure of up to `count` images with their predicted and true classes to `path`.

    images: uint8 (N, 32, 32, 3); labels: int (N,); probabilities: (N, 10) from `model.predict`, in the same order.
    which: "all" or "correct", drawn at random; or "incorrect", the most confident mistakes. (Many are cats and dogs, or
    ships and airplanes, and some a person would get wrong too.) A title says "predicted, how sure (true)", in green if
    that is right and in red if not. Raises ValueError for another `which`, data.DataError for unusable images or
    labels.
    """
    images, labels = data.check_data(images, labels)
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right, order = predicted == labels, np.random.default_rng(seed).permutation(len(images))
    by_confidence = np.argsort(-sure, kind="stable")
    groups = {"all": order, "correct": order[right[order]], "incorrect": by_confidence[~right[by_confidence]]}
    if which not in groups:
        raise ValueError(f"which must be 'all', 'correct' or 'incorrect', not {which!r}")
    chosen = groups[which][:count]
    rows = max(1, math.ceil(len(chosen) / 5))
    figure = Figure(figsize=(11, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 5, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(images[i])
        title = f"{data.CLASS_NAMES[predicted[i]]} {sure[i]:.0%} ({data.CLASS_NAMES[labels[i]]})"
        axis.set_title(title, fontsize=9, color="green" if right[i] else "red")
    if len(chosen) == 0:
        axes[0].text(0, 0.5, f"no {which} predictions")
    figure.savefig(path)


def plot_confusion(labels, predicted, path):
    """Write a figure to `path`: in row t and column p, how many images of class t were taken for class p.

    labels, predicted: int (N,), 0…9. Row labels show each class's accuracy.
    """
    names = data.CLASS_NAMES
    matrix = tf.math.confusion_matrix(labels, predicted, len(names)).numpy()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, number, ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), [f"{name}  {shares[i, i]:.1%}" for i, name in enumerate(names)])
    axis.set(xlabel="predicted class", ylabel="true class (accuracy)")
    figure.savefig(path)


def layer_outputs(model, x):
    """Return the output of each layer of a model for the batch x, in order.

    If `model` is sequential and contains another model, the outputs of the inner model's layers stand in its place.
    """
    if not isinstance(model, keras.Sequential):
        # The functional API gives every tensor of a network. So a second model, with the same layers and weights but
        # all of their outputs, shows what the first one computes on the way. (Why not layer.output? If a layer is a
        # model itself, that is the output inside that model, not in this network. So we call the getter, fget, of the
        # property that its base class, keras.Layer, has.)
        outputs = [keras.Layer.output.fget(layer) for layer in model.layers]
        return keras.Model(model.inputs, outputs)(x, training=False)
    outputs = []
    for layer in model.layers:
        outputs += layer_outputs(layer, x) if isinstance(layer, keras.Model) else [layer(x, training=False)]
        x = outputs[-1]
    return outputs


def view_feature_maps(model, image, path, count=8):
    """Write a figure of what the layers of a network see in one image, uint8 (32, 32, 3), to `path`.

    There is one row for each size of feature map. It shows the `count` maps with the largest values, of the last layer
    with that size. Near the image they show edges and outlines, then parts, and at last blobs that say where something
    is. To understand a mistake, look at what the network saw. If the layers cannot be reached, because the model is
    neither sequential nor functional, it prints that and draws nothing.
    """
    try:
        outputs = layer_outputs(model, tf.cast(image[None], tf.float32))
    except (AttributeError, ValueError):
        print("No feature maps drawn: the layers of this model cannot be reached (it is not sequential or functional)")
        return
    # The last output of each height: (1, H, W, channels) with H above 1.
    maps = {x.shape[1]: tf.cast(x[0], tf.float32).numpy() for x in outputs if len(x.shape) == 4}
    maps.pop(1, None)
    figure = Figure(figsize=(1.2 * (count + 1), 1.4 * max(len(maps), 1)), layout="constrained")
    axes = figure.subplots(max(len(maps), 1), count + 1, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    axes[0, 0].imshow(image)
    probabilities = tf.cast(outputs[-1][0], tf.float32).numpy()
    best = [f"{data.CLASS_NAMES[i]} {probabilities[i]:.0%}" for i in probabilities.argsort()[:-4:-1]]
    axes[0, 0].set_title("\n".join(best), fontsize=9)
    for row, (height, values) in zip(axes[:, 1:], maps.items(), strict=False):
        strongest = np.argsort(-values.max(axis=(0, 1)), kind="stable")[:count]
        title = f"{height}×{height}, {len(strongest)} of {values.shape[2]} maps"
        row[0].set_title(title, fontsize=9, loc="left")
        for axis, channel in zip(row, strongest, strict=False):
            axis.imshow(values[:, :, channel], cmap="gray")
    figure.savefig(path)


def look(model, x, y, run_dir):
    """Draw a run's pictures: predictions, confusion matrix, and the feature maps of its most confident mistake.

    x: uint8 (N, 32, 32, 3); y: (N,) or (N, 1) of 0…9; run_dir: the folder for them. Raises data.DataError for unusable
    images or labels.
    """
    (x, y), run_dir = data.check_data(x, y), Path(run_dir)
    # `predict` returns ten probabilities per image, in the order of the images.
    probabilities = model.predict(x, BATCH_SIZE_FOR_EVALUATION, verbose=0)
    predicted = probabilities.argmax(axis=1)
    for which in ("all", "correct", "incorrect"):
        view_predictions(x, y, probabilities, run_dir / f"predictions_{which}.png", which)
    plot_confusion(y, predicted, run_dir / "confusion.png")
    worst = np.argmax(probabilities.max(axis=1) * (predicted != y))  # the first image if there is no mistake
    view_feature_maps(model, x[worst], run_dir / "feature_maps.png")


# ---------------------------------------------------------------- Recording a run
#
# You can train without reading this part. It keeps four promises: a run that is killed loses only the epoch under way;
# a resumed run ends with the weights of an undisturbed one; the results of a finished run stay until it has been
# lengthened by one complete epoch; and impossible settings are reported before the first epoch.
#
# Keras's own BackupAndRestore keeps weights, optimizer and epoch too, but not the random state of the dropout layers,
# so a resumed run would go another way.


class RunError(data.UserError):
    """A run cannot start or continue."""


def replace(new, path):
    """Rename the file `new` to `path` when all of it is on the disk. A crash leaves the old file or the new one."""
    with open(new, "r+b") as file:  # Windows synchronises only what is open for writing
        os.fsync(file.fileno())
    os.replace(new, path)


def keep_model(new, path):
    """Rename the saved model `new` to `path`, after making it load in Keras 3.13 and newer, in float32.

    (Not where it has a layer, or a setting of one, that Keras 3.13 does not have.)
    """
    # Keras 3.15 writes entries that older versions refuse, though they hold the default. (Once nobody uses Keras 3.14
    # any more, this can go.) And a model trained in mixed precision would compute in it on any machine, however slowly.
    defaults = {"renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99}
    defaults |= {"input_axes": None, "output_axes": None, "quantization_config": None}
    defaults |= {"use_gate": False, "sliding_window": None}  # of attention layers

    def simplify(entries):  # called for each {…} in the JSON text
        if entries.get("class_name") == "DTypePolicy" and "float16" in entries["config"]["name"]:
            entries["config"] = {"name": "float32"}
        return {name: value for name, value in entries.items() if name not in defaults or defaults[name] != value}

    with zipfile.ZipFile(new) as archive:  # a .keras file is a zip archive; its config.json describes the layers
        contents = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(contents["config.json"], object_hook=simplify)
    if b'"mixed_' in contents["config.json"]:
        config.pop("compile_config", None)  # float16 wraps its optimizer, which would not fit then
    contents["config.json"] = json.dumps(config)
    with zipfile.ZipFile(new, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    replace(new, path)


def write_json(path, content):
    """Write `content` as JSON to `path`, the whole file or nothing."""
    new = path.with_suffix(".new.json")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    replace(new, path)


def variables(model):
    """Return all variables of a compiled model and its optimizer: everything that training changes, in a fixed order.

    They are the weights, the running averages of batch normalisation, the random state of the dropout layers (which
    `.weights` leaves out), and the optimizer's momentum and update count.
    """
    return [*model.variables, *model.optimizer.variables]


def save_state(arrays, history, run_dir):
    """Write the values of `variables` and the history, all that is needed to go on, to state.new.npz."""
    np.savez(run_dir / "state.new.npz", *arrays, history=json.dumps(history))  # named arr_0, arr_1, …, history


def restore(model, run_dir):
    """Give `variables(model)` the values in state.npz; return the history.

    Raises RunError, before it changes anything, if the file is damaged or does not fit the model.
    """
    try:
        with np.load(run_dir / "state.npz", allow_pickle=False) as state:  # only arrays, nothing that runs
            history = json.loads(str(state["history"]))
            arrays = [state[f"arr_{i}"] for i in range(len(state.files) - 1)]
    except Exception as error:  # NumPy, zip and JSON each raise exceptions of their own
        reason = data.one_line(error)[:150]
        raise RunError(f"{run_dir / 'state.npz'} is damaged: the run cannot be continued ({reason})") from None
    targets = variables(model)
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in targets]:
        raise RunError(f"the run in {run_dir} is of another network or optimizer: the shapes of their variables differ")
    for variable, array in zip(targets, arrays, strict=True):
        variable.assign(array)
    return history


class RunRecorder(keras.callbacks.Callback):
    """Records each epoch in the run's folder; the last callback in the list.

    state.npz is replaced last. If the run is killed before that, the epoch counts as not done, and a resumed run
    repeats it: from the same state it comes out the same and writes the same files, so nothing needs repair. (On a
    GPU, or with another number of CPU cores, the last digits of the repeated epoch differ. Then best.keras may have the
    weights of the interrupted attempt. That does no harm: its accuracy is measured from the file itself.)
    """

    def __init__(self, run_dir, history, config):
        """history: a dict of lists, which gets an entry per epoch; config: the content of config.json."""
        super().__init__()
        self.run_dir, self.history, self.config = run_dir, history, config
        self.first_epoch = len(history["epoch"])

    def on_epoch_begin(self, epoch, logs=None):
        """Note the time and the learning rate of the epoch's first update; estimate the end after the first epoch."""
        self.started = time.perf_counter()
        self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if epoch == self.first_epoch + 1:
            seconds = self.history["seconds"][-1] * (self.params["epochs"] - epoch)
            left = datetime.timedelta(seconds=round(seconds))
            print(f"Expected to end at {datetime.datetime.now() + left:%Y-%m-%d %H:%M}, in {left}", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        """Write the files. Raises RunError, before anything is replaced, if the loss or a weight is not a number."""
        row = {"epoch": epoch + 1} | {name: logs[name] for name in ("accuracy", "loss", "val_accuracy", "val_loss")}
        row |= {"learning_rate": self.rate, "seconds": time.perf_counter() - self.started}
        arrays = [keras.ops.convert_to_numpy(variable) for variable in variables(self.model)]
        # The loss alone does not tell: fast ReLU kernels turn NaN into 0, so it can be finite when the weights are not.
        if not all(np.isfinite(values).all() for values in (list(row.values()), *arrays)):
            (self.run_dir / "best.new.keras").unlink(missing_ok=True)
            raise RunError(
                f"the loss or the weights are no longer numbers after epoch {epoch + 1}. Likely causes: a learning rate"
                f" that is too high, or damaged data. The state after epoch {epoch} and the best model are untouched;"
                " start a new run with a lower learning rate"
            )
        for name, value in row.items():
            self.history[name].append(value)
        save_state(arrays, self.history, self.run_dir)  # the largest file first: if the disk is full, nothing changes
        if (self.run_dir / "best.new.keras").exists():  # ModelCheckpoint has just written it
            keep_model(self.run_dir / "best.new.keras", self.run_dir / "best.keras")
        with open(self.run_dir / "history.new.csv", "w", newline="", encoding="utf-8") as file:  # for people to read
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([self.history, *zip(*self.history.values(), strict=True)])
        replace(self.run_dir / "history.new.csv", self.run_dir / "history.csv")
        if epoch == self.first_epoch:  # a run that is lengthened counts as finished until now
            write_json(self.run_dir / "config.json", self.config)
            (self.run_dir / "metrics.json").unlink(missing_ok=True)
        replace(self.run_dir / "state.new.npz", self.run_dir / "state.npz")


@contextlib.contextmanager
def interrupts_between_batches():
    """Within a `with` block hold Ctrl-C back until the next batch, or the end of the block. Yield a callback for `fit`.

    Python raises KeyboardInterrupt wherever it is at that moment. In the middle of TensorFlow's code it can get lost,
    or turn into another error. A second Ctrl-C is not held back.
    """
    usual, typed = signal.getsignal(signal.SIGINT), []

    def note(*arguments):
        if typed:
            usual(*arguments)
        typed.append(True)

    def stop(*_, **__):
        if typed:
            raise KeyboardInterrupt

    # Only the main thread may change what Ctrl-C does; in a background job it does nothing.
    ours = threading.current_thread() is threading.main_thread() and callable(usual)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield keras.callbacks.LambdaCallback(on_train_batch_begin=stop, on_test_batch_begin=stop)
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)
    stop()


def new_run_dir(out, run_name):
    """Make and return the folder out/run_name/YYYYMMDD-HHMMSS, or …-2, …-3 if there is one already."""
    now, folder = f"{datetime.datetime.now():%Y%m%d-%H%M%S}", Path(os.path.expanduser(out), run_name)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (now, *(f"{now}-{i}" for i in range(2, 1000))):
        with contextlib.suppress(FileExistsError):
            (folder / name).mkdir()
            return folder / name
    raise RunError(f"{folder / now} exists, and a thousand more")


LOCKED = set()  # the folders that this process has locked


@contextlib.contextmanager
def lock(run_dir):
    """Keep other processes out of a run's folder within a `with` block. Raises RunError if another one is in there.

    Two processes on one run, such as a job that was queued again while the old one lives, would mix their epochs. The
    system drops the lock when its process ends, however that happens.
    """
    folder = run_dir.resolve()
    if fcntl is None or folder in LOCKED:
        yield
        return
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is working on {run_dir}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        LOCKED.add(folder)
        try:
            yield
        finally:
            LOCKED.remove(folder)


@contextlib.contextmanager
def open_run(model, run_dir, config):
    """Begin the run in run_dir, or bring a compiled `model` to where it was; the `with` block gets its history.

    config: the settings of this call; RunError if the recorded ones differ. In the folder of an earlier run no result
    changes until the first new epoch is complete.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock(run_dir):
        model.optimizer.build(model.trainable_variables)  # create the momentum variables
        if (run_dir / "state.npz").exists():
            recorded = read_config(run_dir)
            if "optimizer_config" not in recorded:
                raise RunError(f"{run_dir} was recorded by an older version of this code: it cannot be continued")
            if changed := differences(recorded, config):
                raise RunError(f"the run in {run_dir} has other settings ({'; '.join(changed)[:400]}); start a new run")
            for name in MACHINE:
                if recorded.get(name, config[name]) != config[name]:
                    print(f"The last digits may differ: {name} was {recorded[name]}, now {config[name]}")
            history = restore(model, run_dir)
            done = len(history["epoch"])
            if config["epochs"] < done:
                raise RunError(f"{done} epochs of {run_dir} are done; a run can be lengthened, not shortened")
            if done and not (run_dir / "best.keras").exists():
                lost = history["epoch"][int(np.argmin(history["val_loss"]))]
                print(f"{run_dir / 'best.keras'} is missing: the best weights so far, those of epoch {lost}, are lost")
        else:
            if left := [name for name in ("metrics.json", "history.csv", "best.keras") if (run_dir / name).exists()]:
                raise RunError(
                    f"{run_dir} has {', '.join(left)} but not state.npz, without which it cannot be continued; put that"
                    " file back, or start a new run"
                )
            columns = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds")
            history = {name: [] for name in columns}
            write_json(run_dir / "config.json", config)
            # The network's graph for TensorBoard. Its callback has write_graph=True for this, but cannot draw a model
            # inside a model, as ours is.
            compute = tf.function(lambda images: model(images, training=False))
            graph = compute.get_concrete_function(tf.TensorSpec((None, *data.IMAGE_SHAPE))).graph
            with tf.summary.create_file_writer(str(run_dir / "logs" / "graph")).as_default():
                tf.summary.graph(graph)
            save_state([keras.ops.convert_to_numpy(variable) for variable in variables(model)], history, run_dir)
            replace(run_dir / "state.new.npz", run_dir / "state.npz")
        (run_dir / "best.new.keras").unlink(missing_ok=True)  # of an epoch that did not end
        yield history


def check_model(model, optimizer, images):
    """Raise RunError unless the optimizer is new and `model` gives each image ten probabilities.

    Prints a warning if a class or function of one's own is not registered with Keras: the saved model will not load.
    """
    if optimizer.built:
        raise RunError("this optimizer has been used before, its schedule and momentum with it; make a new one")
    outputs = model(tf.cast(images, tf.float32), training=False)  # this also builds a model that is not built yet
    shape = getattr(outputs, "shape", None)
    if shape is None or tuple(shape) != (len(images), len(data.CLASS_NAMES)):
        found = "several outputs" if shape is None else f"one of shape ({', '.join(['B', *map(str, shape[1:])])})"
        raise RunError(f'the model must end in one output (B, 10), Dense(10, activation="softmax"); it has {found}')
    outputs = np.asarray(outputs, np.float32)
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=1), 1, atol=0.01):
        raise RunError(
            "the model's ten outputs must be probabilities, which sum to 1; the first image's sum to"
            f' {outputs[0].sum():.3g}. End it with Dense(10, activation="softmax")'
        )
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    except Exception as error:  # layers, and the functions in them, raise whatever they like
        cause = data.one_line(str(error).split("Exception encountered: ")[-1])[:200]  # of a layer inside a model
        print(
            "model.keras and best.keras of this run will not load, because of a class or function of your own; decorate"
            f" it with @keras.saving.register_keras_serializable() ({cause})"
        )


# The numbers that are possible: least <= number < limit.
LIMITS = {"epochs": (1, 2**31), "batch_size": (1, 2**31), "seed": (0, 2**31), "learning_rate": (1e-9, 1000.0)}
LIMITS |= dict.fromkeys(("drop_rate", "warmup", "weight_decay", "label_smoothing"), (0.0, 1.0))


def describe_run(call, arrays, optimizer):
    """Return the content of config.json for a call of compile_and_train; RunError for impossible numbers."""
    for name, (least, limit) in LIMITS.items():
        if name in call and not least <= call[name] < limit:
            raise RunError(f"{name} must be at least {least} and below {limit}, not {call[name]}")
    config = {"network": "own", "dtype_policy": keras.config.dtype_policy().name, **call}
    config["optimizer_config"] = optimizer.get_config() | {"name": type(optimizer).__name__}
    fingerprint = data.fingerprint(arrays)
    kind = data.FINGERPRINTS.get(fingerprint)  # None for images of one's own
    config["data"] = {"source": config.pop("source", None), "fingerprint": fingerprint, "train_count": len(arrays[0])}
    config["data"] |= {"official": kind == "official", "sample": kind == "sample"}
    config["data"]["validation"] = data.fingerprint(arrays[2:])
    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    versions |= {"numpy": np.__version__, "matplotlib": matplotlib.__version__, "backend": keras.config.backend()}
    # What can change the last digits of the results. Cores: those that this process may use, not all of the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = f"{', '.join(map(str, keras.distribution.list_devices()))} ({platform.machine()}, {cores} cores)"
    names = ("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    config |= {"versions": versions, "device": device, "environment": environment}
    # As it will be read back, to be compared: lists for tuples, plain numbers for NumPy's, and text for anything else.
    return json.loads(json.dumps(config, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x)))


MACHINE = ("versions", "device", "environment")


def differences(recorded, config):
    """Return, in words, the settings in which two configs differ, except those that a run may change."""
    not_compared = {"epochs", "no_xla", *MACHINE, "data", "optimizer_config"}  # for the last two see `flat`

    def flat(config):
        optimizer = {f"optimizer's {name}": value for name, value in config.get("optimizer_config", {}).items()}
        return config | optimizer | {"images and labels": config["data"]["fingerprint"][:8]}

    def show(value):  # optimizers keep float32 numbers, 0.01 as 0.009999999776482582
        return f"{value:.6g}" if isinstance(value, float) else value

    old, new = flat(recorded), flat(config)
    common = [name for name in old if name in new and name not in not_compared]
    return [f"{name}: {show(old[name])} then, {show(new[name])} now" for name in common if old[name] != new[name]]


def record_scores(model, history, run_dir, end, best, tested_on):
    """Write curves.png and metrics.json, and print the two accuracies; see evaluate_performance."""
    config = read_config(run_dir)
    # If the best weights were chosen on these very images, their score is too good: that of the end counts.
    chosen_on_them = config["data"].get("validation") == tested_on
    split = "validation" if config.get("no_test") else "test"
    result = "end_of_training" if chosen_on_them or best is None else "best_weights"
    best_epoch, seconds = history["epoch"][int(np.argmin(history["val_loss"]))], float(np.median(history["seconds"]))
    metrics = {
        "result": f"{split}_accuracy_{result}",
        f"{split}_accuracy_end_of_training": end,
        f"{split}_accuracy_best_weights": best,
        "best_epoch": best_epoch,
        "parameters": sum(layer.count_params() for layer in model.layers if layer.name != "standardiser"),
        "seconds_per_epoch": seconds,  # median, validation included
        "images_per_second": config["data"]["train_count"] / seconds,
    }
    curves = {run_dir.resolve().parent.name: history}
    plot_histories(curves, run_dir / "curves.png", split if chosen_on_them else "validation")
    write_json(run_dir / "metrics.json", metrics)
    arrow = {result: "  <- the result"}
    title = f"{split.capitalize()} accuracy"
    print(f"{title}, end-of-training weights:   {end:.4f}{arrow.get('end_of_training', '')}  (model.keras)")
    if best is not None:
        on = f"the {split} set: optimistic" if chosen_on_them else "validation images"
        note = f"(best.keras, epoch {best_epoch}, chosen on {on})"
        print(f"{title}, best weights:              {best:.4f}{arrow.get('best_weights', '')}  {note}")


# ---------------------------------------------------------------- The command line
#
# `given` has the flags that were typed. `settings` has all settings of a run: those of the recipe and the other
# defaults, replaced by what was given; or those of the run that is resumed. They are part of its config.json.

MEANINGS = {
    "scheme": "augmentation scheme: how training images are transformed and standardised",
    "drop_rate": "dropout: share of values (svgg) or feature maps (wrn) set to zero while training",
    "optimizer": "how gradients change the weights, see make_optimizer",
    "learning_rate": "size of each change; the largest value if it varies",
    "schedule": "how the learning rate varies, see learning_rate",
    "warmup": "cosine only: share of all updates in which the learning rate first rises from zero",
    "weight_decay": "each update shrinks the weights by this share times the learning rate",
    "label_smoothing": "share of a label's probability that is spread evenly over all classes",
    "epochs": "passes over the training images",
    "batch_size": "images per update",
}
WRN_SIZE = {"num_convs": 40, "k_factor": 2, "full_resolution": False}
OTHERS = {"seed": 0, "holdout": False, "no_test": False, "dtype_policy": "float32", "no_xla": False}


def between(kind, least, limit):
    """Return a function for argparse's `type`: from a word to a number of this kind, least <= number < limit."""

    def number(word):
        if not least <= kind(word) < limit:
            raise argparse.ArgumentTypeError(f"must be at least {least} and below {limit}, not {word}")
        return kind(word)

    number.__name__ = {int: "whole number", float: "number"}[kind]  # argparse: "invalid number value: 'x'"
    return number


def flag(name):
    """Return the flag of a setting as it is typed."""
    return f"--{name.replace('_', '-')}"


def make_parser():
    """Return the parser of the command line. Flags that are not typed are left out of its result."""
    description = "Step 5: train, evaluate and picture a network on CIFAR-10."
    parser = data.Parser(description=description, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("what to run")
    names = ["svgg", "wrn"]  # default=None: older Pythons compare argparse.SUPPRESS with the choices
    group.add_argument("network", nargs="?", choices=names, default=None, help="simplified VGG or Wide ResNet")
    group.add_argument("--recipe", choices=["tutorial", "modern"], help="settings of the training (default: tutorial)")
    resume = "continue the run in this folder (with --epochs: lengthen it); without RUN, the newest unfinished run of"
    resume += " this command, or a new one"
    group.add_argument("--resume", metavar="RUN", nargs="?", const="", help=resume)
    group.add_argument("--data", metavar="SOURCE", help="folder, archive, .npz, or sample (default: download CIFAR-10)")

    group = parser.add_argument_group("the network: WRN-n-K")
    group.add_argument("--num-convs", type=wrn.depth, metavar="n", help="convolutions, 6N + 4 (default: 40)")
    group.add_argument("--k-factor", type=between(int, 1, 1000), metavar="K", help="widening factor (default: 2)")
    group.add_argument("--full-resolution", action="store_true", help="the first group keeps 32×32 pixels")

    defaults = "Defaults in brackets: tutorial svgg | tutorial wrn | modern."
    group = parser.add_argument_group("the recipe", defaults)
    schemes = {str(scheme): scheme for scheme in augment.SCHEMES}  # "1" -> 1
    words = {"optimizer": ["rmsprop", "sgd"], "schedule": ["constant", "inverse_time", "cosine"]}
    for name, values in TABLE.items():
        if name == "scheme":
            accepted = {"type": lambda word: schemes.get(word, word), "choices": [*schemes.values()]}
        elif name in words:
            accepted = {"choices": words[name]}
        else:
            accepted = {"type": between(type(values[0]), *LIMITS[name]), "metavar": "X"}
        group.add_argument(flag(name), help=f"{MEANINGS[name]} [{' | '.join(map(str, values))}]", **accepted)

    group = parser.add_argument_group("the run")
    group.add_argument("--holdout", action="store_true", help="train on 45,000 images, choose best weights on 5,000")
    group.add_argument("--no-test", action="store_true", help="leave the test set untouched, to tune; needs --holdout")
    seed = "of weights, order, transformations (default: 0)"
    group.add_argument("--seed", type=between(int, *LIMITS["seed"]), metavar="X", help=seed)
    policies = ["float32", "mixed_float16", "mixed_bfloat16"]
    group.add_argument("--dtype-policy", choices=policies, help="what to compute in, see README.md (default: float32)")
    group.add_argument("--no-xla", action="store_true", help="switch off XLA, TensorFlow's compiler (used on GPUs)")
    group.add_argument("--out", metavar="DIR", help="folder for the runs (default: runs)")
    return parser


def make_settings(given):
    """Return the settings of a new run. RunError for a flag that would have no effect."""
    if "network" not in given:
        raise RunError("say which network, svgg or wrn, or --resume RUN")
    network, recipe = given["network"], given.get("recipe", "tutorial")
    size = WRN_SIZE if network == "wrn" else dict.fromkeys(WRN_SIZE)
    settings = {"network": network, "recipe": recipe, **size, **RECIPES[recipe, network], **OTHERS}
    settings |= {name: value for name, value in given.items() if name in settings}
    if network == "svgg" and (other := [flag(name) for name in WRN_SIZE if name in given]):
        raise RunError(f"{', '.join(other)} can be set for the wrn only")
    if settings["schedule"] != "cosine":
        if settings["warmup"] and "warmup" in given:
            raise RunError(f"--warmup goes with --schedule cosine only, not with {settings['schedule']}")
        settings["warmup"] = 0.0
    if settings["no_test"] and not settings["holdout"]:
        raise RunError("--no-test needs --holdout: without it the test set is the validation data")
    source = given.get("data")
    if source not in (None, "sample"):
        source = os.path.realpath(os.path.expanduser(source))  # to be found again from another folder
    return settings | {"source": source}


def read_config(run_dir):
    """Return the content of config.json in run_dir; RunError if there is none."""
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        config["network"], config["epochs"], config["data"]["fingerprint"]  # KeyError if one is missing
    except (OSError, ValueError, KeyError, TypeError) as error:
        below = max(run_dir.glob("**/config.json"), default=None, key=lambda path: path.parent.name)
        advice = f"; did you mean {below.parent}?" if below else f" ({type(error).__name__}: {error})"
        raise RunError(f"{run_dir} is not the folder of a run, or its config.json is damaged{advice}") from None
    return config


def resume_settings(given):
    """Return (settings, run_dir) of the run that --resume names, lengthened if --epochs says so."""
    run_dir = Path(os.path.expanduser(given["resume"]))
    run_dir = run_dir.parent if run_dir.is_file() else run_dir  # one of its files
    config = read_config(run_dir)
    if config["network"] not in ("svgg", "wrn"):
        raise RunError(f"{run_dir} was trained from Python: call compile_and_train again with run_dir={str(run_dir)!r}")
    settings = make_settings({"network": config["network"], "data": given.get("data", config["data"].get("source"))})
    settings |= {name: config[name] for name in settings if name in config}
    for name in given.keys() - {"resume", "epochs", "data", "no_xla"}:
        if name not in settings or settings[name] != given[name]:
            recorded = f" ({name}: {settings[name]})" if name in settings else ""
            typed = given[name] if name == "network" else flag(name)
            raise RunError(f"--resume takes the settings of the run{recorded}; {typed} cannot be given with it")
    epochs, cosine = given.get("epochs", config["epochs"]), settings["schedule"] == "cosine"
    if epochs == config["epochs"] and (run_dir / "metrics.json").exists():
        longer = "" if cosine else "; a larger --epochs lengthens it"
        raise RunError(f"{run_dir} is finished: all {epochs} epochs are done, the result is in metrics.json{longer}")
    if epochs != config["epochs"] and cosine:
        reason = f"its learning rate falls to zero in {config['epochs']} epochs"
        raise RunError(f"{run_dir} cannot be made longer or shorter: {reason}; start a new run")
    return settings | {"epochs": epochs, "no_xla": settings["no_xla"] or "no_xla" in given}, run_dir


def unfinished_run(settings, out):
    """Return the folder of the newest run below `out` that has these settings and is not finished, or None."""
    for path in sorted(out.glob("*/*/config.json"), key=lambda path: path.parent.name, reverse=True):
        with contextlib.suppress(RunError):
            config = read_config(path.parent)
            config |= {"source": config["data"].get("source")}
            finished = (path.parent / "metrics.json").exists()
            if not finished and all(config.get(name) == value for name, value in settings.items()):
                return path.parent
    return None


def build_network(settings):
    """Return the untrained network of a run, its weights drawn from the seed."""
    keras.utils.set_random_seed(settings["seed"])
    if settings["network"] == "svgg":
        return svgg.build_svgg(settings["drop_rate"])
    size = (settings["num_convs"], settings["k_factor"])
    return wrn.build_wrn(*size, settings["drop_rate"], settings["full_resolution"])


def say_if_slow(policy):
    """Say so if this machine computes slowly with a dtype policy."""
    cpu = Path("/proc/cpuinfo")  # Linux only
    if policy == "float32" or tf.config.list_physical_devices("GPU") or not cpu.exists():
        return
    text = cpu.read_text(encoding="utf-8")
    if policy == "mixed_float16":
        print("mixed_float16 is much slower than float32 without a GPU: leave --dtype-policy out")
    elif "avx512_bf16" not in text and "amx_bf16" not in text:
        print("mixed_bfloat16 is many times slower than float32 on this processor: leave --dtype-policy out")


def print_settings(settings, network, train_count, run_dir):
    """Say what is about to be done, so that you notice a mistake before training for hours."""
    for name, value in settings.items():
        if value is not None:
            print(f"  {name:<15} {value}")
    steps = math.ceil(train_count / settings["batch_size"])
    rate = learning_rate(settings, steps)
    rates = [float(rate(update)) if callable(rate) else rate for update in (0, steps, settings["epochs"] * steps - 1)]
    print(f"{network.name}: {network.count_params():,} parameters; {train_count} images, {steps} steps per epoch")
    print("Learning rate: {:.4g} at the first update, {:.4g} after one epoch, {:.4g} at the last".format(*rates))
    print(f"Run folder: {run_dir}")
    print(f"To watch it: {shlex.join(['tensorboard', '--logdir', str(run_dir / 'logs')])}", flush=True)


def train_run(settings, network, cifar10, run_dir):
    """Train `network` as `settings` say, from where the run in run_dir is, draw its pictures and evaluate it."""
    x_train, y_train, x_val, y_val = training_and_validation(cifar10, settings["holdout"])
    print_settings(settings, network, len(x_train), run_dir)
    say_if_slow(settings["dtype_policy"])
    print("Fitting the standardisation to the training images", flush=True)
    model = assemble(augment.standardiser(x_train, settings["scheme"]), network)
    optimizer = make_optimizer(settings, math.ceil(len(x_train) / settings["batch_size"]))
    keywords = {name: settings[name] for name in ("scheme", "epochs", "batch_size", "seed", "label_smoothing")}
    keywords |= {"run_dir": run_dir, "jit_compile": False if settings["no_xla"] else "auto", "notes": settings}
    arrays = (x_train, y_train, x_val, y_val)
    history, _ = compile_and_train(model, run_dir.parent.name, *arrays, optimizer=optimizer, **keywords)
    # With --no-test the validation images stand in for the test images. The pictures come first, since metrics.json,
    # which evaluate_performance writes, says that a run is finished.
    x, y = (x_val, y_val) if settings["no_test"] else (cifar10.x_test, cifar10.y_test)
    best_is_the_result = settings["holdout"] and not settings["no_test"]
    try:
        with best_weights(model, run_dir) if best_is_the_result else contextlib.nullcontext():
            look(model, x, y, run_dir)
    except RunError:  # best.keras is missing or damaged; evaluate_performance says so
        look(model, x, y, run_dir)
    evaluate_performance(model, history, run_dir, x, y)
    print(f"Models, pictures and history: {run_dir}")
    if settings["source"] == "sample":
        print("That was a sample, 3 % of CIFAR-10. For all of it: python train.py wrn --recipe modern")
    else:
        print(f"To compare runs: {shlex.join(['tensorboard', '--logdir', str(run_dir.parent.parent)])}")


def run(given, started):
    """Do what the command line says. The run's folder is appended to `started` when there is one."""
    out = Path(os.path.expanduser(given.get("out", "runs")))
    if given.get("resume"):
        settings, run_dir = resume_settings(given)
    else:
        settings = make_settings(given)
        run_dir = unfinished_run(settings, out) if "resume" in given else None
    keras.config.set_dtype_policy(settings["dtype_policy"])
    network = build_network(settings)
    if not run_dir:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # complain now if nothing can be written there
    print("Loading the data", flush=True)
    cifar10 = data.load_cifar10(settings["source"])
    if not run_dir:
        recipe = "" if settings["recipe"] == "tutorial" else f"_{settings['recipe']}"
        protocol = "holdout" if settings["holdout"] else "full"
        run_dir = new_run_dir(out, f"{network.name}{recipe}_scheme{settings['scheme']}_{protocol}")
    started.append(run_dir)
    with lock(run_dir):
        train_run(settings, network, cifar10, run_dir)


def main(arguments=None):
    """Train, or continue to train, then evaluate: the command line of this step."""
    arguments = sys.argv[1:] if arguments is None else arguments
    typed, started, policy = vars(make_parser().parse_args(arguments)), [], keras.config.dtype_policy()
    given = {name: value for name, value in typed.items() if value is not None}  # without the network, if it is missing

    def what_to_do():
        recorded = started and (started[0] / "config.json").exists()
        words = ["--resume", str(started[0])] if recorded and "resume" not in given else arguments
        return f"go on with: {shlex.join([sys.executable, os.path.relpath(__file__), *words])}"

    with data.errors_in_one_line():
        try:
            run(given, started)
        except (OSError, tf.errors.OpError) as error:  # the disk is full, or the run's folder has been taken away
            raise data.UserError(f"{error}. Mend that, then {what_to_do()}") from None
        except KeyboardInterrupt:
            print(f"\nStopped; {what_to_do()}", file=sys.stderr)
            raise SystemExit(130) from None
        finally:
            keras.config.set_dtype_policy(policy)


if __name__ == "__main__":
    main()
