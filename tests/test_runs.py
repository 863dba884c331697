"""Tests that nothing finished is lost: runs that are killed, stopped, lengthened, moved, damaged, or on a full disk.

    pytest tests/test_runs.py
    python tests/test_runs.py --kills 20 [--seed 1] [--only wrn-tutorial-full]     kills runs at random moments

Kills and signals strike a real process that trains a real, small network. What needs no process of its own is tried on
a network of 490 parameters, in this one.
"""

import argparse
import contextlib
import datetime
import errno
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))  # for --kills; pytest knows it from pyproject.toml
import data  # first: it sets up Keras

# isort: split
import h5py
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import read_history, save_data, tiny_model, tiny_network, train_tiny
from keras import layers

import augment
import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data") / "small.npz", 60, 20)


# ---------------------------------------------------------------- A process, and what a run leaves

# Ctrl-C is ignored in a process that was started in the background by a script: begin with what a terminal gives.
LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals or folders")
TINY = ["-c", "import sys, test_runs; test_runs.run(*sys.argv[1:])"]  # train.py with a tiny network, see `run`


class Program:
    """train.py in a process of its own. Its output goes to files, so that it never waits for a reader."""

    def __init__(self, program, *arguments):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-c", LAUNCHER, *program, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.process = subprocess.Popen(command, env=environment, stdout=self.out, stderr=self.err)

    def read(self, file):
        return os.pread(file.fileno(), 1_000_000, 0).decode()

    def wait_until(self, condition):
        while not condition():
            assert self.process.poll() is None, f"it ended too early: {self.read(self.out)}{self.read(self.err)}"
            time.sleep(0.002)

    def end(self, number=None):
        """Send a signal, or none if `number` is None; return the exit status and the last line of stderr."""
        if number:
            self.process.send_signal(number)
        status = self.process.wait(timeout=600)  # Ctrl-C waits for NumPy to end a computation
        errors = self.read(self.err)
        self.out.close()
        self.err.close()
        # Python itself ignores a Ctrl-C that comes while it clears a weak reference away, and says so.
        errors = re.sub(r"Exception ignored in: .*\n(.*\n)*?KeyboardInterrupt: *\n", "", errors)
        assert "Traceback" not in errors, errors
        return status, (errors.strip().splitlines() or [""])[-1]


def the_run(out):
    """Return the folder of the only run below `out`, or None if it has not been made yet."""
    return next((path.parent for path in out.glob("*/*/config.json")), None)


def epochs_in(run_dir):
    """Return how many epochs of a run are recorded, while a program may be writing; -1 before it can be resumed."""
    if not run_dir or not (run_dir / "state.npz").exists():
        return -1
    with np.load(run_dir / "state.npz") as state:
        return len(json.loads(str(state["history"]))["epoch"])


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


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
    found |= {"files": {path.name for path in run_dir.rglob("*") if "tfevents" not in path.name}}
    found["graph"] = any(path.stat().st_size > 2000 for path in (run_dir / "logs" / "graph").iterdir())
    return {name: value for name, value in found.items() if "second" not in name}


def assert_equal_runs(one, other, epochs):
    a, b = contents(one), contents(other)
    assert a["epoch"][0] == [*range(1, epochs + 1)]
    assert list(a["train", "epoch_loss"]) == [*range(epochs)]
    assert len([name for name in a if "best.keras" in name]) >= 2
    assert a["graph"]
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def files(run_dir):
    """Return {path: bytes} of a run's files; without the lock, and TensorBoard's, which get longer with each start."""
    paths = [path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in paths if "tfevents" not in path.name}


# ---------------------------------------------------------------- Main and compile_and_train, in this process


def run(*arguments):
    """Run main with a tiny network in place of the WRN, and without pictures of predictions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.wrn, "build_wrn", lambda *_: tiny_network(name="wrn-10-1"))
        patch.setattr(train, "look", lambda *_: None)
        train.main([str(word) for word in arguments])


def new_run(small_data, out, *more):
    run("wrn", "--scheme", 3, "--batch-size", 25, "--data", small_data, "--out", out, *more)


def error_of(function, *arguments):
    """Return the one line with which main gives up."""
    with pytest.raises(SystemExit) as exit_:
        function(*arguments)
    assert isinstance(exit_.value.code, str)  # so that the exit status is 1
    assert exit_.value.code.startswith("error: ")
    assert "\n" not in exit_.value.code
    return exit_.value.code


def advice_in(line):
    """Return the arguments of the command that a line advises."""
    words = shlex.split(line.split("go on with: ")[1])
    assert words[:2] == [sys.executable, os.path.relpath(ROOT / "train.py")]
    return words[2:]


@contextlib.contextmanager
def interrupted(method, call):
    """Within a `with` block, which it must end, Ctrl-C strikes in the n-th call of this TensorBoard method."""
    calls, real = itertools.count(1), getattr(keras.callbacks.TensorBoard, method)

    def count(*arguments, **keywords):
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.callbacks.TensorBoard, method, count)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_data):
    """A finished run of three epochs."""
    out = tmp_path_factory.mktemp("finished")
    new_run(small_data, out, "--epochs", 3)
    return the_run(out)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "name" / "time"))


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run of one epoch, trained from Python."""
    return train_tiny(tiny_model(), tmp_path_factory.mktemp("own"), keras.optimizers.SGD(0.01), epochs=1)[1]


def change_config(run_dir, **changes):
    config = read_json(run_dir / "config.json") | changes
    (run_dir / "config.json").write_text(json.dumps({name: x for name, x in config.items() if x is not None}))


# ---------------------------------------------------------------- Killed and stopped, and the same weights in the end


@POSIX
def test_job_that_is_killed_and_queued_again_equals_an_undisturbed_one(small_data, tmp_path):
    """One unchanged command, three times: killed in the first epoch, stopped by Ctrl-C in another, then to the end."""
    arguments = ["wrn", "--scheme", "3", "--epochs", "6", "--batch-size", "25", "--holdout", "--data", small_data]
    out = tmp_path / "my {runs} (1) ü"
    job = [*arguments, "--resume", "--out", str(out)]

    program = Program(TINY, *job)
    program.wait_until(lambda: epochs_in(the_run(out)) == 0)
    program.process.send_signal(signal.SIGSTOP)  # it lives, but does not go on
    run_dir = the_run(out)
    for second in (["--resume", run_dir], job):  # in this process
        assert f"another process is working on {run_dir}" in error_of(run, *second)
    with pytest.raises(train.RunError, match="another process is working"):
        train_tiny(tiny_model(), None, run_dir=run_dir)
    assert program.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert epochs_in(run_dir) == 0

    program = Program(TINY, *job)
    program.wait_until(lambda: epochs_in(run_dir) >= 1 and [*run_dir.glob("*.new.*")])
    status, farewell = program.end(signal.SIGINT)
    assert (status, advice_in(farewell)) == (130, job)
    assert not (run_dir / "metrics.json").exists()

    run(*job)
    run(*arguments, "--out", tmp_path / "undisturbed")
    assert [*out.glob("*/*")] == [run_dir]
    assert_equal_runs(the_run(tmp_path / "undisturbed"), run_dir, 6)


@pytest.fixture
def usual():
    """What Ctrl-C usually does in a program that was started in a terminal; it must be so again after the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize(("times", "went_on"), [(1, [0, 1]), (2, [0])])
def test_ctrl_c_waits_for_the_next_batch_but_a_second_one_does_not(usual, tmp_path, times, went_on):
    rates = []

    def rate(epoch):  # Keras calls it at the start of an epoch
        for _ in range(times * (epoch == 1)):
            signal.raise_signal(signal.SIGINT)
        rates.append(epoch)
        return 0.01

    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_model(), None, keras.optimizers.SGD(), lr_schedule_fn=rate, run_dir=tmp_path)
    assert rates == went_on
    assert epochs_in(tmp_path) == 1


def test_ctrl_c_after_the_last_batch_is_not_forgotten(usual, tmp_path, monkeypatch):
    def write_json(path, content):
        signal.raise_signal(signal.SIGINT)
        real(path, content)
        written.append(path.name)

    written, real = [], train.write_json
    train_tiny(tiny_model(), None, keras.optimizers.SGD(0.01), epochs=1, run_dir=tmp_path)
    monkeypatch.setattr(train, "write_json", write_json)  # without a new epoch only the end of a run calls it
    with pytest.raises(KeyboardInterrupt):
        call_again(tmp_path, tiny_model())
    assert written == ["config.json"]


def test_training_leaves_ctrl_c_alone_in_another_thread_and_where_it_is_switched_off():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with train.interrupts_between_batches():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor() as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: pytest.fail("another thread must not"))
        pool.submit(train.interrupts_between_batches().__enter__).result()


class Twice(layers.Layer):
    """A layer of one's own, which is not registered with Keras."""

    def call(self, x):
        return 2 * x


def frozen_dropout():
    """Return a network with Twice and a frozen layer that has dropout."""
    frozen = keras.Sequential([layers.Dropout(0.5)], name="frozen")
    frozen.trainable = False
    stack = [keras.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.AveragePooling2D(8), frozen, Twice()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10, activation="softmax")])


class Subclassed(keras.Model):
    """A network with a variable that belongs to none of its layers."""

    def __init__(self):
        super().__init__()
        self.dropout, self.dense = layers.Dropout(0.5), layers.Dense(10, activation="softmax")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, images, training):
        pixels = keras.ops.reshape(images[:, ::8, ::8] / 255, (-1, 48))
        return self.dense(self.dropout(pixels, training=training) * self.scale)


def test_kill_while_any_file_is_written_changes_nothing(tmp_path, monkeypatch):
    """What a kill leaves is the folder as it was at that moment, with a part of the file that was being written."""

    def start(run_dir):
        keras.utils.set_random_seed((run_dir / "state.npz").exists())  # other weights, for it to replace
        train_tiny(frozen_dropout(), None, keras.optimizers.SGD(0.1, momentum=0.9), epochs=1, run_dir=run_dir)

    def copied_before(operation):
        def copy_and_do(*arguments):
            killed.append(tmp_path / f"killed{len(killed)}")
            shutil.copytree(tmp_path / "undisturbed", killed[-1])
            for file in killed[-1].glob("*.new.*"):
                os.truncate(file, file.stat().st_size // 2)
            operation(*arguments)

        return copy_and_do

    killed = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", copied_before(os.replace))
        patch.setattr(tf.summary, "graph", copied_before(tf.summary.graph))
        start(tmp_path / "undisturbed")
    assert len(killed) > 6
    for run_dir in killed:
        start(run_dir)
        assert_equal_runs(tmp_path / "undisturbed", run_dir, 1)


def test_subclassed_model_that_is_stopped_in_its_first_epoch_ends_on_the_same_bits(tmp_path):
    def start(folder, seed):
        keras.utils.set_random_seed(seed)
        train_tiny(Subclassed(), None, keras.optimizers.SGD(0.1), epochs=2, run_dir=tmp_path / folder)

    start("undisturbed", seed=0)
    with interrupted("on_train_batch_end", 2):
        start("stopped", seed=0)
    start("stopped", seed=1)
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "stopped", 2)


def test_best_model_is_that_of_the_lowest_loss_whatever_interrupts(tmp_path):
    """A negative rate makes the model worse, so that the lowest, the highest, the first and the last loss differ."""

    def start(*rates):
        keywords = {"epochs": 4, "run_dir": tmp_path, "lr_schedule_fn": lambda epoch: rates[epoch]}
        return train_tiny(tiny_model(), None, keras.optimizers.SGD(0.01), **keywords)[0]["val_loss"]

    with interrupted("on_epoch_end", 4):  # after a fourth epoch that was the best of all, and saved as such
        start(-0.001, 0.01, -0.02, 0.1)
    losses = start(-0.001, 0.01, -0.02, 0.012)
    assert losses[1] < losses[3] < losses[0] < losses[2]
    best = keras.models.load_model(tmp_path / "best.keras")
    assert helpers.evaluate(best, helpers.X_VAL, helpers.Y_VAL)[0] == pytest.approx(losses[1], rel=1e-5)


# ---------------------------------------------------------------- A resume costs nothing that was finished


def test_lengthening_can_fail_and_be_taken_back_and_equals_a_long_run(finished, small_data, tmp_path):
    new_run(small_data, tmp_path, "--epochs", 2)
    run_dir = the_run(tmp_path)
    before = files(run_dir)
    with interrupted("on_epoch_begin", 1):
        run("--resume", run_dir, "--epochs", 3000)
    assert files(run_dir) == before
    assert "is finished" in error_of(run, "--resume", run_dir)

    with interrupted("on_epoch_begin", 2):
        run("--resume", run_dir, "--epochs", 3000)
    assert not (run_dir / "metrics.json").exists()
    assert read_json(run_dir / "config.json")["epochs"] == 3000
    assert f"3 epochs of {run_dir} are done" in error_of(run, "--resume", run_dir, "--epochs", 2)
    run("--resume", run_dir, "--epochs", 3)
    assert_equal_runs(finished, run_dir, 3)
    assert read_json(run_dir / "config.json") == read_json(finished / "config.json")


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def hostile_state(run_dir):
    np.savez(run_dir / "state.npz", history=np.array(Trap(), dtype=object))
    np.load(run_dir / "state.npz", allow_pickle=True)["history"]
    os.rmdir("trapped")  # it does run where pickle is allowed


def other_state(run_dir):
    arrays = dict(np.load(run_dir / "state.npz"))
    np.savez(run_dir / "state.npz", **arrays | {"arr_0": arrays["arr_1"]})


CANNOT_GO_ON = {
    "has metrics.json, history.csv, best.keras but not state.npz": lambda path: (path / "state.npz").unlink(),
    "state.npz is damaged: the run cannot be continued (": lambda path: os.truncate(path / "state.npz", 5000),
    "state.npz is damaged: the run cannot be continued": hostile_state,
    "is of another network or optimizer: the shapes of their variables differ": other_state,
    "is not the folder of a run, or its config.json is damaged (": lambda path: (path / "config.json").unlink(),
    "is not the folder of a run, or its config.json is damaged": lambda path: (path / "config.json").write_text("[]"),
    "was recorded by an older version of this code": lambda path: change_config(path, optimizer_config=None),
    "was trained from Python: call compile_and_train again": lambda path: change_config(path, network="own"),
    "its learning rate falls to zero in 3 epochs": lambda path: change_config(path, schedule="cosine"),
}


@pytest.mark.parametrize(("words", "spoil"), CANNOT_GO_ON.items())
def test_run_that_cannot_go_on_says_so_in_one_line_and_stays_as_it_is(copy, monkeypatch, words, spoil):
    monkeypatch.chdir(copy.parent)
    spoil(copy)
    before = files(copy)
    error = error_of(run, "--resume", copy, "--epochs", 4)
    assert words in error
    assert str(copy) in error
    assert files(copy) == before
    assert not Path("trapped").exists()


CANNOT_BE_ASKED = {  # the end of the path and more words -> the answer
    "": "is finished: all 3 epochs are done, the result is in metrics.json; a larger --epochs lengthens it",
    "/state.npz": "is finished: all 3 epochs are done",
    "/..": "is not the folder of a run, or its config.json is damaged; did you mean {}?",
    " --epochs 2": "3 epochs of {} are done; a run can be lengthened, not shortened",
    " --epochs 4 --data sample": "images and labels: ",
    " --epochs 4 --batch-size 20": "(batch_size: 25); --batch-size cannot be given with it",
    " --epochs 4 svgg": "(network: wrn); svgg cannot be given with it",
    " --out elsewhere": "--out cannot be given with it",
}


@pytest.mark.parametrize(("asked", "answer"), CANNOT_BE_ASKED.items())
def test_resume_says_what_it_cannot_do(finished, asked, answer):
    below, *more = asked.split(" ")
    before = files(finished)
    assert answer.format(finished) in error_of(run, "--resume", os.path.normpath(f"{finished}{below}"), *more)
    assert files(finished) == before


# ---------------------------------------------------------------- Which run, and with which settings


def test_resume_takes_every_setting_of_the_run(tmp_path):
    words = "wrn --recipe modern --num-convs 10 --k-factor 3 --full-resolution --drop-rate 0.2 --epochs 7 --seed 5"
    words += " --holdout --no-test --dtype-policy mixed_bfloat16 --no-xla --data sample"
    settings = train.make_settings(vars(train.make_parser().parse_args(words.split())))
    config = settings | {"data": {"source": "sample", "fingerprint": ""}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert train.resume_settings({"resume": str(tmp_path)}) == (settings, tmp_path)


def test_resume_without_a_folder_takes_the_newest_unfinished_run_of_this_command(small_data, tmp_path, capsys):
    def folder_of(*more, out=tmp_path / "runs"):
        """Return the folder of a run, which is stopped before its first epoch."""
        capsys.readouterr()
        with interrupted("on_epoch_begin", 1):
            new_run(small_data, out, *more)
        return Path(re.search("Run folder: (.*)", capsys.readouterr().out)[1])

    first, second = folder_of("--resume"), folder_of()
    assert first != second
    assert folder_of("--resume") == second
    others = [["--seed", 1], ["--holdout"], ["--data", "sample"], ["--epochs", 9]]
    assert not {folder_of("--resume", *other) for other in others} & {first, second}
    assert folder_of("--resume", out=tmp_path / "elsewhere").is_relative_to(tmp_path / "elsewhere")
    (second / "metrics.json").write_text("{}")  # finished
    assert folder_of("--resume") == first
    (first / "metrics.json").write_text("{}")
    assert folder_of("--resume") not in (first, second)


def call_again(run_dir, model, **changes):
    """Call compile_and_train as own_run did, but for the changes."""
    arguments = {"x_train": helpers.X_TRAIN, "y_train": helpers.Y_TRAIN, "x_val": helpers.X_VAL, "y_val": helpers.Y_VAL}
    arguments |= {"scheme": 3, "epochs": 1, "batch_size": 20, "optimizer": keras.optimizers.SGD(0.01)}
    return train.compile_and_train(model, "tiny", run_dir=run_dir, **arguments | changes)[0]


def assert_refused(run_dir, model, words, **changes):
    before, weights = files(run_dir), model.get_weights()
    with pytest.raises(train.RunError, match=re.escape(words)):
        call_again(run_dir, model, **changes)
    helpers.assert_equal_arrays(model.get_weights(), weights)
    assert files(run_dir) == before


OTHER_SETTINGS = {
    "images and labels: ": {"x_train": helpers.X_TRAIN[::-1]},
    "images and labels:": {"y_val": helpers.Y_VAL[::-1]},
    "scheme: 3 then, {'feat": {"scheme": augment.SCHEMES[3] | {"rotation_range": 5}},
    "batch_size: 20 then, 30 now": {"batch_size": 30},
    "seed: 0 then, 1 now": {"seed": 1},
    "label_smoothing: 0 then, 0.1 now": {"label_smoothing": 0.1},
    "network: own then, mine now": {"notes": {"network": "mine"}},
    "optimizer's name: SGD then, Adam now": {"optimizer": keras.optimizers.Adam(0.01)},
    "optimizer's learning_rate: 0.01 then, 0.02 now": {"optimizer": keras.optimizers.SGD(0.02)},
    "optimizer's momentum: 0 then, 0.9 now": {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9)},
}


@pytest.mark.parametrize(("words", "changes"), OTHER_SETTINGS.items())
def test_call_with_another_setting_is_refused_by_name(own_run, words, changes):
    assert_refused(own_run, tiny_model(seed=1), f"the run in {own_run} has other settings ({words}", **changes)


def test_call_with_another_policy_or_network_is_refused(own_run, mixed_precision):
    assert_refused(own_run, tiny_model(seed=1), "(dtype_policy: float32 then, mixed_float16 now)")
    keras.config.set_dtype_policy("float32")
    wide = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(10, activation="softmax")])
    model = train.assemble(augment.standardiser(helpers.X_TRAIN, 3), wide)  # its first variables would fit
    assert_refused(own_run, model, f"the run in {own_run} is of another network or optimizer")


@pytest.mark.parametrize("error", [None, OSError(errno.ENOLCK, "no locks available")])
def test_same_call_has_the_run_back_also_where_there_are_no_locks(own_run, monkeypatch, error):
    def flock(*_):
        raise error

    monkeypatch.setattr(train, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=0, LOCK_NB=0) if error else None)
    model = tiny_model(seed=1)
    history = call_again(own_run, model, jit_compile=False)
    assert [repr(loss) for loss in history["loss"]] == [row["loss"] for row in read_history(own_run)]
    helpers.assert_equal_arrays(model.get_weights(), keras.models.load_model(own_run / "model.keras").get_weights())


def test_run_goes_on_with_moved_data_on_another_machine_without_its_best_model(
    copy, small_data, tmp_path, monkeypatch, capsys
):
    (copy / "best.keras").unlink()
    lost = min(read_history(copy), key=lambda row: float(row["val_loss"]))["epoch"]
    config = read_json(copy / "config.json")
    moved = shutil.copy(small_data, tmp_path / "moved.npz")
    change_config(copy, device="old", versions={"keras": "3.14.0"}, data=config["data"] | {"source": "/lost.npz"})
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    run("--resume", copy, "--epochs", 4, "--data", moved, "--no-xla")
    printed = capsys.readouterr().out
    assert f"the best weights so far, those of epoch {lost}, are lost" in printed
    lines = re.findall("The last digits may differ: (.*) was (.*), now (.*)", printed)
    assert [line[0] for line in lines] == ["versions", "device", "environment"]
    assert lines[1][1:] == ("old", config["device"])
    assert "'TF_NUM_INTRAOP_THREADS': '7'" in lines[2][2]
    changed = read_json(copy / "config.json")
    assert len(read_history(copy)) == 4
    assert (copy / "metrics.json").exists()
    assert changed["data"]["source"] == str(moved)
    assert (changed["device"], changed["no_xla"], changed["epochs"]) == (config["device"], True, 4)


def test_folders_for_runs(monkeypatch, tmp_path, small_data):
    monkeypatch.setenv("HOME", str(tmp_path))
    with interrupted("on_epoch_begin", 1):
        new_run(small_data, "~/runs")
    assert the_run(tmp_path / "runs")

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2030, 1, 2, 3, 4, 5)  # it stands still

    monkeypatch.setattr(datetime, "datetime", Clock)
    made = [train.new_run_dir(tmp_path, "name") for _ in range(3)]
    assert [path.name for path in made] == ["20300102-030405", "20300102-030405-2", "20300102-030405-3"]
    assert all(path.is_dir() for path in made)


# ---------------------------------------------------------------- Full disks, lost folders, errors


DISASTERS = [  # before which function, and how many bytes a file may then have; None: the folder is removed
    (train, "open_run", 10),  # a new run
    (keras.callbacks.ModelCheckpoint, "on_epoch_end", 1000),  # a run that is made longer
    (train.RunRecorder, "on_epoch_end", 1000),
    (train, "evaluate_performance", 1000),  # a run that was killed after its last epoch
    (train, "evaluate_performance", None),
]


@pytest.mark.parametrize(("owner", "function", "limit"), DISASTERS)
def test_full_disk_or_lost_folder_is_one_line(small_data, copy, tmp_path, monkeypatch, capsys, owner, function, limit):
    resource = pytest.importorskip("resource")  # Windows has no such limits
    real = getattr(owner, function)

    def disturbed(*arguments, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1)) if limit else shutil.rmtree(copy)
        return real(*arguments, **keywords)

    given = ["--resume", str(copy)]
    if function == "open_run":
        given = ["wrn", "--scheme", "3", "--data", small_data, "--out", str(tmp_path)]
    elif function == "on_epoch_end":
        given += ["--epochs", "4"]
    else:
        (copy / "metrics.json").unlink()
    kept = [path for path in files(copy) if path.suffix in (".json", ".npz") or path.name == "best.keras"]
    before = [path.read_bytes() for path in kept]
    monkeypatch.setattr(owner, function, disturbed)
    try:
        error = error_of(run, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    if limit:
        assert advice_in(error) == given
        assert [path.read_bytes() for path in kept] == before


def test_long_error_of_tensorflow_shows_its_cause(small_data, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, 100 * "part of the graph\n" + "the GPU is out of memory")

    monkeypatch.setattr(keras.Sequential, "fit", fit)
    error = error_of(new_run, small_data, tmp_path)
    assert "the GPU is out of memory. Mend that, then go on with: " in error
    assert advice_in(error) == ["--resume", str(the_run(tmp_path))]


def test_mistake_in_a_network_keeps_its_traceback(small_data, tmp_path, monkeypatch):
    def build_wrn(*_):
        raise ValueError("Inputs have incompatible shapes")

    monkeypatch.setattr(train.wrn, "build_wrn", build_wrn)
    with pytest.raises(ValueError, match="Inputs have incompatible shapes"):
        train.main(["wrn", "--data", small_data, "--out", str(tmp_path)])


@POSIX
def test_folder_that_cannot_be_written_is_found_before_the_data_are_loaded(monkeypatch):
    monkeypatch.setattr(data, "load_cifar10", lambda *_: pytest.fail("the data are loaded"))
    assert "/proc" in error_of(run, "wrn", "--out", "/proc")


# ---------------------------------------------------------------- Many kills


NETWORKS = {"wrn": ["wrn", "--num-convs", "10", "--k-factor", "1"], "svgg": ["svgg"]}


def kill(program, out, moment, writing, number):
    """Send a signal after `moment` seconds of training, or when a file is then written; return whether it struck."""
    program.wait_until(lambda: "Fitting the standard" in program.read(program.out))
    end = time.monotonic() + moment
    while program.process.poll() is None:
        if time.monotonic() > end and (not writing or [*out.glob("*/*/*.new.*")]):
            break
        time.sleep(0 if writing else 0.001)
    status, last_line = program.end(number)
    assert status in (0, -number, 130), last_line
    return status != 0


def kill_at_random(name, kills, seed, folder):
    """Kill a requeued job, wrn-tutorial-full or the like, at `kills` random moments; return the number of runs."""
    network, recipe, protocol = name.split("-")
    arguments = [*NETWORKS[network], "--recipe", recipe, "--epochs", 4, "--batch-size", 30]
    arguments += ["--data", save_data(folder / "small.npz", 80, 20), *(["--holdout"] if protocol == "holdout" else [])]
    chance, struck, runs = random.Random(f"{seed} {name}"), 0, 0
    program = Program([ROOT / "train.py"], *arguments, "--out", folder / "whole")
    program.wait_until(lambda: "Fitting the standard" in program.read(program.out))
    begin = time.monotonic()
    assert program.end()[0] == 0
    length = time.monotonic() - begin
    while struck < kills:
        out, runs = folder / f"killed{runs}", runs + 1
        while not (the_run(out) and (the_run(out) / "metrics.json").exists()):
            program = Program([ROOT / "train.py"], *arguments, "--resume", "--out", out)
            if struck < kills:
                number = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                struck += kill(program, out, chance.uniform(0, length), chance.random() < 0.33, number)
            else:
                assert program.end()[0] == 0
        assert_equal_runs(the_run(folder / "whole"), the_run(out), 4)
    return runs


@POSIX
@pytest.mark.long
@pytest.mark.parametrize("name", ["wrn-tutorial-full", "svgg-modern-holdout"])  # with whitening: the first
def test_run_survives_kills_at_random_moments(name, tmp_path):
    kill_at_random(name, 5, 0, tmp_path)


def main():
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, compare them bit for bit.")
    parser.add_argument("--kills", type=int, default=20, help="for each network, recipe and protocol (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only those with this in their name")
    options = parser.parse_args()
    print(f"{'case':25} kills  runs, all equal to the undisturbed one", flush=True)
    for parts in itertools.product(("wrn", "svgg"), ("tutorial", "modern"), ("full", "holdout")):
        if options.only in (name := "-".join(parts)):
            with tempfile.TemporaryDirectory() as folder:
                runs = kill_at_random(name, options.kills, options.seed, Path(folder))
            print(f"{name:25} {options.kills:5} {runs:5}", flush=True)


if __name__ == "__main__":
    main()
