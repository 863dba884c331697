"""Tests that a run cannot be lost: killed, stopped, on a full disk, in a damaged folder, started twice.

    pytest tests/test_runs.py
    python tests/test_runs.py --kills 20 [--seed 1]     kills every network, recipe and protocol at random moments

Kills and signals strike a real process that trains a real, small network. What needs no process of its own is tried on
a tiny network, in this one.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parent.parent))  # for --kills; pytest knows it from pyproject.toml
from cifar_files import ROOT, batch_bytes
from test_train import Figure, read_history, tiny_network, tiny_run  # noqa: F401 - the last is a fixture

import augment
import data
import train
from wrn import build_wrn  # the real one; see tiny_wrn

SAMPLE = data.load_cifar10("sample")
WRN = ["wrn", "--num-convs", "10", "--k-factor", "1"]


def write_small_data(folder, count=60):
    """Write a CIFAR-10 of `count` training and 20 test images, taken from the sample."""
    folder.mkdir()
    each = count // 5
    for i, name in enumerate(data.TRAIN_FILES):
        part = slice(i * each, (i + 1) * each)
        (folder / name).write_bytes(batch_bytes(SAMPLE.x_train[part], SAMPLE.y_train[part]))
    (folder / "test_batch").write_bytes(batch_bytes(SAMPLE.x_test[:20], SAMPLE.y_test[:20]))
    return folder


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    return write_small_data(tmp_path_factory.mktemp("data") / "small")


# ---------------------------------------------------------------- A process, and how to disturb it

# Ctrl-C is ignored in a process that was started in the background by a script: begin with what a terminal gives.
LAUNCHER = """
import os, resource, signal, sys
limit, ctrl_c, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))
signal.signal(signal.SIGINT, signal.SIG_IGN if ctrl_c == "ignored" else signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *command])
"""
USERS_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}


class Program:
    """train.py in a process of its own. Its output goes to files, so that it never waits for a reader."""

    def __init__(self, arguments, largest_file=-1, ctrl_c="default"):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        launcher = [sys.executable, "-c", LAUNCHER, str(largest_file), ctrl_c, str(ROOT / "train.py")]
        command = [*launcher, *map(str, arguments)]
        self.process = subprocess.Popen(command, env=USERS_ENVIRONMENT, stdout=self.out, stderr=self.err)

    def read(self, file):
        return os.pread(file.fileno(), 1_000_000, 0).decode()

    def wait_until(self, condition, pause=0.005):
        while not condition():
            assert self.process.poll() is None, f"it ended too early: {self.read(self.out)}{self.read(self.err)}"
            time.sleep(pause)

    def epochs(self):
        """Return the numbers of the epochs that have been reported so far."""
        return [int(number) for number in re.findall(r"^epoch (\d+)/", self.read(self.out), re.MULTILINE)]

    def send(self, number):
        """Send a signal, or none if `number` is None; return the exit status and the last line of stderr."""
        if number:
            self.process.send_signal(number)
        status = self.process.wait(timeout=600 if number is None else 10)
        errors = self.read(self.err)
        assert "Traceback" not in errors
        return status, errors.strip().splitlines()[-1] if errors.strip() else ""


def contents(run_dir):
    """Return all of a run that must not depend on interruptions: what the epochs gave, to the last bit."""
    with np.load(run_dir / "state.npz", allow_pickle=False) as state:
        arrays = dict(state)
    found = json.loads(str(arrays.pop("progress")))
    del found["seconds"], found["cpu_seconds"]
    with h5py.File(run_dir / "best.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    for split in ("train", "validation"):
        log = EventAccumulator(str(run_dir / "logs" / split), size_guidance={"tensors": 0}).Reload()
        for tag in log.Tags()["tensors"]:
            found[split, tag] = [(event.step, list(event.tensor_proto.float_val)) for event in log.Tensors(tag)]
    return (
        found
        | {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
        | {
            "history.csv": (run_dir / "history.csv").read_bytes(),
            "config.json": (run_dir / "config.json").read_bytes(),
            "files": sorted(path.name for path in run_dir.iterdir()),
        }
    )


def assert_equal_runs(one, other, epochs):
    assert [row["epoch"] for row in read_history(one)] == [str(epoch + 1) for epoch in range(epochs)]
    a, b = contents(one), contents(other)
    assert [step for step, _ in a["train", "epoch_loss"]] == list(range(epochs))
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def the_run(out):
    """Return the folder of the only run below `out`, or None if it has not been made yet."""
    return next((path.parent for path in out.glob("*/*/config.json")), None)


def start_or_resume(arguments, out, **keywords):
    run_dir = the_run(out)
    return Program(["--resume", run_dir] if run_dir else [*arguments, "--out", out], **keywords)


# ---------------------------------------------------------------- Kills, signals, and the same weights in the end


def test_wrn_with_dropout_and_whitening_survives_a_kill_sigterm_and_ctrl_c(small_data, tmp_path):
    arguments = [*WRN, "--epochs", 3, "--batch-size", 30, "--data", small_data]  # the tutorial's recipe: scheme 1
    out = tmp_path / "killed"

    program = start_or_resume(arguments, out)  # before the first epoch
    program.wait_until(lambda: the_run(out) and (the_run(out) / "standardiser.keras").exists())
    assert program.send(signal.SIGKILL)[0] == -signal.SIGKILL
    run_dir = the_run(out)
    fitted = (run_dir / "standardiser.keras").stat()
    whole = shutil.copytree(run_dir, tmp_path / "whole" / run_dir.parent.name / run_dir.name)  # whitening takes long
    undisturbed = Program(["--resume", whole])

    program = start_or_resume(arguments, out)  # in the second epoch
    program.wait_until(lambda: 1 in program.epochs())
    with pytest.raises(train.RunError, match="is being written by another process"):
        train.lock(run_dir)
    assert program.send(signal.SIGTERM)[0] == 143
    assert len(read_history(run_dir)) in (1, 2)
    assert not (run_dir / "metrics.json").exists()

    program = start_or_resume(arguments, out)  # in the final evaluation
    program.wait_until((run_dir / "model.keras").exists)
    status, farewell = program.send(signal.SIGINT)
    assert status == 130
    assert not (run_dir / "metrics.json").exists()
    assert "Fitting" not in program.read(program.out)

    command = shlex.split(farewell.removeprefix("Stopped; go on with: "))
    assert command == ["python", str(ROOT / "train.py"), "--resume", str(run_dir)]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert undisturbed.send(None)[0] == 0
    assert_equal_runs(whole, run_dir, 3)
    again = (run_dir / "standardiser.keras").stat()
    assert (again.st_ino, again.st_mtime_ns) == (fitted.st_ino, fitted.st_mtime_ns)  # it was not fitted a second time
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, run_dir))
    assert {name: a[name] for name in a if "accuracy" in name} == {name: b[name] for name in b if "accuracy" in name}


def test_svgg_with_holdout_survives_a_kill_while_its_state_is_written_and_a_full_disk(small_data, tmp_path):
    arguments = ["svgg", "--recipe", "modern", "--holdout", "--epochs", 2, "--batch-size", 30, "--data", small_data]
    undisturbed = start_or_resume(arguments, tmp_path / "whole")
    out = tmp_path / "killed"

    program = start_or_resume(arguments, out)
    program.wait_until(lambda: 1 in program.epochs())
    run_dir = the_run(out)
    half_written = run_dir / ".new.state.npz"
    program.wait_until(half_written.exists, pause=0.0002)
    program.send(signal.SIGKILL)
    assert half_written.exists()

    before = (run_dir / "state.npz").read_bytes(), (run_dir / "history.csv").read_bytes()
    program = start_or_resume(arguments, out, largest_file=30_000_000)  # the state has 43 million bytes
    status, error = program.send(None)
    assert status == 1
    assert error.startswith(f"error: {run_dir}/state.npz cannot be written (File too large); what its folder held")
    assert ((run_dir / "state.npz").read_bytes(), (run_dir / "history.csv").read_bytes()) == before
    assert not half_written.exists()

    assert start_or_resume(arguments, out).send(None)[0] == 0
    assert undisturbed.send(None)[0] == 0
    assert_equal_runs(the_run(tmp_path / "whole"), run_dir, 2)


def wait_until_it_listens(program):
    """Wait until the program waits for signals: Python itself needs a moment until then."""
    status = Path(f"/proc/{program.process.pid}/status")
    if not status.exists():  # not on Linux
        time.sleep(1)
    else:
        program.wait_until(lambda: int(re.search(r"SigBlk:\s*(\w+)", status.read_text())[1], 16))


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 1.5)])
def test_stopped_while_it_starts(number, delay, tmp_path):
    program = Program([*WRN, "--data", "sample", "--out", tmp_path / "runs"])
    wait_until_it_listens(program)
    time.sleep(delay)
    status, farewell = program.send(number)
    assert status == 128 + number
    assert farewell == "Stopped; nothing has been written; give the same command again"
    assert not list(tmp_path.rglob("*.json"))


def test_ctrl_c_does_not_reach_a_run_in_the_background(tmp_path):
    program = Program([*WRN, "--data", "sample", "--out", tmp_path / "runs"], ctrl_c="ignored")
    wait_until_it_listens(program)
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert program.send(signal.SIGTERM)[0] == 143


# ---------------------------------------------------------------- Runs of a tiny network, in this process


@pytest.fixture(scope="module", autouse=True)
def tiny_wrn():
    """The command line's WRN is a tiny network in this process, and its pictures are quickly drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.wrn, "build_wrn", lambda *_: tiny_network(name="wrn-10-1"))
        patch.setattr(Figure, "tight_layout", lambda figure: None)
        patch.setattr(Figure, "savefig", lambda figure, path, real=Figure.savefig: real(figure, path, dpi=10))
        yield


def run_tiny(out, small_data, *more):
    train.main(["wrn", "--scheme", "3", "--batch-size", "30", "--data", str(small_data), "--out", str(out), *more])
    return the_run(out)


def error_of(*arguments):
    """Return the one line with which main gives up."""
    with pytest.raises(SystemExit) as exit_:
        train.main(list(map(str, arguments)))
    assert isinstance(exit_.value.code, str)  # so that the exit status is 1
    assert "\n" not in exit_.value.code
    return exit_.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_data):
    """A finished run of three epochs."""
    return run_tiny(tmp_path_factory.mktemp("finished"), small_data, "--epochs", "3")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "name" / "time"))


def test_lengthened_run_equals_a_long_one_and_another_seed_does_not(finished, small_data, tmp_path):
    run_dir = run_tiny(tmp_path / "short", small_data, "--epochs", "2")
    train.main(["--resume", str(run_dir), "--epochs", "3"])
    assert_equal_runs(finished, run_dir, 3)
    other = run_tiny(tmp_path / "other", small_data, "--epochs", "3", "--seed", "1")
    assert contents(other)["network_0"] != contents(finished)["network_0"]


def test_killed_after_the_last_epoch_goes_on_with_the_evaluation(finished, copy):
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").unlink()
    (copy / "confusion.png").unlink()
    (copy / "model.keras").unlink()
    (copy / ".new.model.keras").write_bytes(b"half of it")
    train.main(["--resume", str(copy)])
    assert_equal_runs(finished, copy, 3)
    assert json.loads((copy / "metrics.json").read_text()) == metrics


def test_killed_between_the_state_and_the_files_that_follow_it(finished, copy):
    # The state is one epoch ahead of the others: the history lacks a row, the best weights are those of before.
    (copy / "metrics.json").unlink()
    rows = (copy / "history.csv").read_text().splitlines(keepends=True)
    (copy / "history.csv").write_text("".join(rows[:-1]))
    with np.load(copy / "state.npz") as state:
        assert json.loads(str(state["progress"]))["best_epoch"] == 3
    (copy / "best.weights.h5").write_bytes(b"older ones")
    train.main(["--resume", str(copy)])
    assert_equal_runs(finished, copy, 3)


@pytest.mark.parametrize(
    ("arguments", "schedule", "message"),
    [
        ([], "inverse_time", "is finished: 3 epochs; lengthen it with --epochs"),
        ([], "cosine", "is finished: 3 epochs; nothing is left to do"),
        (["--epochs", "2"], "inverse_time", "has 3 epochs; --epochs can lengthen it, not shorten it"),
        (
            ["--epochs", "9"],
            "cosine",
            "its learning rate reaches zero at epoch 3. Start a new run with --epochs 9",
        ),
        (["--data", "sample"], "inverse_time", "is finished"),
        (["--data", "sample", "--epochs", "4"], "inverse_time", "was trained on other data (the checksums differ)"),
    ],
)
def test_finished_run_says_what_can_be_done_with_it(copy, arguments, schedule, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"schedule": schedule}))
    assert message in error_of("--resume", copy, *arguments)
    assert (copy / "metrics.json").exists()


def test_locked_run_is_left_alone(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != ".lock"}
    file = train.lock(copy)
    assert "is being written by another process" in error_of("--resume", copy, "--epochs", "4")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != ".lock"} == before
    file.close()
    train.lock(copy).close()


def test_loss_that_is_not_a_number_stops_the_run_and_spoils_nothing(tiny_run, tmp_path):  # noqa: F811
    model, x, y = tiny_run.model, SAMPLE.x_train[:40], SAMPLE.y_train[:40]
    rates = [0.1, 1e38]

    def train_until(epochs):
        optimizer = keras.optimizers.SGD(0.1)
        keywords = {"epochs": epochs, "lr_schedule_fn": rates.__getitem__, "run_dir": tmp_path}
        train.compile_and_train(model, "nan", x, y, x, y, 3, optimizer, batch_size=20, **keywords)

    train_until(1)
    names = ("state.npz", "best.weights.h5", "history.csv")
    before = [(tmp_path / name).read_bytes() for name in names]
    with pytest.raises(train.RunError, match=r"the loss became nan in epoch 2\. Likely causes: a learning rate"):
        train_until(2)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert len(read_history(tmp_path)) == 1


def test_weights_that_are_not_numbers_stop_the_run_although_the_loss_is_one(tmp_path):
    x, y, rates, losses = SAMPLE.x_train[:60], SAMPLE.y_train[:60], [0.01, 1e6], []
    keras.utils.set_random_seed(0)
    model = train.assemble(augment.standardiser(x, 3), build_wrn(10, 1))
    real = train.RunRecorder.on_epoch_end

    def train_until(epochs):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        keywords = {"epochs": epochs, "lr_schedule_fn": rates.__getitem__, "run_dir": tmp_path}
        train.compile_and_train(model, "diverged", x, y, x, y, 3, optimizer, batch_size=15, **keywords)

    train_until(1)
    names = ("state.npz", "best.weights.h5", "history.csv")
    before = [(tmp_path / name).read_bytes() for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.RunRecorder, "on_epoch_end", lambda *given: (losses.append(given[2]["loss"]), real(*given)))
        with pytest.raises(train.RunError, match=r"the weights are no longer numbers after epoch 2\. "):
            train_until(2)
    assert np.isfinite(losses).all()  # so that it is the weights that were noticed
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert len(read_history(tmp_path)) == 1


@pytest.fixture(scope="module")
def untrained():
    """A network and an optimizer as load_state wants them."""
    network, optimizer = tiny_network(), train.make_optimizer(train.RECIPES["tutorial"]["wrn"], 2)
    optimizer.build(network.trainable_variables)
    return network, optimizer


# ---------------------------------------------------------------- Full disks and folders that are gone


@pytest.mark.parametrize(
    ("function", "limit", "file"),
    [
        ("RunRecorder._save_best_weights", 1000, "best.weights.h5 cannot be written (File too large)"),
        ("RunRecorder._log_to_tensorboard", 10, "logs cannot be written"),
        ("RunRecorder.on_train_end", 3000, "model.keras cannot be written (File too large)"),
        ("plot_histories", 300, "File too large"),
        ("RunRecorder.on_epoch_end", None, "state.npz cannot be written (No such file or directory)"),
        ("lock", None, "No such file or directory"),
        ("evaluate_performance", None, "No such file or directory"),
    ],
)
def test_full_disk_or_lost_folder_is_one_line(copy, untrained, monkeypatch, function, limit, file):
    """Fills the disk, or removes the folder where `limit` is None, just before `function` is called."""
    *owner, name = function.split(".")
    owner = getattr(train, owner[0]) if owner else train
    real = getattr(owner, name)

    def disturbed(*arguments, **keywords):
        if limit is None:
            shutil.rmtree(copy)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, disturbed)
    try:
        error = error_of("--resume", copy, "--epochs", "4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert file in error
    assert not list(copy.glob(".new.*"))
    if limit:
        train.load_state(copy, *untrained)
        assert not (copy / "metrics.json").exists()  # it would say that the run is finished


# ---------------------------------------------------------------- Damaged and hostile files


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, None)
            for name in ("network", "recipe", "epochs", "batch_size", "holdout", "no_test", "no_xla", "data")
        ),
        *(("epochs", value) for value in ("4", 0, -3, 2.5, True, 2**40)),
        *(("batch_size", value) for value in (0, -1, "x")),
        *(("learning_rate", value) for value in (-1.0, "x", float("nan"), float("inf"))),
        *(("data", value) for value in ([], {}, {"source": 5, "md5": {}}, {"source": None})),
        *(("scheme", value) for value in (9, [1], {})),
        *(("network", value) for value in ("vgg", 5, [])),
        *(("schedule", "linear"), ("optimizer", "adam"), ("seed", -1), ("drop_rate", "0.3"), ("holdout", "yes")),
    ],
)
def test_damaged_setting_is_named(copy, name, value):
    config = json.loads((copy / "config.json").read_text()) | {name: value}
    if value is None:
        del config[name]
    (copy / "config.json").write_text(json.dumps(config))
    error = error_of("--resume", copy, "--epochs", "4")
    assert f"{copy} is not the folder of a run: no good config.json in it (" in error


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000])
def test_file_that_is_no_config_is_refused(copy, content):
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_bytes(content)
    assert f"{copy} is not the folder of a run: no good config.json in it" in error_of("--resume", copy)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage",
    ["empty", "text", "half", "one array less", "one more", "other shape", "other progress", "no progress", "pickle"],
)
def test_damaged_state_is_refused_and_runs_nothing(copy, untrained, tmp_path, damage):
    path, trap = copy / "state.npz", tmp_path / "trapped"
    with np.load(path) as state:
        arrays = dict(state)
    train.load_state(copy, *untrained)
    good = path.read_bytes()
    match damage:
        case "one array less":
            del arrays["optimizer_1"]
        case "one more":
            arrays["network_9"] = np.zeros(3)
        case "other shape":
            arrays["network_0"] = np.zeros((48, 9), np.float32)
        case "other progress":
            arrays["progress"] = np.array(json.dumps({"seconds": [1.0], "history": [], "starting_epoch": 0}))
        case "no progress":
            del arrays["progress"]
        case "pickle":
            arrays["progress"] = np.array(Trap(trap), dtype=object)
    np.savez(path, **arrays)
    if damage == "pickle":  # it does run where pickle is allowed
        np.load(path, allow_pickle=True)["progress"]
        trap.unlink()
    if (content := {"empty": b"", "text": b"no zip", "half": good[: len(good) // 2]}.get(damage)) is not None:
        path.write_bytes(content)
    with pytest.raises(train.RunError, match=r"state\.npz is damaged or not a state of this run .*; delete it"):
        train.load_state(copy, *untrained)
    assert not trap.exists()


def test_state_with_any_byte_changed_is_refused(finished, untrained, tmp_path):
    good, chance = (finished / "state.npz").read_bytes(), random.Random(1)
    for _ in range(300):
        content = bytearray(good)
        content[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        (tmp_path / "state.npz").write_bytes(content)
        with contextlib.suppress(train.RunError):
            assert len(train.load_state(tmp_path, *untrained)["seconds"]) == 3  # some bytes, a date's, mean nothing


def test_resumed_run_notices_damage_before_it_trains(copy):
    with np.load(copy / "state.npz") as state:
        arrays = dict(state)
    progress = json.loads(str(arrays["progress"])) | {"best_epoch": 1}  # so that the state cannot give the best weights
    np.savez(copy / "state.npz", **arrays | {"progress": np.array(json.dumps(progress))})
    (copy / "best.weights.h5").write_bytes(b"no weights")
    error = error_of("--resume", copy, "--epochs", "4")
    assert re.search(r"best\.weights\.h5 is missing, damaged or of another network \(.*\); restore it", error)
    assert len(read_history(copy)) == 3
    (copy / "state.npz").write_bytes(b"no state")
    assert "state.npz is damaged" in error_of("--resume", copy)
    (copy / "standardiser.keras").write_bytes(b"no model")
    assert re.search(r"standardiser\.keras is damaged \(.*\); delete it", error_of("--resume", copy))
    for name in ("best.weights.h5", "state.npz", "standardiser.keras"):  # which is the advice that the messages give
        (copy / name).unlink()
    train.main(["--resume", str(copy)])
    assert len(read_history(copy)) == 4


@pytest.mark.parametrize("kind", ["half", "other shape", "code"])
def test_damaged_or_hostile_standardiser_is_refused_and_runs_nothing(copy, tmp_path, kind):
    path, trap = copy / "standardiser.keras", tmp_path / "trapped"
    if kind == "half":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        source = f"lambda x: (open({str(trap)!r}, 'w').close(), x)[1]"
        layer = layers.Lambda(eval(source)) if kind == "code" else layers.Flatten()
        keras.Sequential([keras.Input((32, 32, 3)), layer]).save(path)
    if kind == "code":  # it does run where code is allowed
        trap.unlink()
        keras.models.load_model(path, safe_mode=False)
        trap.unlink()
    with pytest.raises(train.RunError, match=r"standardiser\.keras is damaged \(.*\); delete it"):
        train.load_standardiser(copy, SAMPLE.x_train, 3)
    assert not trap.exists()


# ---------------------------------------------------------------- By hand: many kills


def kill_at_random(arguments, kills, chance, folder):
    """Kill and resume runs at random moments until `kills` have struck; return (kills, runs, equal runs)."""
    assert Program([*arguments, "--out", folder / "whole"]).send(None)[0] == 0
    whole = the_run(folder / "whole")
    with np.load(whole / "state.npz") as state:
        length = sum(json.loads(str(state["progress"]))["seconds"]) + 5  # and 5 for the evaluation
    struck, equal = 0, []
    while struck < kills:
        out = folder / f"killed{len(equal)}"
        while not (the_run(out) and (the_run(out) / "metrics.json").exists()):
            program = start_or_resume(arguments, out)
            # Most of the kills in training and evaluation, some at once; a third of them while a file is being written.
            if chance.random() < 0.9:
                program.wait_until(lambda p=program: "To watch it" in p.read(p.out))
            moment, writing = time.monotonic() + chance.uniform(0, length), chance.random() < 0.33
            while program.process.poll() is None and (struck < kills or not writing):
                if time.monotonic() > moment and (not writing or (the_run(out) and [*the_run(out).glob(".new.*")])):
                    break
                time.sleep(0 if writing else 0.001)
            if struck < kills and program.process.poll() is None:
                program.process.kill()
                struck += 1
            if program.process.wait() not in (0, -signal.SIGKILL):
                raise SystemExit(program.read(program.err))
        try:
            assert_equal_runs(whole, the_run(out), 5)
            equal.append(True)
        except AssertionError as error:
            print(error)
            equal.append(False)
    return struck, len(equal), sum(equal)


def main():
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, compare them bit for bit.")
    parser.add_argument("--kills", type=int, default=20, help="for each network, recipe and protocol (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        small_data = write_small_data(Path(folder) / "small")
        print(f"{'network':8} {'recipe':9} {'protocol':9} kills  runs  equal")
        for (network, *size), recipe, protocol in itertools.product(
            (WRN, ["svgg"]), train.RECIPES, ("full", "holdout")
        ):
            arguments = [network, *size, "--recipe", recipe, *(["--holdout"] if protocol == "holdout" else [])]
            arguments += ["--epochs", 5, "--batch-size", 40, "--data", small_data]
            place = Path(folder) / f"{network}-{recipe}-{protocol}"
            kills, runs, equal = kill_at_random(arguments, options.kills, chance, place)
            print(f"{network:8} {recipe:9} {protocol:9} {kills:5} {runs:5} {equal:6}", flush=True)
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
