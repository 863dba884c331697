"""Step 5 of the tutorial: compile, train, evaluate, and look at the predictions. This is the program to run.

    python train.py wrn                             the tutorial's WRN-40-2: 400 epochs, made for a GPU
    python train.py svgg                            the tutorial's simplified VGG
    python train.py wrn --recipe modern             the same network with newer settings, 20 epochs
    python train.py wrn --data sample --epochs 2    two epochs on a small slice, without a network
    python train.py --resume runs/NAME/TIME         go on where an interrupted run stopped

A run prints its settings, a line for each epoch (on a terminal: a progress bar), and at the end

    Test accuracy, end-of-training weights:   0.…   <- the result
    Test accuracy, best weights:              0.…   (epoch …, chosen on the test set: optimistic)

Everything it makes lies in one folder, runs/NAME/TIME: config.json (its settings), history.csv (loss, accuracy and
learning rate of each epoch), metrics.json (the results), model.keras (takes raw pixels 0…255, loads without this code),
best.weights.h5, standardiser.keras, state.npz (to resume from), logs/ (for TensorBoard) and the pictures.

Different from the tutorial: see "Differences from the tutorial" in README.md. The two that matter most. The end-of-
training weights give the result, since the best ones are chosen on the very images that are then scored; with --holdout
the choice is made on 5,000 training images, and the test set is looked at after training only. And a run cannot be
lost: it may be killed at any instant, and then goes on to the same weights, bit for bit, that it would have had.

Shapes: B images in a batch, N images in all, H = W = 32 pixels, C = 3 channels.
"""

import os
import signal
import sys
import threading

# ---------------------------------------------------------------- Stopping
#
# Ctrl-C and SIGTERM (which `kill` and cluster schedulers send) are waited for by a thread of their own, so that they
# are heard while the main thread is deep inside a training step or a matrix decomposition. Nothing needs to be tidied
# up: the files in a run's folder are complete at every instant. This stands before the imports because they take
# seconds, and somebody may press Ctrl-C then. On a first reading go on to "Recipes".

# A signal that is ignored when the program starts (by nohup, or a script's `&`) stays ignored.
STOP_SIGNALS = {number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN}
# What the last line tells the user to do; changes once there is something to go on with.
_farewell = "nothing has been written; give the same command again"


def _stop_on_signal():
    number = signal.sigwait(STOP_SIGNALS)
    os.write(2, f"\nStopped; {_farewell}\n".encode())
    os._exit(128 + number)  # 130 for Ctrl-C, 143 for SIGTERM, as shells expect


if __name__ == "__main__" and hasattr(signal, "pthread_sigmask"):  # Windows does not have it: Python's default remains
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_stop_on_signal, daemon=True).start()

import argparse
import contextlib
import datetime
import itertools
import json
import math
import platform
import shlex
import shutil
import tempfile
import time
from pathlib import Path

import augment  # before Keras: it quietens TensorFlow
import data
import svgg
import wrn

# isort: split
import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tensorboard.summary import Writer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BATCH_SIZE_FOR_EVALUATION = 500  # any number gives the same result; the tutorial's 1 takes many times as long


class RunError(ValueError):
    """A run cannot start, go on or be resumed. The message is one line for a person to act on."""


# ---------------------------------------------------------------- Recipes
#
# What is set for training one network; what the words mean is in the two functions below. Each line is also an option
# on the command line, so that the effect of one change can be seen.

RECIPES = {
    # The tutorial's settings, taken over as they are.
    "tutorial": {
        "svgg": {
            "optimizer": "rmsprop",
            "learning_rate": 0.001,  # RMSprop's default, and constant: in the tutorial the curves fluctuate
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "scheme": 1,
            "drop_rate": 0.5,  # part of the network
            "epochs": 400,
            "batch_size": 128,
        },
        "wrn": {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            # rate = 0.1 / (1 + 0.0005 · updates). The paper's 0.0005 is a *weight* decay; passed to Keras as `decay` it
            # became a decay of the learning rate, which is down to a tenth after 46 epochs and to 0.0013 after 400.
            "schedule": "inverse_time",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "scheme": 1,
            "drop_rate": 0.3,
            "epochs": 400,
            "batch_size": 128,
        },
    },
    # The same networks, with settings for twenty epochs.
    "modern": {
        "svgg": {
            "optimizer": "sgd",
            "learning_rate": 0.03,  # the peak; whether 0.1 is better was undecided after five epochs
            "schedule": "cosine",
            "warmup": 0.25,
            "weight_decay": 2e-2,  # in five epochs 1.9 points better on held-out images than 5e-3
            "label_smoothing": 0.1,
            "scheme": 4,
            "drop_rate": 0.5,
            "epochs": 20,
            "batch_size": 128,
        },
        "wrn": {
            "optimizer": "sgd",
            "learning_rate": 0.1,  # the peak
            "schedule": "cosine",  # from the peak down to zero: settle at the end
            "warmup": 0.25,  # before that, up from zero in this share of all updates
            # Decoupled: w −= rate · decay · w at each step. The paper's 5e-4 is in the loss, where momentum 0.9
            # makes a gradient act 1 / (1 − 0.9) = 10 times in all: 5e-3 here. Twice that was half a point better on
            # held-out images, which may be noise.
            "weight_decay": 1e-2,
            # Aim at 0.91 for the true class, 0.01 for each other. In ten epochs as accurate with it as without.
            "label_smoothing": 0.1,
            "scheme": 4,  # the paper's 4-pixel shift, mean and standard deviation
            "drop_rate": 0.0,  # in ten epochs 5.6 points better than 0.3: too short to memorise
            "epochs": 20,
            "batch_size": 128,
        },
    },
}
# Schedules that do not depend on the number of epochs: such a run can be lengthened afterwards.
OPEN_ENDED_SCHEDULES = ("constant", "inverse_time")
SCHEDULES = (*OPEN_ENDED_SCHEDULES, "cosine")


def learning_rate(settings, steps_per_epoch):
    """Return the learning rate for the optimizer: a float, or one of Keras's own schedules, a function of the update.

    (A schedule class of our own would make the saved model need this code.)
    """
    rate, total = settings["learning_rate"], settings["epochs"] * steps_per_epoch
    if settings["schedule"] == "inverse_time":
        return keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=0.0005)
    if settings["schedule"] == "cosine":
        warmup = round(settings["warmup"] * total)
        return keras.optimizers.schedules.CosineDecay(0.0, total - warmup, warmup_target=rate, warmup_steps=warmup)
    if settings["schedule"] != "constant":
        raise ValueError(f"there is no schedule {settings['schedule']!r}")
    return rate


def make_optimizer(settings, steps_per_epoch):
    """Return the Keras optimizer that `settings`, an entry of RECIPES, describes."""
    rate, decay = learning_rate(settings, steps_per_epoch), settings["weight_decay"] or None
    if settings["optimizer"] == "rmsprop":
        optimizer = keras.optimizers.RMSprop(rate, weight_decay=decay)
    elif settings["optimizer"] == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    else:
        raise ValueError(f"there is no optimizer {settings['optimizer']!r}")
    if decay:  # biases, scales and shifts are few and no cause of overfitting
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


# ---------------------------------------------------------------- The whole model


def assemble(standardise, network):
    """Return the model that is trained, saved and used: raw pixels (B, 32, 32, 3), 0…255 -> (B, 10) probabilities.

    standardise: frozen layers from augment.standardiser; network: from build_svgg or build_wrn.
    """
    return keras.Sequential([keras.Input(data.IMAGE_SHAPE), standardise, network], name="cifar10")


def network_of(model):
    """Return the trained part of a model from `assemble`."""
    return model.layers[-1]


# ---------------------------------------------------------------- The files of a run


@contextlib.contextmanager
def writing(path):
    """Raise RunError if `path` cannot be written in the with block."""
    try:
        yield
    except (OSError, RuntimeError, augment.tf.errors.OpError) as error:  # Python, h5py, TensorFlow about a full disk
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise RunError(f"{path} cannot be written ({reason}); what its folder held before is intact") from None


def _flush_folder(folder):
    """Make a new name in `folder` outlive a power cut, where the system can do that."""
    with contextlib.suppress(AttributeError, OSError):  # Windows has no O_DIRECTORY; some network disks refuse
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path, write):
    """Call write(temporary_path) and then give that file the name `path`: it is there whole, or not at all.

    A kill or a power cut at any instant leaves the old file, or the new one. Raises RunError if it cannot be written.
    """
    temporary = path.with_name(f".new.{path.name}")
    try:
        with writing(path):
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
    except RunError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path, content):
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def new_run_dir(out, run_name):
    """Make and return the folder out/run_name/YYYYMMDD-HHMMSS. Raises RunError if that is impossible."""
    while True:
        run_dir = Path(out, run_name, datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:  # another run started in the same second
            if not Path(out, run_name).is_dir():
                raise RunError(f"{Path(out, run_name)} is not a folder; choose another --out") from None
            time.sleep(1)
        except OSError as error:
            raise RunError(f"{run_dir} cannot be made ({error.strerror}); choose another --out") from None


def lock(run_dir):
    """Lock the folder for this process, until the file that is returned is closed or the process ends, however it ends.

    Raises RunError if another process has it.
    """
    file = open(run_dir / ".lock", "w")  # noqa: SIM115 - closing it gives up the lock
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{run_dir} is being written by another process; wait for it or stop it") from None
    return file


def save_state(run_dir, network, optimizer, progress):
    """Write state.npz: all that is needed to go on after this epoch, in one file and without pickle."""
    arrays = {f"network_{i}": value for i, value in enumerate(network.get_weights())}
    arrays |= {f"optimizer_{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(optimizer.variables)}
    arrays["progress"] = np.array(json.dumps(progress))
    write_atomically(run_dir / "state.npz", lambda temporary: np.savez(temporary, **arrays))


def load_state(run_dir, network, optimizer):
    """Restore network and (built) optimizer from state.npz, and return the progress; RunError if it is damaged."""
    path = run_dir / "state.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        progress = json.loads(str(arrays.pop("progress")))
        network.set_weights([arrays.pop(f"network_{i}") for i in range(len(network.weights))])
        for i, variable in enumerate(optimizer.variables):
            variable.assign(arrays.pop(f"optimizer_{i}"))
        epochs = {len(progress["seconds"]), *map(len, progress["history"].values())}
        # Nothing may be left over, each list has a number for each epoch, and one of the epochs is the best.
        if arrays or len(epochs) != 1 or progress["starting_epoch"] + progress["best_epoch"] < 1:
            raise ValueError("its parts do not belong together")
    except Exception as error:  # zip, NumPy, JSON and Keras: each has ways of its own to find a file damaged
        reason = " ".join(str(error).split())[:80]
        raise RunError(
            f"{path} is damaged or not a state of this run ({reason}); delete it, and the run begins again"
        ) from None
    return progress


def write_history(run_dir, progress):
    """Write history.csv: a row for each epoch, counted from 1. The digits give back the exact numbers."""
    history, first = progress["history"], progress["starting_epoch"] + 1
    rows = [["epoch", *history]]
    rows += [[repr(number) for number in row] for row in zip(itertools.count(first), *history.values())]
    text = "".join(",".join(row) + "\n" for row in rows)
    write_atomically(run_dir / "history.csv", lambda temporary: temporary.write_text(text))


# ---------------------------------------------------------------- What happens at each epoch


class RunRecorder(keras.callbacks.Callback):
    """Keeps a run's folder up to date after each epoch, and makes epoch k depend on (seed, k) and the state before it.

    It does the work of ModelCheckpoint, CSVLogger, TensorBoard and BackupAndRestore. Those write in place, each with a
    memory of its own, and a run that is killed between two of them cannot be put together again. Here one file,
    state.npz, is written first and alone decides; whatever a kill kept from being written after it, open_folder makes
    from it.
    """

    def __init__(self, run_dir, seed, starting_epoch=0, show_epochs=True):
        super().__init__()
        self.run_dir, self.seed, self.show_epochs = run_dir, seed, show_epochs
        self.progress = {
            "starting_epoch": starting_epoch,
            "history": {},  # loss, accuracy, val_loss, val_accuracy, learning_rate -> a number for each epoch since
            "best_epoch": 0,  # the one with the lowest validation loss, counted from 1
            "seconds": [],
            "cpu_seconds": [],
        }

    @property
    def epochs_done(self):
        return self.progress["starting_epoch"] + len(self.progress["seconds"])

    def open_folder(self, network, optimizer):
        """Go on from state.npz if there is one, and bring every other file in line with it.

        A kill may have struck between two files, or while one was being written.
        """
        for leftover in self.run_dir.glob(".new.*"):
            leftover.unlink()
        if (self.run_dir / "state.npz").exists():
            self.progress = load_state(self.run_dir, network, optimizer)
            write_history(self.run_dir, self.progress)
            if self.progress["best_epoch"] == self.epochs_done:  # the best weights are those of the state
                self._save_best_weights(network)
            with best_weights(network, self.run_dir):
                pass  # if they are damaged, say so now and not after the last epoch
        logs = self.run_dir / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        with writing(logs):
            self.writers = {split: Writer(str(logs / split)) for split in ("train", "validation")}
        for epoch in range(len(self.progress["seconds"])):
            self._log_to_tensorboard(epoch)
        self.opened_at = self.epochs_done

    def on_epoch_begin(self, epoch, logs=None):
        """Give the dropout layers the masks of this epoch, and note the learning rate and the time."""
        # Dropout layers draw from a state that runs on from epoch to epoch and is not saved with the weights.
        for i, layer in enumerate(network_of(self.model).layers):
            if hasattr(layer, "seed_generator"):
                seed = np.random.SeedSequence([self.seed, epoch, i]).generate_state(1)[0]
                layer.seed_generator.state.assign([int(seed) & 0x7FFFFFFF, 0])
        # The rate of the epoch's first update. Read afterwards it would be the next epoch's.
        self.rate = float(self.model.optimizer.learning_rate)
        self.started = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        """Write the state, and then everything else; RunError if the loss is no longer a number."""
        values = {name: float(value) for name, value in logs.items() if name != "learning_rate"}
        values["learning_rate"] = self.rate
        if not all(map(math.isfinite, values.values())):
            raise RunError(
                f"the loss became {values['loss']} in epoch {epoch + 1}. Likely causes: a learning rate that is too"
                f" high, or damaged data. The state after epoch {epoch} and the best weights are untouched"
            )
        # The loss alone does not tell: oneDNN's ReLU makes 0 of NaN, so that a Wide ResNet whose weights are lost may
        # go on with a loss that is a number.
        trained = [*network_of(self.model).weights, *self.model.optimizer.variables]
        if not all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in trained):
            raise RunError(
                f"the weights are no longer numbers after epoch {epoch + 1}. Likely causes: a learning rate that is too"
                f" high, or damaged data. The state after epoch {epoch} and the best weights are untouched; start a new"
                " run with a lower --learning-rate"
            )
        progress, network = self.progress, network_of(self.model)
        for name, value in values.items():
            progress["history"].setdefault(name, []).append(value)
        progress["seconds"].append(time.perf_counter() - self.started[0])
        progress["cpu_seconds"].append(time.process_time() - self.started[1])
        # Loss rather than accuracy: it changes with every image, and it notices confident mistakes.
        best = int(np.argmin(progress["history"]["val_loss"]))
        progress["best_epoch"] = progress["starting_epoch"] + best + 1

        save_state(self.run_dir, network, self.model.optimizer, progress)  # first: all others follow it
        if progress["best_epoch"] == epoch + 1:
            self._save_best_weights(network)
        write_history(self.run_dir, progress)
        self._log_to_tensorboard(-1)
        self._report(epoch, values)

    def on_train_end(self, logs=None):
        for writer in self.writers.values():
            writer.close()

    def _save_best_weights(self, network):
        def write(temporary):
            # Where the disk is full HDF5 does not only fail, it crashes the process. So find out before.
            temporary.write_bytes(bytes(5 * network.count_params() + 500_000))  # somewhat more than it takes
            network.save_weights(temporary)

        write_atomically(self.run_dir / "best.weights.h5", write)

    def _log_to_tensorboard(self, row):
        step = range(self.progress["starting_epoch"], self.epochs_done)[row]
        with writing(self.run_dir / "logs"):
            for name, values in self.progress["history"].items():
                writer = self.writers["validation" if name.startswith("val_") else "train"]
                writer.add_scalar(f"epoch_{name.removeprefix('val_')}", values[row], step)
            for writer in self.writers.values():
                writer.flush()

    def _report(self, epoch, values):
        seconds, epochs = self.progress["seconds"][-1], self.params["epochs"]
        if self.show_epochs:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"epoch {epoch + 1}/{epochs}  {numbers}  {seconds:.0f} s", flush=True)
        if epoch == self.opened_at and epoch + 1 < epochs:
            left = datetime.timedelta(seconds=round(seconds * (epochs - epoch - 1)))
            print(f"Expected to end at {datetime.datetime.now() + left:%Y-%m-%d %H:%M}, in {left}", flush=True)


# ---------------------------------------------------------------- Compile and train


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

    model:            from `assemble`.
    run_name:         the folder is out/run_name/YYYYMMDD-HHMMSS.
    x_…, y_…:         images uint8 (N, 32, 32, 3) and labels int (N,); the validation images choose the best weights.
    scheme:           of augment.SCHEMES, or a dict like those; used for the random transformations.
    optimizer:        a Keras optimizer; RMSprop with its defaults if None.
    epochs:           the number of the last epoch, as in Keras's fit.
    lr_schedule_fn:   a function from the epoch, counted from 0, to its learning rate; not for an optimizer with a
                      schedule of its own.
    starting_epoch:   the first epoch's number, when a model is trained further; images are drawn as in that epoch.
    run_dir:          go on in this folder; if it holds a state.npz, from there. Default: a new one.
    jit_compile:      False switches XLA off; "auto" leaves the choice to Keras (on with a GPU).

    history maps loss, accuracy, val_loss, val_accuracy and learning_rate to lists with a number for each epoch.
    Raises RunError if a file cannot be written or read or the loss is no longer a number.
    """
    run_dir = Path(run_dir) if run_dir else new_run_dir(out, run_name)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    optimizer = optimizer or keras.optimizers.RMSprop()
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)
    optimizer.build(model.trainable_variables)  # Keras would make the momentum at the first step, after the restoring
    on_terminal = sys.stdout.isatty()
    recorder = RunRecorder(run_dir, seed, starting_epoch, show_epochs=not on_terminal)
    recorder.open_folder(network_of(model), optimizer)

    callbacks = [recorder]
    if lr_schedule_fn:  # before the recorder, which reads the rate that it sets
        callbacks.insert(0, keras.callbacks.LearningRateScheduler(lambda epoch: float(lr_schedule_fn(epoch))))
    if recorder.epochs_done < epochs:
        first = recorder.epochs_done
        model.fit(
            augment.training_batches(x_train, y_train, scheme, batch_size, seed, first_epoch=first),
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=math.ceil(len(x_train) / batch_size),
            validation_data=(x_val, data.get_onehot(y_val)),
            validation_batch_size=BATCH_SIZE_FOR_EVALUATION,
            callbacks=callbacks,
            shuffle=False,  # the pipeline shuffles
            verbose=1 if on_terminal else 0,
        )
    return recorder.progress["history"], run_dir


# ---------------------------------------------------------------- Evaluate


def plot_histories(histories, path):
    """Write a figure of accuracy and loss, training and validation, over the epochs, to `path`.

    histories: {name: history}, a history as returned by compile_and_train; each name gets a colour. How to read it: a
    gap between training (dashed) and validation (solid) is overfitting; a curve that is still rising at the end wants
    more epochs, or a larger learning rate.
    """
    figure = Figure(figsize=(12, 4.5))
    for axis, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for i, (name, history) in enumerate(histories.items()):
            for split, prefix, line in (("training", "", "--"), ("validation", "val_", "-")):
                values = history[prefix + metric]
                marker = "o" if len(values) == 1 else None  # a line through one point cannot be seen
                label = f"{name}, {split}"
                axis.plot(range(1, len(values) + 1), values, line, color=f"C{i}", marker=marker, label=label)
        axis.set(xlabel="epoch", ylabel=metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def plot_learning_rate(history, path):
    """Write a figure to `path`: above the learning rate of each epoch, below the losses."""
    figure = Figure(figsize=(7, 6))
    epochs = range(1, len(history["loss"]) + 1)
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(epochs, history["learning_rate"], ".-")
    above.set(ylabel="learning rate, first update")
    below.plot(epochs, history["loss"], "--", label="training")
    below.plot(epochs, history["val_loss"], label="validation")
    below.set(xlabel="epoch", ylabel="loss")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend()
    figure.tight_layout()
    figure.savefig(path)


def evaluate_performance(model, history, run_dir, x_test, y_test):
    """Draw the curves of a run, and return its accuracy on x_test as a pair of fractions.

    The first is with the end-of-training weights, the second with the best weights, those of the epoch with the lowest
    validation loss. Writes curves.png and, where the learning rate changed, learning_rate.png into run_dir; `model` has
    the end-of-training weights again afterwards. Raises RunError if run_dir has no good best.weights.h5.
    """
    plot_histories({Path(run_dir).parent.name: history}, Path(run_dir, "curves.png"))
    if len(set(history["learning_rate"])) > 1:
        plot_learning_rate(history, Path(run_dir, "learning_rate.png"))

    def accuracy():
        labels = data.get_onehot(y_test)
        return model.evaluate(x_test, labels, BATCH_SIZE_FOR_EVALUATION, verbose=0, return_dict=True)["accuracy"]

    end = accuracy()
    with best_weights(network_of(model), run_dir):
        best = accuracy()
    return end, best


@contextlib.contextmanager
def best_weights(network, run_dir):
    """Give `network` the run's best weights for the length of a with block, and then its own again."""
    path, own = Path(run_dir, "best.weights.h5"), network.get_weights()
    try:
        network.load_weights(path)
    except Exception as error:  # Keras and HDF5 have many ways to find a file damaged
        network.set_weights(own)
        reason = " ".join(str(error).split())[:80]
        raise RunError(
            f"{path} is missing, damaged or of another network ({reason}); restore it, or delete"
            " state.npz beside it, and the run begins again"
        ) from None
    try:
        yield
    finally:
        network.set_weights(own)


def predict_classes(model, images):
    """Return the most probable class of each image, int (N,), in the order of `images`, uint8 (N, 32, 32, 3)."""
    return model.predict(images, BATCH_SIZE_FOR_EVALUATION, verbose=0).argmax(axis=1)


def view_predictions(images, labels, predicted, path, which="all", count=20, seed=0):
    """Write a figure of up to `count` random images with their predicted and true classes to `path`.

    images: uint8 (N, 32, 32, 3); labels, predicted: int (N,), in the same order. which: "all", "correct" or
    "incorrect". A title says "predicted (true)", in green where they agree and in red where they do not. Accuracy says
    how many; pictures say which: cats and dogs, ships and airplanes, and some that a person would get wrong too.
    Raises ValueError for another `which`.
    """
    if which not in ("all", "correct", "incorrect"):
        raise ValueError(f"which must be 'all', 'correct' or 'incorrect', not {which!r}")
    right = predicted == labels
    candidates = np.flatnonzero({"all": right | True, "correct": right, "incorrect": ~right}[which])
    chosen = np.random.default_rng(seed).permutation(candidates)[:count]
    columns = 5
    rows = max(1, math.ceil(len(chosen) / columns))
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
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
    size = len(data.CLASS_NAMES)
    return np.bincount(labels * size + predicted, minlength=size**2).reshape(size, size)


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


def whole_number(least, most=2**31 - 1):
    """Return a function for argparse that takes a whole number from `least` to `most`."""

    def number(text):
        if not (text.isdecimal() and text.isascii() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return number


def real_number(least, below):
    """Return a function for argparse that takes a number from `least` on and below `below`."""

    def number(text):
        with contextlib.suppress(ValueError):
            if least <= float(text) < below:
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to below {below}")

    return number


def parse_arguments(arguments):
    """Return (parser, options); an option that was not given is not in `options`."""
    parser = argparse.ArgumentParser(
        description="Step 5: train, evaluate and picture a network on CIFAR-10.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("network", nargs="?", default=None, choices=["svgg", "wrn"], help="the simplified VGG or the Wide ResNet")
    add("--recipe", choices=list(RECIPES), help="all settings in one word (default: tutorial)")
    add("--epochs", type=whole_number(1), help="default: the recipe's (tutorial: 400, modern: 20)")
    add("--scheme", type=int, choices=list(augment.SCHEMES), help="augmentation (tutorial: 1, modern: 4)")
    add("--data", metavar="SOURCE", help="a folder, a tar archive, or sample (default: fetch CIFAR-10)")
    add("--holdout", action="store_true", help="train on 45,000, choose on 5,000, test after training only")
    add("--no-test", action="store_true", help="leave the test set untouched, for tuning; needs --holdout")
    add("--batch-size", type=whole_number(1), metavar="B", help="default: 128")
    add("--seed", type=whole_number(0), help="decides weights, order, transformations, dropout (default: 0)")
    add("--out", metavar="DIR", help="folder for the runs (default: runs)")
    add("--num-convs", type=int, metavar="n", help="WRN: number of convolutions, 6N + 4 (default: 40)")
    add("--k-factor", type=int, metavar="K", help="WRN: widening factor (default: 2)")
    add("--full-resolution", action="store_true", help="WRN: 32×32 pixels in the first group, as in the paper")
    add("--drop-rate", type=float, metavar="RATE", help="WRN: dropout (tutorial: 0.3, modern: 0)")
    add("--optimizer", choices=["sgd", "rmsprop"], help="this and the next five: one line of the recipe each")
    add("--learning-rate", type=real_number(1e-9, 1000), metavar="RATE", help="at the first update, or the peak")
    add("--schedule", choices=SCHEDULES, help="how the learning rate falls; cosine: to zero at the end")
    add("--warmup", type=real_number(0, 1), metavar="SHARE", help="of all updates; before a cosine")
    add("--weight-decay", type=real_number(0, 1), metavar="DECAY", help="decoupled; 0, modern: 0.01 (svgg: 0.02)")
    add("--label-smoothing", type=real_number(0, 1), metavar="SHARE", help="tutorial: 0, modern: 0.1")
    add("--no-xla", action="store_true", help="do not compile with XLA (see README.md, Troubleshooting)")
    add("--resume", metavar="RUN", help="go on with the run in this folder; with --epochs, lengthen it")
    options = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if "resume" in options:
        if other := sorted(set(options) - {"resume", "epochs", "data"}):
            parser.error(f"--resume takes the settings of the run; {', '.join(other)} cannot be given with it")
    elif "network" not in options:
        parser.error("say which network: svgg or wrn (or --resume RUN)")
    if "no_test" in options and "holdout" not in options:
        parser.error("--no-test needs --holdout: without it the test set is the validation data")
    if options.get("network") == "svgg" and (other := {"num_convs", "k_factor", "drop_rate"} & set(options)):
        parser.error(f"{', '.join(sorted(other))} can be set for the wrn only")
    return parser, options


def make_settings(options):
    """Return all settings of a new run, from the command line's options and the recipe: what config.json holds."""
    network, recipe = options["network"], options.get("recipe", "tutorial")
    wrn_size = {"num_convs": 40, "k_factor": 2} if network == "wrn" else {"num_convs": None, "k_factor": None}
    settings = {"network": network, **wrn_size, "recipe": recipe, **RECIPES[recipe][network]}
    settings |= {"seed": 0, "holdout": False, "no_test": False, "no_xla": False, "full_resolution": False}
    return {name: options.get(name, default) for name, default in settings.items()}


def build_network(settings):
    """Return the untrained network that `settings` describe, its weights drawn from the seed."""
    keras.utils.set_random_seed(settings["seed"])
    if settings["network"] == "svgg":
        return svgg.build_svgg(settings["drop_rate"])
    return wrn.build_wrn(
        settings["num_convs"], settings["k_factor"], settings["drop_rate"], settings["full_resolution"]
    )


def check_writable(folder):
    """Raise RunError, before anything slow happens, if nothing can be written below `folder`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1024))
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None


def load_data(source, recorded=None):
    """Return (Cifar10, provenance for config.json); RunError if there are other checksums than those `recorded`."""
    images, checksums = data.load_with_checksums(source)
    origin = data.provenance(source, checksums)
    if recorded is not None and checksums != recorded:
        raise RunError("the run was trained on other data (the checksums differ); name those with --data")
    if origin["sample"]:
        origin["note"] = "a sample of CIFAR-10: expect 35 to 55 %; chance is 10 %"
    return images, origin


def start_run(options, parser):
    """Check everything that can be checked quickly, load the data, and make the run's folder."""
    settings = make_settings(options)
    try:
        network = build_network(settings)
    except ValueError as error:
        parser.error(str(error))
    out = options.get("out", "runs")
    check_writable(out)
    images, origin = load_data(options.get("data"))

    tag = "" if settings["recipe"] == "tutorial" else f"_{settings['recipe']}"
    protocol = "holdout" if settings["holdout"] else "full"
    run_dir = new_run_dir(out, f"{network.name}{tag}_scheme{settings['scheme']}_{protocol}")
    versions = {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__}
    versions |= {"tensorflow": augment.tf.__version__, "matplotlib": matplotlib.__version__}
    devices = [str(device) for device in keras.distribution.list_devices()]
    device = f"{', '.join(devices)} ({platform.machine()}, {os.cpu_count()} cores)"
    config = {**settings, "data": origin, "versions": versions, "device": device}
    return network, images, config, run_dir


def check_settings(config):
    """Raise ValueError or KeyError unless `config`, read from a file, holds every setting, each of them possible."""
    for name, example in make_settings({"network": config["network"], "recipe": config["recipe"]}).items():
        value, least = config[name], 1 if name in ("epochs", "batch_size") else 0
        possible = not isinstance(value, int | float) or least <= value < 2**31  # not so if it is NaN
        if type(value) is not type(example) or not possible:
            raise ValueError(f"{name} cannot be {value!r}")
    if not isinstance(config["data"]["source"], str | None):
        raise ValueError(f"the source of the data cannot be {config['data']['source']!r}")
    make_optimizer(config, 1)
    augment.scheme_settings(config["scheme"])


def resume_run(options):
    """Read a run's settings from its folder, load its data, and lengthen it if --epochs says so."""
    run_dir = Path(options["resume"])
    try:
        config = json.loads((run_dir / "config.json").read_text())
        check_settings(config)
        network = build_network(config)
        source, recorded = options.get("data", config["data"]["source"]), config["data"]["md5"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {str(error)[:80]}"
        raise RunError(f"{run_dir} is not the folder of a run: no good config.json in it ({reason})") from None
    epochs = options.get("epochs", config["epochs"])
    if epochs != config["epochs"]:
        if config["schedule"] not in OPEN_ENDED_SCHEDULES:
            raise RunError(
                f"{run_dir} cannot be made {epochs} epochs long: its learning rate reaches zero at epoch"
                f" {config['epochs']}. Start a new run with --epochs {epochs}"
            )
        if epochs < config["epochs"]:
            raise RunError(f"{run_dir} has {config['epochs']} epochs; --epochs can lengthen it, not shorten it")
    elif (run_dir / "metrics.json").exists():
        more = "lengthen it with --epochs" if config["schedule"] in OPEN_ENDED_SCHEDULES else "nothing is left to do"
        raise RunError(f"{run_dir} is finished: {epochs} epochs; {more}")
    images, origin = load_data(source, recorded)
    return network, images, config | {"epochs": epochs, "data": origin}, run_dir


def load_standardiser(run_dir, images, scheme):
    """Return the run's standardiser: fitted on `images` and stored when the run starts, read when it is resumed."""
    path = run_dir / "standardiser.keras"
    if not path.exists():
        print("Fitting the standardisation to the training images", flush=True)
        standardise = augment.standardiser(images, scheme)
        write_atomically(path, standardise.save)
        return standardise
    try:
        standardise = keras.models.load_model(path, safe_mode=True)  # which refuses files that hold code
        if standardise.output_shape != (None, *data.IMAGE_SHAPE):
            raise ValueError(f"its output has the shape {standardise.output_shape}")
        return standardise
    except Exception as error:  # a zip, JSON and HDF5 file in one can be damaged in many ways
        reason = " ".join(str(error).split())[:80]
        raise RunError(f"{path} is damaged ({reason}); delete it, and it is made again") from None


def print_settings(config, network, images, x_train, run_dir):
    """Say what is about to be done, so that a mistake shows before the hours are spent."""
    if note := config["data"].get("note"):
        print(f"Data: {note[0].upper()}{note[1:]}.")
    for name, value in config.items():
        if not isinstance(value, dict) and value is not None:
            print(f"  {name:<15} {value}")
    steps = math.ceil(len(x_train) / config["batch_size"])
    rate = learning_rate(config, steps)
    rates = [float(rate(update)) if callable(rate) else rate for update in (0, steps, config["epochs"] * steps - 1)]
    official = "official files" if config["data"]["official"] else "not the official files"
    print(f"CIFAR-10, {official}: {len(x_train)} images for training, {len(images.x_test)} for testing")
    print(f"{network.name}: {network.count_params():,} parameters; {steps} steps an epoch")
    print("Learning rate: {:.4g} at the first update, {:.4g} after one epoch, {:.4g} at the last".format(*rates))
    print(f"Run folder: {run_dir}")
    print(f"To watch it: tensorboard --logdir {run_dir / 'logs'}", flush=True)


def evaluate_run(model, history, run_dir, config, images):
    """Evaluate and picture a finished run, write metrics.json, and print the two accuracies. Return the metrics."""
    split = "validation" if config["no_test"] else "test"
    x, y = (images.x_val, images.y_val) if config["no_test"] else (images.x_test, images.y_test)
    end, best = evaluate_performance(model, history, run_dir, x, y)

    # The pictures are of the weights that give the result.
    with best_weights(network_of(model), run_dir) if config["holdout"] else contextlib.nullcontext():
        predicted = predict_classes(model, x)
    for which in ("all", "correct", "incorrect"):
        view_predictions(x, y, predicted, run_dir / f"predictions_{which}.png", which)
    plot_confusion(confusion_matrix(y, predicted), run_dir / "confusion.png")

    with np.load(run_dir / "state.npz", allow_pickle=False) as state:
        progress = json.loads(str(state["progress"]))
    seconds, cpu_seconds = (float(np.median(progress[name])) for name in ("seconds", "cpu_seconds"))
    train_count = len(images.x_train) + (0 if config["holdout"] else len(images.x_val))
    result = f"{split}_accuracy_{'best_weights' if config['holdout'] else 'end_of_training'}"
    metrics = {
        "result": result,
        f"{split}_accuracy_end_of_training": end,
        f"{split}_accuracy_best_weights": best,
        "best_epoch": progress["best_epoch"],
        "parameters": network_of(model).count_params(),
        "seconds_per_epoch": seconds,  # median, the validation included
        "images_per_second": train_count / seconds,
        "cpu_seconds_per_image": cpu_seconds / train_count,
    }
    if note := config["data"].get("note"):
        metrics["note"] = note
    write_json(run_dir / "metrics.json", metrics)

    chosen_on = "held-out training images" if config["holdout"] else "the test set: optimistic"
    remark = f"  (epoch {progress['best_epoch']}, chosen on {chosen_on})"
    for weights, label, more in (("end_of_training", "end-of-training", ""), ("best_weights", "best", remark)):
        name = f"{split}_accuracy_{weights}"
        arrow = "  <- the result" if name == result else ""
        text = f"{split.capitalize()} accuracy, {label} weights:"
        print(f"{text:<41} {metrics[name]:.4f}{arrow}{more}")
    if note:
        print(f"This was {note}.")
    return metrics


def carry_out(network, images, config, run_dir):
    """Train `network` as `config` says, from where the run stands, and evaluate it; everything goes into `run_dir`."""
    global _farewell
    (run_dir / "metrics.json").unlink(missing_ok=True)  # of a run that is now lengthened
    write_json(run_dir / "config.json", config)
    _farewell = "go on with: " + shlex.join(["python", sys.argv[0], "--resume", str(run_dir)])

    x_train, y_train, x_val, y_val, x_test, y_test = images
    if not config["holdout"]:  # as in the tutorial: all 50,000 for training, the test set for validation
        x_train, y_train = np.concatenate([x_train, x_val]), np.concatenate([y_train, y_val])
        x_val, y_val = x_test, y_test
    print_settings(config, network, images, x_train, run_dir)
    model = assemble(load_standardiser(run_dir, x_train, config["scheme"]), network)
    history, _ = compile_and_train(
        model,
        run_dir.parent.name,
        *(x_train, y_train, x_val, y_val),
        config["scheme"],
        make_optimizer(config, math.ceil(len(x_train) / config["batch_size"])),
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        seed=config["seed"],
        label_smoothing=config["label_smoothing"],
        run_dir=run_dir,
        jit_compile=False if config["no_xla"] else "auto",
    )
    write_atomically(run_dir / "model.keras", model.save)
    evaluate_run(model, history, run_dir, config, images)
    print(f"All of it: {run_dir}")
    _farewell = "the run was complete"


def main(arguments=None):
    """Train, or go on training, then evaluate: the command line of this step."""
    parser, options = parse_arguments(arguments)
    try:
        resumed = "resume" in options
        network, images, config, run_dir = resume_run(options) if resumed else start_run(options, parser)
        with lock(run_dir):
            carry_out(network, images, config, run_dir)
    except (data.DataError, RunError) as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:  # the disk is full, or the run's folder has been taken away
        raise SystemExit(f"error: {error}; what was written before is intact, --resume goes on from it") from None


if __name__ == "__main__":
    main()
