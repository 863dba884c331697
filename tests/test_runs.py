"""Tests that nothing finished is lost: runs that are killed, stopped, lengthened, moved, damaged, or on a full disk.

    pytest tests/test_runs.py
    pytest tests/test_runs.py -m long       kills real networks at random moments

What needs no process of its own is tried in this one, on a network of 490 parameters.
"""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import error_of, read_history, read_json, run_main, save_data, tiny_model, train_tiny
from keras import layers

import augment
import data
import train

ROOT = Path(__file__).parent.parent


def weights_in(model):
    """Return {name: array} of all weights in a .keras file, the optimizer's too."""
    with zipfile.ZipFile(model) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        found = {}
        file.visititems(lambda name, item: found.update({f"{model.name}/{name}": item}))
        return {name: item[()] for name, item in found.items() if isinstance(item, h5py.Dataset)}


def contents(run_dir):
    """Return all of a run that must not depend on interruptions, to the last bit; the seconds are left out."""
    with np.load(run_dir / "state.npz") as state:
        arrays = dict(state) | weights_in(run_dir / "best.keras") | weights_in(run_dir / "model.keras")
    history = json.loads(str(arrays.pop("history")))
    found = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    found |= {name: (history[name], [row[name] for row in read_history(run_dir)]) for name in history}
    for split in ("train", "validation"):
        found |= {(split, tag): values for tag, values in helpers.read_scalars(run_dir / "logs" / split).items()}
    if (run_dir / "metrics.json").exists():
        found |= read_json(run_dir / "metrics.json")
    found["files"] = {path.name for path in run_dir.rglob("*") if "tfevents" not in path.name}
    found["config"] = read_json(run_dir / "config.json")
    return {name: value for name, value in found.items() if "second" not in name}


def assert_equal_runs(one, other, epochs):
    a, b = contents(one), contents(other)
    assert a["epoch"][0] == [*range(1, epochs + 1)]
    assert list(a["train", "epoch_loss"]) == [*range(epochs)]
    assert len([name for name in a if "best.keras" in name]) >= 2
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def files(run_dir):
    """Return {path: bytes} of a run's files; without the lock, and TensorBoard's, which get longer with each start."""
    paths = [path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in paths if "tfevents" not in path.name}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three epochs, and its command."""
    folder = tmp_path_factory.mktemp("finished")
    run_dir, small = folder / "run", save_data(folder / "small.npz", 60, 20)
    command = ["--epochs", 3, "--batch-size", 25, "--data", small]
    run_main(*command, "--resume", run_dir)
    return run_dir, command


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run of one epoch, trained from Python."""
    run_dir = tmp_path_factory.mktemp("own")
    train_tiny(tiny_model(), run_dir, epochs=1)
    return run_dir


def start_program(log, program, *arguments):
    """Start Python; its output goes to a file, so that it never waits for a reader."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with open(log, "w") as file:
        command = [sys.executable, *program, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def wait_until(process, log, condition):
    while not condition():
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)


def test_job_that_is_killed_and_queued_again_equals_an_undisturbed_one(finished, tmp_path):
    undisturbed, command = finished
    run_dir, log = tmp_path / "my {run} (1) ü", tmp_path / "log"
    job = [*command, "--resume", run_dir]
    process = start_program(log, ["-c", "import sys, helpers; helpers.run_main(*sys.argv[1:])"], *job)
    wait_until(process, log, (run_dir / "state.npz").exists)
    assert f"--resume '{run_dir}'\n" in log.read_text()  # as a shell takes it
    process.send_signal(signal.SIGSTOP)  # it lives, but does not go on
    before = files(run_dir)
    assert "another process" in error_of(run_main, *job)
    assert files(run_dir) == before
    process.kill()
    assert process.wait() == -signal.SIGKILL
    run_main(*job)
    assert_equal_runs(undisturbed, run_dir, 3)
    (run_dir / "metrics.json").unlink()
    run_main("--resume", run_dir)  # a finished run is evaluated again
    assert_equal_runs(undisturbed, run_dir, 3)


class Subclassed(keras.Model):
    """A network that is not built before it is trained. It has frozen layers with weights and dropout, and a variable
    that belongs to none of its layers."""

    def __init__(self):
        super().__init__()
        self.frozen = keras.Sequential([layers.Dropout(0.5), layers.BatchNormalization()])
        self.frozen.trainable = False
        self.dropout, self.dense = layers.Dropout(0.5), layers.Dense(10, activation="softmax", dtype="float32")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, images, training=False):
        pixels = keras.ops.reshape(keras.ops.cast(images[:, ::8, ::8], self.compute_dtype) / 255, (-1, 48))
        return self.dense(self.dropout(self.frozen(pixels, training=training), training=training) * self.scale)


@pytest.mark.filterwarnings("ignore:.*run_functions_eagerly.*does not apply to tf.data")
@pytest.mark.parametrize(("policy", "before"), [("float32", 0), ("mixed_float16", 1)])
def test_kill_while_any_file_is_written_changes_nothing(policy, before, tmp_path, monkeypatch):
    """What a kill leaves is the folder as it was at that moment, with a part of the file that was being written."""

    def start(run_dir, epochs):
        seed = len(killed) if (run_dir / "state.npz").exists() else 0  # other weights, for the state to replace
        keras.utils.set_random_seed(seed)
        train_tiny(Subclassed(), run_dir, optimizer=keras.optimizers.Adam(0.1), epochs=epochs)

    def copy_and_replace(*arguments):
        killed.append(tmp_path / f"killed{len(killed)}")
        shutil.copytree(tmp_path / "undisturbed", killed[-1])
        for file in (*killed[-1].glob("*.new.*"), *killed[-1].glob("new.*")):
            os.truncate(file, file.stat().st_size // 2)
        replace(*arguments)

    keras.config.set_dtype_policy(policy)
    tf.config.run_functions_eagerly(True)  # building graphs would take most of the time
    killed, replace = [], os.replace
    if before:
        start(tmp_path / "undisturbed", before)
        (tmp_path / "undisturbed" / "metrics.json").write_text("{}")
    monkeypatch.setattr(os, "replace", copy_and_replace)
    start(tmp_path / "undisturbed", before + 1)
    monkeypatch.undo()
    assert len(killed) >= 4
    for run_dir in killed:
        start(run_dir, before + 1)
        assert_equal_runs(tmp_path / "undisturbed", run_dir, before + 1)
        assert not (run_dir / "metrics.json").exists()  # those of the shorter run


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_best_model_is_that_of_the_lowest_loss_whatever_interrupts(tmp_path, monkeypatch):
    """A negative rate makes the model worse, so that the lowest, the highest, the first and the last loss differ."""

    def start(*rates):
        keywords = {"lr_schedule_fn": lambda epoch: rates[epoch], "optimizer": keras.optimizers.SGD(0.01)}
        return train_tiny(tiny_model(), tmp_path, epochs=len(rates), **keywords)["val_loss"]

    start(-0.001, 0.01, -0.02)
    monkeypatch.setattr(train.RunRecorder, "on_epoch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(-0.001, 0.01, -0.02, 0.1)  # the fourth epoch was the best of all, and saved as such
    monkeypatch.undo()
    losses = start(-0.001, 0.01, -0.02, 0.012)
    assert losses[1] < losses[3] < losses[0] < losses[2]
    best = keras.models.load_model(tmp_path / "best.keras")
    assert helpers.evaluate(best, helpers.X_VAL, helpers.Y_VAL)[0] == pytest.approx(losses[1], rel=1e-5)


def test_files_are_on_the_disk_before_they_are_renamed_and_the_state_is_the_last(tmp_path, monkeypatch):
    synchronised, renamed, fsync, replace = set(), [], os.fsync, os.replace

    def note_fsync(number):
        synchronised.add(os.fstat(number).st_ino)
        fsync(number)

    def note_replace(new, path):
        assert os.stat(new).st_ino in synchronised
        renamed.append(path.name)
        replace(new, path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    train_tiny(tiny_model(), tmp_path, epochs=1)
    assert renamed[0] == "config.json"
    assert {*renamed[1:-2]} == {"best.keras", "history.csv", "config.json"}
    assert renamed[-2:] == ["state.npz", "model.keras"]


def test_lengthened_run_keeps_its_results_until_a_new_epoch_is_recorded(finished, tmp_path, monkeypatch):
    undisturbed, command = finished
    command = [*command, "--resume", tmp_path]
    run_main(*command, "--epochs", 2)
    before = files(tmp_path)
    monkeypatch.setattr(train.RunRecorder, "on_epoch_end", interrupt)
    with pytest.raises(SystemExit) as exit_:
        run_main(*command)
    monkeypatch.undo()
    assert "\n" not in exit_.value.code.strip()  # Ctrl-C is one line
    assert before.items() <= files(tmp_path).items()
    run_main(*command)
    assert_equal_runs(undisturbed, tmp_path, 3)


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


DAMAGED = {
    "cut off": ("state.npz is damaged", lambda path: os.truncate(path / "state.npz", 2000)),
    "a pickle": ("state.npz is damaged", lambda path: np.savez(path / "state.npz", history=np.array(Trap(), object))),
    "no state": ("no state.npz", lambda path: (path / "state.npz").unlink()),
    "damaged config": ("config.json is damaged", lambda path: (path / "config.json").write_text("[]")),
    "no config": ("config.json is damaged", lambda path: (path / "config.json").unlink()),
}


@pytest.mark.parametrize(("words", "spoil"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_run_is_one_line_and_stays_as_it_is(finished, copy, monkeypatch, words, spoil):
    monkeypatch.chdir(copy.parent)
    spoil(copy)
    before = files(copy)
    error = error_of(run_main, *finished[1], "--resume", copy, "--epochs", 4)
    assert words in error
    assert str(copy) in error
    assert files(copy) == before
    assert not Path("trapped").exists()


TYPED = {"data": "--data sample", "batch_size": "--batch-size 20", "seed": "--seed 1", "network": "svgg"}


@pytest.mark.parametrize(("name", "typed"), TYPED.items())
def test_other_settings_than_the_runs_are_refused_by_name(finished, monkeypatch, name, typed):
    before = files(finished[0])
    monkeypatch.setattr(train.wrn, "build_wrn", lambda *_: helpers.tiny_network(name="wrn-10-1"))
    assert f"{name}: " in error_of(train.main, ["--resume", str(finished[0]), *typed.split()])
    assert files(finished[0]) == before


def assert_refused(run_dir, model, words, **changes):
    before, weights = files(run_dir), model.get_weights()
    with pytest.raises(data.UserError, match=words) as caught:
        train_tiny(model, run_dir, **{"epochs": 2} | changes)
    assert "\n" not in str(caught.value)
    helpers.assert_equal_arrays(model.get_weights(), weights)
    assert files(run_dir) == before


CHANGES = {
    "training images": ("data: ", {"arrays": [helpers.X_TRAIN[::-1], *helpers.ARRAYS[1:]]}),
    "validation labels": ("data: ", {"arrays": [*helpers.ARRAYS[:3], helpers.Y_VAL[::-1]]}),
    "scheme": ("scheme: 3 then, {", {"scheme": augment.SCHEMES[3] | {"rotation_range": 5}}),
    "optimizer": ("optimizer: sgd then, Adam now", {"optimizer": keras.optimizers.Adam(0.01)}),
}


@pytest.mark.parametrize(("words", "changes"), CHANGES.values(), ids=CHANGES)
def test_call_with_other_data_or_settings_is_refused_by_name(own_run, words, changes):
    assert_refused(own_run, tiny_model(seed=1), words, **changes)


def test_other_optimizer_of_ones_own_and_other_number_of_cosine_epochs_are_refused(tmp_path):
    train_tiny(tiny_model(), tmp_path / "own", optimizer=keras.optimizers.SGD(0.01), epochs=1)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    assert_refused(tmp_path / "own", tiny_model(1), "momentum: 0.0 then", optimizer=optimizer)
    train_tiny(tiny_model(), tmp_path / "own", optimizer=keras.optimizers.SGD(0.01), epochs=2)  # only its name differs
    train_tiny(tiny_model(), tmp_path / "cosine", schedule="cosine", epochs=1)
    assert_refused(tmp_path / "cosine", tiny_model(), "epochs", schedule="cosine", epochs=2)


@pytest.mark.parametrize("change", [{"activation": "tanh"}, {"rate": 0.3}, {"pooling": layers.MaxPooling2D}, "frozen"])
def test_another_network_with_the_same_shapes_is_refused(own_run, change):
    model = tiny_model(seed=1, **change if isinstance(change, dict) else {})
    model.layers[1].layers[-1].trainable = change != "frozen"
    assert_refused(own_run, model, "network")


@pytest.mark.parametrize("lockless", [False, True])
def test_same_call_with_a_network_built_again_has_the_run_back(own_run, monkeypatch, lockless):
    if lockless:  # as on some network file systems
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    before, model = files(own_run), tiny_model(seed=1)
    history = train_tiny(model, own_run, epochs=1)
    assert [repr(loss) for loss in history["loss"]] == [row["loss"] for row in read_history(own_run)]
    helpers.assert_equal_arrays(model.get_weights(), keras.models.load_model(own_run / "model.keras").get_weights())
    assert files(own_run) == before


def test_averaged_weights_are_those_of_the_model_also_when_a_finished_run_is_called_again(tmp_path):
    found = []
    for _ in range(2):
        model = tiny_model()
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        train_tiny(model, tmp_path, optimizer=optimizer, epochs=1)
        saved = keras.models.load_model(tmp_path / "model.keras").get_weights()
        helpers.assert_equal_arrays(model.get_weights(), saved)
        found.append(files(tmp_path))
    assert found[0] == found[1]
    with np.load(tmp_path / "state.npz") as state:
        last = next(state[name] for name in state.files if state[name].shape == (48, 10))
    assert not [array for array in saved if np.array_equal(array, last)]  # they are not the last weights


def test_run_goes_on_with_moved_data_on_another_machine(finished, copy, tmp_path):
    moved = shutil.copy(finished[1][-1], tmp_path / "moved.npz")
    changed = {"device": "old", "versions": {"keras": "3.14.0"}, "source": "/lost.npz"}
    config = read_json(copy / "config.json")
    older = {name: value for name, value in config.items() if name not in ("full_resolution", "no_test")}
    (copy / "config.json").write_text(json.dumps(older | changed))
    run_main("--resume", copy, "--epochs", 4, "--data", moved, "--no-xla")
    assert len(read_history(copy)) == 4
    assert read_json(copy / "config.json") == config | {"source": str(moved), "no_xla": True, "epochs": 4}


FULL = [  # before which function, and how many bytes a file may then have
    (keras.callbacks.ModelCheckpoint, "on_epoch_end", 1000),
    (train.RunRecorder, "on_epoch_end", 1000),
    (train, "evaluate_performance", 10),
]


@pytest.mark.parametrize(("owner", "function", "limit"), FULL)
def test_full_disk_is_one_line_and_costs_nothing(finished, copy, monkeypatch, owner, function, limit):
    resource = pytest.importorskip("resource")  # Windows has no such limits
    real, before = getattr(owner, function), files(copy)

    def disturbed(*arguments, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, function, disturbed)
    try:
        error_of(run_main, *finished[1], "--resume", copy, "--epochs", 4 if function == "on_epoch_end" else 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert before.items() <= files(copy).items()


def test_long_error_of_tensorflow_is_one_line_with_its_cause(finished, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, 100 * "part of the graph\n" + "the GPU is out of memory")

    monkeypatch.setattr(keras.Sequential, "fit", fit)
    assert "the GPU is out of memory" in error_of(run_main, *finished[1], "--out", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("words", ["wrn --num-convs 10 --k-factor 1", "svgg --scheme 3 --holdout"])
def test_run_survives_kills_at_random_moments(words, tmp_path):
    """The tutorial's recipes, with dropout, the first with whitening. The same command until it ends by itself."""
    small, chance, log, killed = save_data(tmp_path / "small.npz", 80, 20), random.Random(words), tmp_path / "log", 0
    command = [*words.split(), "--epochs", 4, "--batch-size", 30, "--data", small, "--resume"]

    def start(folder):
        process = start_program(log, [ROOT / "train.py"], *command, tmp_path / folder)
        wait_until(process, log, lambda: "Fitting the standard" in log.read_text())
        return process, time.monotonic()

    process, begin = start("whole")
    assert process.wait() == 0, log.read_text()
    length, runs = time.monotonic() - begin, 0
    while killed < 6:
        run_dir, runs, status = tmp_path / f"killed{runs}", runs + 1, None
        while status != 0:
            process, begin = start(run_dir)
            end = begin + chance.uniform(0, length) if killed < 6 else float("inf")
            writing = chance.random() < 0.33  # then wait until a file is being written
            while process.poll() is None:
                if time.monotonic() > end and (not writing or [*run_dir.glob("*.new.*")]):
                    process.kill()
                    killed += 1
                    break
                time.sleep(0.001)
            status = process.wait()
            assert status in (0, -signal.SIGKILL), log.read_text()
        assert_equal_runs(tmp_path / "whole", run_dir, 4)
