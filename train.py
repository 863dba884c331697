"""Step 5 of 5: compile, train with callbacks, evaluate, and look at the predictions. The program to run.

    python train.py wrn                             the tutorial's WRN-40-2: 400 epochs, so better use a GPU
    python train.py svgg                            the tutorial's simplified VGG
    python train.py wrn --recipe modern             the same Wide ResNet with newer settings, 20 epochs
    python train.py --resume runs/NAME/TIME         continue an interrupted run

A run prints its settings, Keras's progress, and at the end:

    Test accuracy, end-of-training weights:   0.…  <- the result  (model.keras)
    Test accuracy, best weights:              0.…  (best.keras, epoch …, chosen on the test set: optimistic)

The tutorial in four lines, which this module wraps in functions:

    model.compile(optimizer, loss, metrics=["accuracy"])             how to learn, what to minimise, what else to show
    history = model.fit(batches, validation_data=…, callbacks=…)     train, epoch after epoch
    loss, accuracy = model.evaluate(x_test, onehot_labels)           how many are right
    probabilities = model.predict(x_test)                            which ones, and how sure the network is

The lesson: recipes; optimizer and learning rate; compile and train; evaluate; look; and `run`, the whole story of a
run. After it come the recording of a run and the command line. You can train a network without reading those two.

Shapes: B images in a batch, N images in all, H = W = 32 pixels, C = 3 channels.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import re
import shlex
import time
from pathlib import Path

import augment  # before Keras: it imports data.py, which sets Keras up
import data
import svgg
import wrn

# isort: split
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

BATCH_SIZE_FOR_EVALUATION = 500  # the result is the same up to rounding; the tutorial's 1 takes many times as long


# ---------------------------------------------------------------- Recipes
#
# A recipe is a set of training settings. Each line of this table is also a flag of the command line, so that you can
# see the effect of one change: `--weight-decay 0`.

# fmt: off
TABLE = {
    #                   tutorial                    modern
    #                   svgg        wrn             both        points: see below
    "scheme":          (1,          1,              4),         # small shifts by whole pixels: +5.5 over scheme 3
    "drop_rate":       (0.5,        0.3,            0.0),       # no dropout: +5.6
    "optimizer":       ("rmsprop",  "sgd",          "sgd"),     # the WRN paper's, with its learning rate
    "learning_rate":   (0.001,      0.1,            0.1),       # its highest value, if it varies; 0.2 was no better
    "schedule":        ("constant", "inverse_time", "cosine"),  # falls to zero; without warm-up no difference
    "warmup":          (0.0,        0.0,            0.25),      # share of all updates (batches) in which it rises: +2.2
    "weight_decay":    (0.0,        0.0,            0.01),      # 0.005: +3.2; 0.01: no clear difference from 0.005
    "label_smoothing": (0.0,        0.0,            0.1),       # no difference
    "epochs":          (400,        400,            20),        # an evening on two CPU cores
    "batch_size":      (128,        128,            128),       # the paper's; 64 was no better
}
# fmt: on
# Points are percentage points of accuracy that WRN-16-2 gained on held-out images in ten epochs. The changes were made
# in this order, each on top of those before it: scheme, schedule, warm-up, weight decay 0.005, dropout, label
# smoothing, weight decay 0.01 (see results/README.md).

RECIPES = {
    ("tutorial", "svgg"): {"recipe": "tutorial"} | {name: row[0] for name, row in TABLE.items()},
    ("tutorial", "wrn"): {"recipe": "tutorial"} | {name: row[1] for name, row in TABLE.items()},
    ("modern", "svgg"): {"recipe": "modern"} | {name: row[2] for name, row in TABLE.items()},
    ("modern", "wrn"): {"recipe": "modern"} | {name: row[2] for name, row in TABLE.items()},
}
# The other settings of a run ("own": a network of yours). All settings are one dict: DEFAULTS | recipe | your changes.
DEFAULTS = {"network": "own", "num_convs": 40, "k_factor": 2, "full_resolution": False, "recipe": "tutorial"}
DEFAULTS |= {"source": None, "holdout": False, "no_test": False, "seed": 0, "dtype_policy": "float32", "no_xla": False}


# ---------------------------------------------------------------- Optimizer and learning rate


def learning_rate(settings, steps_per_epoch):
    """Return a number, or one of Keras's schedules: a function from the update's number to the learning rate.

    An update is one change of the weights, by the gradient of one batch; an epoch has `steps_per_epoch` of them.
    (The schedules are Keras's own, so that a saved model loads without this code.)
    """
    rate, updates = settings["learning_rate"], settings["epochs"] * steps_per_epoch
    if settings["schedule"] == "inverse_time":
        # rate / (1 + 0.0005 · update): a tenth after 46 epochs of 391 updates, an eightieth (0.0013) after 400. It is
        # what the tutorial's `decay=0.0005` did in Keras 2; the paper's 0.0005 is a *weight* decay.
        return keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=0.0005)
    if settings["schedule"] == "cosine":
        # The rate rises from 0.0 to `rate` (warm-up: large changes may be unstable at first), then falls to zero along
        # half a cosine, so that the weights settle. For the fall at least one update must be left.
        warmup = min(round(settings["warmup"] * updates), updates - 1)
        return keras.optimizers.schedules.CosineDecay(0.0, updates - warmup, warmup_target=rate, warmup_steps=warmup)
    return rate


def make_optimizer(settings, steps_per_epoch):
    """Return the Keras optimizer that `settings` describe (see compile_and_train)."""
    if isinstance(settings["optimizer"], keras.optimizers.Optimizer):
        return settings["optimizer"]  # one of your own: it has its own learning rate
    rate, decay = learning_rate(settings, steps_per_epoch), settings["weight_decay"] or None
    if settings["optimizer"] == "rmsprop":
        # Divides each weight's gradient by the root of its recent mean square: all weights move about equally fast.
        optimizer = keras.optimizers.RMSprop(rate, weight_decay=decay)
    else:
        # Momentum: each change is a sum of all gradients so far, each counting 0.9 times as much as the one after it.
        # What they agree on adds up (a constant gradient to ten times its size), what they disagree on cancels.
        # Nesterov's form looks a step ahead: it takes the gradient at the point to which the momentum will carry the
        # weights. The paper's settings for its WRN: this optimizer, a rate of 0.1, and batches of 128.
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    # Weight decay shrinks the weights a little at each update, against overfitting. Keras's is decoupled from the
    # gradient: w −= rate · decay · w. The paper adds it to the gradient, where momentum makes it up to ten times
    # larger, so the paper's 5e-4 is 5e-3 here; the modern recipe has twice that. Biases, and the scales (gamma) and
    # shifts (beta) of batch normalisation, are left out, as is usual.
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

    By default, as in the tutorial, the network learns from all 50,000 training images, and the test set is the
    validation data. The tutorial's reason: the test set chooses nothing. True of the end-of-training weights, but the
    best weights are chosen on it. With `holdout` 45,000 images train and 5,000 validate; the test set is for the end.
    """
    x_train, y_train, x_val, y_val, x_test, y_test = cifar10
    if holdout:
        return x_train, y_train, x_val, y_val
    return np.concatenate([x_train, x_val]), np.concatenate([y_train, y_val]), x_test, y_test


def make_callbacks(model, run_dir, history, lr_schedule_fn=None):
    """Return callbacks for `fit`: code that Keras runs at the start or end of each batch or epoch.

    run_dir: the run's folder; history: the epochs done so far, see open_run; lr_schedule_fn: see compile_and_train.
    """
    # ModelCheckpoint saves the whole model whenever the validation loss is lower than ever before. The loss says more
    # than the accuracy: it also counts how sure each answer is. A confident mistake costs most.
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(run_dir / "best.new.keras").replace("{", "{{").replace("}", "}}"),  # Keras fills in {…}, but not {{…}}
        monitor="val_loss",
        save_best_only=True,
        initial_value_threshold=min(history["val_loss"], default=None),  # the lowest so far, if the run is resumed
    )
    # TensorBoard logs the curves of loss and accuracy, to be watched in a browser during training. (Its learning rate
    # is that of the epoch's end.) Its write_graph fails for some nested models, so we log the graph ourselves.
    callbacks = [checkpoint, keras.callbacks.TensorBoard(run_dir / "logs", write_graph=False)]
    compute = tf.function(lambda images: model(images, training=False))
    with tf.summary.create_file_writer(str(run_dir / "logs" / "graph")).as_default():
        tf.summary.graph(compute.get_concrete_function(tf.TensorSpec((None, *data.IMAGE_SHAPE))).graph)
    if lr_schedule_fn:
        # LearningRateScheduler sets the learning rate at the start of each epoch.
        callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch: float(lr_schedule_fn(epoch))))
    return callbacks


def compile_and_train(
    model, run_name, x_train, y_train, x_val, y_val, settings, *, lr_schedule_fn=None, out="runs", run_dir=None
):
    """Train `model` and record the run in a folder of its own. Return (history, run_dir).

    model:           any untrained Keras model, raw pixels (B, 32, 32, 3) -> (B, 10) probabilities; `assemble` makes one
    run_name:        the folder is out/run_name/YYYYMMDD-HHMMSS
    x_…, y_…:        images uint8 (N, 32, 32, 3), labels (N,) or (N, 1) of 0…9; the validation images choose best.keras
    settings:        a recipe: RECIPES["modern", "wrn"] | {"epochs": 15}. "optimizer" may be a new Keras one, "scheme" a
                     dict as in augment.SCHEMES. "drop_rate" and "dtype_policy" have no effect: your model has its own
    lr_schedule_fn:  a function from the epoch, counted from 0, to its learning rate; needs "schedule": "constant"
    run_dir:         continue the run in this folder, or begin it there; default: a new folder

    history maps epoch, accuracy, loss, val_accuracy, val_loss, learning_rate and seconds to lists with one entry per
    epoch. To resume, call this function again with the same arguments, a model built as before, and run_dir. Raises
    ValueError for unusable arguments, if training diverges, and if another process uses run_dir. Raises it too if the
    run in run_dir has other settings or is damaged; that run then stays as it is.
    """
    x_train, y_train = data.check_data(x_train, y_train, "x_train", "y_train")
    x_val, y_val = data.check_data(x_val, y_val, "x_val", "y_val")
    settings = check_settings(DEFAULTS | settings)
    if lr_schedule_fn and settings["schedule"] != "constant":
        raise data.UserError('lr_schedule_fn needs "schedule": "constant"')
    check_model(model, x_train[:4])
    epochs, batch_size, seed = settings["epochs"], settings["batch_size"], settings["seed"]
    steps_per_epoch = math.ceil(len(x_train) / batch_size)
    optimizer = make_optimizer(settings, steps_per_epoch)
    config = describe_run(settings, model, optimizer, (x_train, y_train, x_val, y_val))

    # Compiling says how to learn (the optimizer), what to minimise (the loss), and what else to show (the metrics).
    # Cross-entropy is −log of the probability that the network gives to the true class, averaged over the batch: 0 if
    # it is sure and right. Label smoothing of 0.1 turns a one-hot label's 1 into 0.91 and its 0s into 0.01, so that the
    # network is not too sure; the loss stays above 0.5. jit_compile "auto": on a GPU, XLA makes the training faster.
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=settings["label_smoothing"])
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False if settings["no_xla"] else "auto")

    run_dir = Path(run_dir or Path(out, run_name, f"{datetime.datetime.now():%Y%m%d-%H%M%S}")).expanduser()
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock(run_dir):
        history = open_run(model, run_dir, config)  # no epochs yet, or those of the run that is resumed
        done = len(history["epoch"])
        print(f"Run folder: {run_dir}")
        if settings["network"] != "own":
            print(f"To go on after an interruption: {shlex.join(['python', 'train.py', '--resume', str(run_dir)])}")
        print(f"To watch it: {shlex.join(['tensorboard', '--logdir', str(run_dir / 'logs')])}", flush=True)
        # For each batch `fit` computes the predictions, the loss and its gradients, and lets the optimizer change the
        # weights. After each epoch it evaluates the validation images.
        if done < epochs:
            callbacks = make_callbacks(model, run_dir, history, lr_schedule_fn)
            model.fit(
                augment.training_batches(x_train, y_train, settings["scheme"], batch_size, seed, first_epoch=done),
                initial_epoch=done,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,  # the training batches never end
                validation_data=(x_val, data.get_onehot(y_val)),
                validation_batch_size=BATCH_SIZE_FOR_EVALUATION,
                callbacks=[*callbacks, RunRecorder(run_dir, history, config)],
                shuffle=False,  # training_batches shuffles
                verbose=1 if os.isatty(1) else 2,  # a progress bar on a terminal, else one line per epoch
            )
        else:
            model.optimizer.finalize_variable_values(model.trainable_variables)  # as at the end of `fit`, for use_ema
        if not (run_dir / "model.keras").exists():  # not saved yet, or removed by RunRecorder
            model.save(run_dir / "model.new.keras")
            replace(run_dir / "model.new.keras", run_dir / "model.keras")
    return history, run_dir


# ---------------------------------------------------------------- Evaluate


def plot_histories(histories, path):
    """Write a figure of accuracy, loss and learning rate over the epochs to `path`.

    histories: {name: history}, a history as returned by compile_and_train; each name gets a colour. (Without
    --holdout the validation data are the test images.) How to read it: if training (dashed) is much better than
    validation (solid), the network overfits. Training may also be the worse one, since augmentation and dropout make it
    harder. If the accuracy is still rising at the end, more epochs or a larger learning rate may help. In the tutorial
    the SVGG's training accuracy saturates near epoch 100, but its validation loss is lowest near epoch 50 and then
    jumps about: there a learning rate that falls may help.
    """
    figure = Figure(figsize=(16, 4.5), layout="constrained")
    accuracy, loss, rate = figure.subplots(1, 3)
    for i, (name, history) in enumerate(histories.items()):
        style = {"color": f"C{i}", "marker": "." if len(history["epoch"]) == 1 else None}  # one point makes no line
        for axis, metric in ((accuracy, "accuracy"), (loss, "loss")):
            axis.plot(history["epoch"], history[f"val_{metric}"], label=f"{name}, validation", **style)
            axis.plot(history["epoch"], history[metric], "--", label=f"{name}, training", **style)
        rate.plot(history["epoch"], history["learning_rate"], **style)
    accuracy.set_ylabel("accuracy")
    accuracy.legend()
    loss.set_ylabel("loss")
    rate.set_ylabel("learning rate at the epoch's first update")
    for axis in figure.axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def evaluate_performance(model, history, run_dir, x_test, y_test):
    """Print the accuracy on x_test of a run's two sets of weights, end of training and best; return both, each 0 to 1.

    The first is of `model` as it is; the second is of best.keras, from the epoch with the lowest validation loss. If
    x_test was the validation data, it chose the best weights, so their score is optimistic, and the first is the
    result. Otherwise the second is. Draws curves.png, writes metrics.json. Raises ValueError for bad data or files.
    """
    x_test, y_test = data.check_data(x_test, y_test, "x_test", "y_test")
    run_dir, onehot = Path(run_dir).expanduser(), data.get_onehot(y_test)
    # `evaluate` returns the loss and the metrics. The images need no preparation: the model takes raw pixels.
    _, end = model.evaluate(x_test, onehot, BATCH_SIZE_FOR_EVALUATION, verbose=0)
    weights = model.get_weights()
    try:
        model.load_weights(run_dir / "best.keras")
    except Exception as error:  # a file can be damaged in many ways
        raise data.UserError(f"{run_dir / 'best.keras'} cannot be read ({error})") from None
    _, best = model.evaluate(x_test, onehot, BATCH_SIZE_FOR_EVALUATION, verbose=0)
    model.set_weights(weights)

    config = read_config(run_dir)
    chosen_on_them = config["data"]["validation"] == data.fingerprint((x_test, y_test))
    result = "end_of_training" if chosen_on_them else "best_weights"
    split = "validation" if config["no_test"] else "test"
    best_epoch = int(np.argmin(history["val_loss"])) + 1
    seconds = float(np.median(history["seconds"]))  # validation included
    metrics = {
        "result": f"{split}_accuracy_{result}",
        f"{split}_accuracy_end_of_training": end,
        f"{split}_accuracy_best_weights": best,
        "best_epoch": best_epoch,
        "parameters": sum(layer.count_params() for layer in model.layers if layer.name != "standardiser"),
        "seconds_per_epoch": seconds,
        "images_per_second": config["data"]["train_count"] / seconds,
    }
    write(run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    plot_histories({run_dir.resolve().name: history}, run_dir / "curves.png")
    at_end, at_best = ("  <- the result", "") if chosen_on_them else ("", "  <- the result")
    chosen_on = f"the {split} set: optimistic" if chosen_on_them else "validation images"
    print(f"{split.title()} accuracy, end-of-training weights:   {end:.4f}{at_end}  (model.keras)")
    print(f"{split.title()} accuracy, best weights:              {best:.4f}{at_best}", end="  ")
    print(f"(best.keras, epoch {best_epoch}, chosen on {chosen_on})")
    return end, best


# ---------------------------------------------------------------- Look
#
# Accuracy says how many; pictures show which, and may hint at why.


def view_predictions(images, labels, probabilities, path, which="all", count=20, seed=0):
    """Write a figure of up to `count` images with their predicted and true classes to `path`.

    images: uint8 (N, 32, 32, 3); labels: int (N,); probabilities: (N, 10) from `model.predict`, in the same order.
    which: "all" or "correct", drawn at random; or "incorrect", the most confident mistakes. (Some of those a person
    would get wrong too.)
    """
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right, order = predicted == labels, np.random.default_rng(seed).permutation(len(images))
    surest = np.argsort(-sure, kind="stable")
    groups = {"all": order, "correct": [i for i in order if right[i]], "incorrect": [i for i in surest if not right[i]]}
    chosen = groups[which][:count]
    rows = max(1, math.ceil(len(chosen) / 5))
    figure = Figure(figsize=(11, 2.3 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{which} predictions: predicted class, how sure (true class); green: right, red: wrong")
    axes = figure.subplots(rows, 5, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(images[i])
        title = f"{data.CLASS_NAMES[predicted[i]]} {sure[i]:.0%} ({data.CLASS_NAMES[labels[i]]})"
        axis.set_title(title, fontsize=9, color="green" if right[i] else "red")
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


def view_feature_maps(model, image, label, path, count=8):
    """Write a figure of what a network sees in one image, uint8 (32, 32, 3) of the class `label`, to `path`.

    The first row is the standardised image, as the network gets it. Each further row is for one size of feature maps:
    the `count` maps with the largest values, from the last layer of that size. The first rows usually show edges and
    outlines, the last ones blobs that say where something is. That may help to understand a mistake. The model must be
    made by `assemble`, with a sequential or functional network; else nothing is drawn.
    """
    try:
        standardiser, network = model.layers
        standardised = standardiser(image[None].astype("float32"))
        # Every layer of such a network keeps its output tensor. So a second model, with the same layers and weights but
        # all of their outputs, shows what the first one computes on the way.
        outputs = keras.Model(network.inputs, [layer.output for layer in network.layers])(standardised, training=False)
    except (AttributeError, ValueError):
        print("No feature maps drawn: the network behind the standardiser is neither sequential nor functional")
        return
    # (1, H, W, channels) with H above 1; in a dict a later output replaces an earlier one of the same size.
    maps = {f"{x.shape[1]}×{x.shape[2]}": x for x in outputs if len(x.shape) == 4 and x.shape[1] > 1}
    maps = {"standardised image": standardised} | maps
    figure = Figure(figsize=(1.2 * (count + 1), 1.4 * len(maps) + 0.4), layout="constrained")
    axes = figure.subplots(len(maps), count + 1, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    axes[0, 0].imshow(image)
    predicted, true = data.CLASS_NAMES[int(np.argmax(outputs[-1]))], data.CLASS_NAMES[label]
    axes[0, 0].set_title(f"predicted: {predicted}\ntrue: {true}", fontsize=9, loc="left")
    for row, (title, x) in zip(axes[:, 1:], maps.items(), strict=True):
        values = keras.ops.convert_to_numpy(keras.ops.cast(x[0], "float32"))  # (H, W, channels)
        strongest = np.argsort(-values.max(axis=(0, 1)), kind="stable")[:count]
        row[0].set_title(f"{title}, {len(strongest)} of {values.shape[2]} maps", fontsize=9, loc="left")
        for axis, channel in zip(row, strongest, strict=False):
            axis.imshow(values[:, :, channel], cmap="gray")
    figure.savefig(path)


def look(model, x, y, run_dir):
    """Draw pictures of `model` as it is: predictions, confusion matrix, feature maps of its most confident mistake.

    x: uint8 (N, 32, 32, 3); y: (N,) or (N, 1) of 0…9; run_dir: the folder for the pictures.
    """
    (x, y), run_dir = data.check_data(x, y), Path(run_dir).expanduser()
    # `predict` returns ten probabilities per image, in the order of the images.
    probabilities = model.predict(x, BATCH_SIZE_FOR_EVALUATION, verbose=0)
    predicted = probabilities.argmax(axis=1)
    for which in ("all", "correct", "incorrect"):
        view_predictions(x, y, probabilities, run_dir / f"predictions_{which}.png", which)
    plot_confusion(y, predicted, run_dir / "confusion.png")
    worst = np.argmax(probabilities.max(axis=1) * (predicted != y))  # the first image if there is no mistake
    view_feature_maps(model, x[worst], y[worst], run_dir / "feature_maps.png")


# ---------------------------------------------------------------- The whole story of a run


def run(settings, out="runs", run_dir=None):
    """Train, evaluate and look at one of the two networks. `settings` must be complete, as from make_settings."""
    # First the number format and the seed, then the network: its first weights are random.
    keras.config.set_dtype_policy(settings["dtype_policy"])
    keras.utils.set_random_seed(settings["seed"])
    if settings["network"] == "svgg":
        network = svgg.build_svgg(settings["drop_rate"])
    else:
        size = (settings["num_convs"], settings["k_factor"])
        network = wrn.build_wrn(*size, settings["drop_rate"], settings["full_resolution"])

    cifar10 = data.load_cifar10(settings["source"])
    x_train, y_train, x_val, y_val = training_and_validation(cifar10, settings["holdout"])
    run_name = f"{network.name}_{settings['recipe']}_scheme{settings['scheme']}{'_holdout' * settings['holdout']}"
    for name, value in settings.items():  # so that you notice a mistake before training for hours
        print(f"  {name:<15} {value}")
    print(f"{network.name}: {network.count_params():,} parameters; {len(x_train)} training images")

    print("Fitting the standardisation to the training images", flush=True)
    model = assemble(augment.standardiser(x_train, settings["scheme"]), network)
    arrays = (x_train, y_train, x_val, y_val)
    history, run_dir = compile_and_train(model, run_name, *arrays, settings, out=out, run_dir=run_dir)

    # With --no-test the validation images stand in for the test images.
    x, y = (x_val, y_val) if settings["no_test"] else (cifar10.x_test, cifar10.y_test)
    evaluate_performance(model, history, run_dir, x, y)
    look(model, x, y, run_dir)


# ---------------------------------------------------------------- Recording a run
#
# A run that is killed loses only the epoch under way, and ends with the same weights when it is resumed. If a finished
# run is lengthened, its results stay until the first new epoch is complete.
# Keras's own BackupAndRestore keeps weights, optimizer and epoch too, but not the dropout layers' random state, so a
# resumed run would go another way. And it writes in place, so a kill can leave half a file.


def replace(new, path):
    """Rename the file `new` to `path` when all of it is on the disk. A crash leaves the old file or the new one."""
    with open(new, "r+b") as file:  # Windows synchronises only what is open for writing
        os.fsync(file.fileno())
    os.replace(new, path)


def write(path, text):
    """Write a file, the whole text or nothing."""
    new = path.with_name(f"new.{path.name}")
    new.write_text(text, encoding="utf-8", newline="\n")
    replace(new, path)


def read_config(run_dir):
    """Return the content of config.json in run_dir, with today's defaults for what it lacks."""
    try:
        return DEFAULTS | json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise data.UserError(f"{run_dir} is not the folder of a run, or its config.json is damaged ({error})") from None


def variables(model):
    """Return the variables that training changes, of a compiled model and its optimizer, in a fixed order.

    They are the weights (without frozen ones such as the whitening matrix), the averages of batch normalisation, the
    random state of the dropout layers (which `.weights` leaves out), and the optimizer's momentum and update count.
    """
    frozen = {id(weight) for layer in model.layers if not layer.trainable for weight in layer.weights}
    return [v for v in model.variables if id(v) not in frozen] + model.optimizer.variables


class RunRecorder(keras.callbacks.Callback):
    """Records each epoch in the run's folder; the last callback in the list.

    state.npz is replaced last. If the run is killed before that, the epoch counts as not done, and a resumed run
    repeats it: from the same state it comes out the same, so nothing needs repair. (On a GPU the last digits may
    differ, and best.keras may be that of the interrupted attempt. No harm: its accuracy is measured from the file.)
    """

    def __init__(self, run_dir, history, config):
        super().__init__()
        self.run_dir, self.history, self.config = run_dir, history, config

    def on_epoch_begin(self, epoch, logs=None):
        """Note the time and the learning rate of the epoch's first update."""
        self.started = time.perf_counter()
        self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        """Write the files. Raises data.UserError before that if the loss or a weight is no longer a number."""
        row = {"epoch": epoch + 1} | {name: logs[name] for name in ("accuracy", "loss", "val_accuracy", "val_loss")}
        row |= {"learning_rate": self.rate, "seconds": time.perf_counter() - self.started}
        arrays = [keras.ops.convert_to_numpy(variable) for variable in variables(self.model)]
        # The loss alone is not enough: fast ReLU code turns NaN into 0, so it can be finite when the weights are not.
        if not all(np.isfinite(values).all() for values in (list(row.values()), *arrays)):
            (self.run_dir / "best.new.keras").unlink(missing_ok=True)
            raise data.UserError(
                f"epoch {epoch + 1} is not recorded: loss or weights are no longer numbers; use a lower learning rate"
            )
        for name, value in row.items():
            self.history[name].append(value)
        # The largest file first: if the disk is full, nothing changes.
        np.savez(self.run_dir / "state.new.npz", *arrays, history=json.dumps(self.history))
        if (self.run_dir / "best.new.keras").exists():  # ModelCheckpoint has just written it
            replace(self.run_dir / "best.new.keras", self.run_dir / "best.keras")
        rows = [self.history.keys(), *zip(*self.history.values(), strict=True)]
        write(self.run_dir / "history.csv", "".join(",".join(map(str, row)) + "\n" for row in rows))
        write(self.run_dir / "config.json", json.dumps(self.config, indent=2) + "\n")
        for name in ("model.keras", "metrics.json"):  # of the shorter run, if this one is lengthened
            (self.run_dir / name).unlink(missing_ok=True)
        replace(self.run_dir / "state.new.npz", self.run_dir / "state.npz")


@contextlib.contextmanager
def lock(run_dir):
    """Keep other processes, such as a job that was queued twice, out of a run's folder within a `with` block."""
    with open(run_dir / ".lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise data.UserError(f"another process is working on {run_dir}; wait for it, or stop it") from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        yield


def open_run(model, run_dir, config):
    """Begin the run in run_dir, or bring a compiled `model` to where that run was. Return its history."""
    model.optimizer.build(model.trainable_variables)  # create the momentum variables
    (run_dir / "best.new.keras").unlink(missing_ok=True)  # of an epoch that did not end
    if not (run_dir / "state.npz").exists():
        if (run_dir / "metrics.json").exists():
            raise data.UserError(f"{run_dir} has results but no state.npz: it cannot be continued; start a new run")
        columns = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds")
        history = {name: [] for name in columns}
        write(run_dir / "config.json", json.dumps(config, indent=2) + "\n")
        return history
    recorded, may_change = read_config(run_dir), {"source", "no_xla", "versions", "device"}
    if config["schedule"] != "cosine":  # a longer cosine run would have other learning rates from the beginning
        may_change.add("epochs")
    if changed := [name for name in sorted(config.keys() - may_change) if recorded.get(name) != config[name]]:
        words = [f"{name}: {str(recorded.get(name))[:99]} then, {str(config[name])[:99]} now" for name in changed]
        raise data.UserError(f"the run in {run_dir} has other settings ({'; '.join(words)}); start a new run")
    targets = variables(model)
    try:
        with np.load(run_dir / "state.npz", allow_pickle=False) as state:  # only arrays, nothing that runs
            history = json.loads(str(state["history"]))
            arrays = [state[f"arr_{i}"] for i in range(len(state.files) - 1)]
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in targets]:
            raise ValueError("it is of another network or optimizer")
    except Exception as error:  # NumPy, zip and JSON each raise exceptions of their own
        raise data.UserError(f"{run_dir / 'state.npz'} is damaged: the run cannot be continued ({error})") from None
    for variable, array in zip(targets, arrays, strict=True):
        variable.assign(array)
    return history


def describe_run(settings, model, optimizer, arrays):
    """Return the content of config.json: the settings, and what is needed to recognise data, network and machine."""
    config = {**settings, "dtype_policy": keras.config.dtype_policy().name, "data": {"train_count": len(arrays[0])}}
    config["data"] |= {"fingerprint": data.fingerprint(arrays), "validation": data.fingerprint(arrays[2:])}
    if settings["optimizer"] is optimizer:  # one of the caller's own
        config |= {f"optimizer_{name}": value for name, value in optimizer.get_config().items()}
        config |= {"optimizer": type(optimizer).__name__, "optimizer_name": None}  # Keras numbers names: adam_1
    # A hash of the network's configuration notices a change that leaves all shapes as they are, such as ReLU to tanh.
    # Numbers as in conv2d_7 are left out: a rebuilt network has others. (A subclassed model may have no configuration.)
    with contextlib.suppress(Exception):
        text = json.dumps(keras.saving.serialize_keras_object(model)["config"], sort_keys=True)
        config["network_digest"] = hashlib.sha256(re.sub(r'_\d+"', '"', text).encode()).hexdigest()
    config["versions"] = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    config["device"] = f"{', '.join(map(str, keras.distribution.list_devices()))}, {os.cpu_count()} cores"
    # As JSON will read it back, to compare the two: lists for tuples, plain numbers for NumPy's, text for the rest.
    return json.loads(json.dumps(config, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x)))


# The possible numbers: least <= number < limit, and whole numbers where the limit is an int. Then the possible words.
LIMITS = {"epochs": (1, 2**31), "batch_size": (1, 2**31), "seed": (0, 2**31), "learning_rate": (1e-9, 1000.0)}
LIMITS |= dict.fromkeys(("drop_rate", "warmup", "weight_decay", "label_smoothing"), (0.0, 1.0))
CHOICES = {"schedule": ("constant", "inverse_time", "cosine"), "recipe": ("tutorial", "modern")}
CHOICES |= {"dtype_policy": ("float32", "mixed_float16", "mixed_bfloat16")}


def check_settings(settings):
    """Return `settings` if a run can use them, else raise data.UserError."""
    if wrong := settings.keys() ^ (DEFAULTS | TABLE).keys():
        raise data.UserError(f"unknown or missing settings: {', '.join(sorted(wrong))}; begin with a recipe")
    for name, (least, limit) in LIMITS.items():
        if type(limit)(settings[name]) != settings[name] or not least <= settings[name] < limit:
            raise data.UserError(f"{name} must be {type(limit).__name__}, >= {least}, < {limit}, not {settings[name]}")
    for name, words in CHOICES.items():
        if settings[name] not in words:
            raise data.UserError(f"{name} must be one of {', '.join(words)}, not {settings[name]!r}")
    if not isinstance(optimizer := settings["optimizer"], keras.optimizers.Optimizer):
        if optimizer not in ("rmsprop", "sgd"):
            raise data.UserError(f"optimizer must be rmsprop, sgd or a Keras optimizer like Adam(), not {optimizer!r}")
    elif optimizer.built:
        raise data.UserError("this optimizer was used before and keeps its momentum and update count; make a new one")
    if settings["no_test"] and not settings["holdout"]:
        raise data.UserError("no_test needs holdout: without it the test set is the validation data")
    augment.scheme_settings(settings["scheme"])  # raises data.UserError for an unknown one
    return settings


def check_model(model, images):
    """Raise data.UserError unless `model` gives each image ten probabilities. np.abs: negative ones spoil the sum."""
    outputs = model(tf.cast(images, tf.float32), training=False)  # this also builds a model that is not built yet
    shape = tuple(getattr(outputs, "shape", ()))  # () if there are several outputs
    if shape != (len(images), len(data.CLASS_NAMES)) or not np.allclose(np.abs(outputs).sum(axis=1), 1, atol=0.01):
        raise data.UserError(
            f"the model's one output (B, 10) must be probabilities with the sum 1; its shape is {shape or 'several'}; "
            'end it with Dense(10, activation="softmax")'
        )


# ---------------------------------------------------------------- The command line

MEANINGS = {
    "recipe": "set of training settings; in brackets below: tutorial svgg | tutorial wrn | modern",
    "scheme": "augmentation scheme: how training images are transformed and standardised",
    "drop_rate": "dropout: share of values (svgg) or feature maps (wrn) set to zero while training",
    "optimizer": "how gradients change the weights: rmsprop or sgd",
    "learning_rate": "size of each change; the largest value if it varies",
    "schedule": "how the learning rate varies",
    "warmup": "cosine only: share of all updates in which the learning rate first rises from zero",
    "weight_decay": "each update shrinks the weights by this share times the learning rate",
    "label_smoothing": "share of a label's probability that is spread evenly over all classes",
    "epochs": "passes over the training images",
    "batch_size": "images per update",
    "num_convs": "wrn: number of convolutions, 6N + 4",
    "k_factor": "wrn: widening factor",
    "full_resolution": "wrn: the first group keeps 32x32 pixels",
    "holdout": "train on 45,000 images, choose the best weights on the other 5,000",
    "no_test": "leave the test set untouched, for tuning; needs --holdout",
    "seed": "seed of the weights, the dropout, the order of the images, and their transformations",
    "dtype_policy": "number format; on some processors and GPUs a mixed one is faster than float32: measure one epoch",
    "no_xla": "switch off XLA, TensorFlow's compiler, which Keras uses on GPUs",
}


def make_parser():
    """Return the parser of the command line. Its result has only the flags that were typed, and `network` (or None)."""
    parser = data.Parser(description="Step 5: train, evaluate, draw pictures.", argument_default=argparse.SUPPRESS)
    parser.add_argument("network", nargs="?", choices=["svgg", "wrn"], default=None, help="VGG or Wide ResNet")
    resume = "continue the run in this folder, or begin it there; a larger --epochs lengthens it, but not with cosine"
    parser.add_argument("--resume", metavar="RUN", help=resume)
    parser.add_argument("--data", metavar="SOURCE", dest="source", help="folder, archive, .npz, or the word sample")
    parser.add_argument("--out", metavar="DIR", help="folder for the runs (default: runs)")
    schemes = {str(key): key for key in augment.SCHEMES}
    for name, meaning in MEANINGS.items():
        flag, defaults = f"--{name.replace('_', '-')}", TABLE.get(name) or (DEFAULTS[name],)
        if defaults[0] is False:
            parser.add_argument(flag, action="store_true", help=meaning)
            continue
        kind = (lambda word: schemes.get(word, word)) if name == "scheme" else type(defaults[0])  # "4" -> 4, a key
        accepted = {"choices": CHOICES[name]} if name in CHOICES else {"metavar": "X"}
        parser.add_argument(flag, type=kind, help=f"{meaning} [{' | '.join(map(str, defaults))}]", **accepted)
    return parser


def make_settings(typed, run_dir=None):
    """Return a run's settings. In rising order of rank: defaults, recipe, recorded in run_dir, typed."""
    recorded = read_config(run_dir) if run_dir and (run_dir / "config.json").exists() else {}
    if any(name in typed and typed[name] != recorded.get(name) for name in ("network", "recipe")):
        recorded = {name: recorded[name] for name in recorded.keys() - TABLE.keys()}  # its table is another recipe's
    chosen = DEFAULTS | recorded | typed
    if chosen["network"] not in ("svgg", "wrn"):
        raise data.UserError("say which network, svgg or wrn; or give --resume RUN with a run of one of these")
    chosen = RECIPES[chosen["recipe"], chosen["network"]] | chosen
    settings = {name: chosen[name] for name in (*DEFAULTS, *TABLE)}
    if settings["source"] not in (None, "sample"):
        settings["source"] = str(Path(settings["source"]).expanduser().resolve())  # to be found from another folder
    return check_settings(settings)


def main(arguments=None):
    """Train, or continue to train, then evaluate: the command line of this step."""
    typed = {name: value for name, value in vars(make_parser().parse_args(arguments)).items() if value is not None}
    run_dir = Path(typed["resume"]).expanduser() if "resume" in typed else None
    with data.errors_in_one_line():
        try:
            run(make_settings(typed, run_dir), typed.get("out", "runs"), run_dir)
        except tf.errors.OpError as error:  # TensorBoard's writer, if the disk is full
            raise data.UserError(error) from None
        except KeyboardInterrupt:
            raise SystemExit("\nStopped. If a line above says how to go on, the run can be continued.") from None


if __name__ == "__main__":
    main()
