"""Tests that a run cannot be lost: killed, stopped, on a full disk, in a damaged folder, on another machine.

    pytest tests/test_runs.py
    python tests/test_runs.py --kills 20 [--seed 1] [--only wrn-tutorial-full]     kills runs at random moments

Kills and signals strike a real process that trains a real, small network. What needs no process of its own is tried on
a tiny network, in this one.
"""

import argparse
import gzip
import io
import itertools
import json
import os
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for --kills; pytest knows it from pyproject.toml
from test_train import Figure, read_history, read_scalars, save_data, tiny_model, tiny_network, train_tiny

import train

ROOT = Path(__file__).parent.parent
WRN = ["wrn", "--num-convs", "10", "--k-factor", "1"]
RECORDS = ("config.json", "history.csv", "state.npz", "best.keras")


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data") / "small.npz", 60, 20)


# ---------------------------------------------------------------- A process, and what a run has recorded

# Ctrl-C is ignored in a process that was started in the background by a script: begin with what a terminal gives.
LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
USERS_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_"))}


class Program:
    """train.py in a process of its own. Its output goes to files, so that it never waits for a reader."""

    def __init__(self, *arguments, closed=False, **environment):
        """closed: without stdout; environment: variables in addition to the user's."""
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-c", LAUNCHER, str(ROOT / "train.py"), *map(str, arguments)]
        if closed:
            command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        environment = USERS_ENVIRONMENT | environment
        self.process = subprocess.Popen(command, env=environment, stdout=self.out, stderr=self.err)

    def read(self, file):
        return os.pread(file.fileno(), 1_000_000, 0).decode()

    def wait_until(self, condition, pause=0.002):
        while not condition():
            assert self.process.poll() is None, f"it ended too early: {self.read(self.out)}{self.read(self.err)}"
            time.sleep(pause)

    def end(self, number=None):
        """Send a signal, or none if `number` is None; return the exit status and the last line of stderr."""
        if number:
            self.process.send_signal(number)
        status = self.process.wait(timeout=600 if number is None else 20)
        errors = self.read(self.err)
        assert "Traceback" not in errors, errors
        return status, (errors.strip().splitlines() or [""])[-1]


def the_run(out):
    """Return the folder of the only run below `out`, or None if it has not been made yet."""
    return next((path.parent for path in out.glob("*/*/config.json")), None)


def start_or_resume(arguments, out):
    run_dir = the_run(out)
    return Program(*(["--resume", run_dir] if run_dir else [*arguments, "--out", out]))


def contents(run_dir):
    """Return all of a run that must not depend on interruptions: what the epochs gave, to the last bit."""
    with np.load(run_dir / "state.npz", allow_pickle=False) as state:
        arrays = dict(state)
    for model in (path for path in run_dir.glob("*.keras") if ".new." not in path.name):
        with zipfile.ZipFile(model) as archive:
            file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
        file["layers"].visititems(
            lambda name, item, model=model: (
                arrays.update({f"{model.name}/{name}": item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    found = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    found["history"] = [{name: row[name] for name in row if name != "seconds"} for row in read_history(run_dir)]
    for split in ("train", "validation"):
        found |= {(split, tag): values for tag, values in read_scalars(run_dir / "logs" / split).items()}
    return found


def assert_equal_runs(one, other, epochs):
    a, b = contents(one), contents(other)
    assert [row["epoch"] for row in a["history"]] == [str(epoch + 1) for epoch in range(epochs)]
    assert list(a["train", "epoch_loss"]) == list(range(epochs))
    assert any("best.keras" in name for name in a)
    assert not [*other.glob("*.new.*")]
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


# ---------------------------------------------------------------- Kills, signals, and the same weights in the end


def test_run_that_is_killed_and_stopped_in_odd_surroundings_equals_an_undisturbed_one(small_data, tmp_path):
    arguments = [*WRN, "--scheme", 3, "--epochs", 4, "--batch-size", 30, "--data", small_data]  # dropout 0.3
    out = tmp_path / "my {runs} (1) ü"
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    odd = {
        "KERAS_HOME": str(tmp_path),
        "KERAS_BACKEND": "jax",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }

    program = Program(*arguments, "--out", out, PYTHONIOENCODING="ascii", **odd)
    program.wait_until(lambda: the_run(out) and epochs_in(the_run(out)) == 1)
    assert program.end(signal.SIGKILL)[0] == -signal.SIGKILL
    run_dir = the_run(out)
    (command,) = re.findall(r"tensorboard .*", program.read(program.out))
    assert shlex.split(command) == ["tensorboard", "--logdir", str(run_dir / "logs").replace("ü", "?")]

    program = Program("--resume", run_dir)
    program.wait_until(lambda: epochs_in(run_dir) == 2)
    status, farewell = program.end(signal.SIGINT)
    assert status == 130
    assert not (run_dir / "metrics.json").exists()
    command = shlex.split(farewell.removeprefix("Stopped; continue with: "))
    assert command == ["python", str(ROOT / "train.py"), "--resume", str(run_dir)]
    program = Program(*command[2:], closed=True, **odd)

    train.main([*map(str, arguments), "--out", str(tmp_path / "undisturbed")])
    undisturbed = the_run(tmp_path / "undisturbed")
    assert program.end()[0] == 0
    assert_equal_runs(undisturbed, run_dir, 4)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (undisturbed, run_dir))
    assert {name: a[name] for name in a if "second" not in name} == {
        name: b[name] for name in b if "second" not in name
    }
    assert {path.name for path in undisturbed.iterdir()} == {path.name for path in run_dir.iterdir()}


def epochs_in(run_dir):
    """Return how many epochs the folder of a running program has; history.csv is replaced as a whole."""
    return len(read_history(run_dir)) if (run_dir / "state.npz").exists() else 0


def test_ctrl_c_while_the_data_are_loading(tmp_path):
    member = tarfile.TarInfo("7 GB of zeros")  # it takes long to look for a batch file behind them
    member.size = 7 * 10**9
    archive = tmp_path / "long.tar.gz"
    archive.write_bytes(gzip.compress(member.tobuf(tarfile.USTAR_FORMAT)) + 700 * gzip.compress(bytes(10**7)))
    program = Program(*WRN, "--data", archive, "--out", tmp_path / "runs")
    program.wait_until(lambda: "Loading the data" in program.read(program.out))
    time.sleep(0.3)
    assert program.end(signal.SIGINT) == (130, "Stopped; nothing was written; give the same command again")
    assert not [*(tmp_path / "runs").iterdir()]


def test_program_leaves_signals_and_their_mask_as_they_were(monkeypatch, capsys):
    def signals():
        return [signal.getsignal(number) for number in signal.valid_signals()], signal.pthread_sigmask(
            signal.SIG_BLOCK, []
        )

    before = signals()
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert "the recipe" in capsys.readouterr().out
    assert signals() == before


# ---------------------------------------------------------------- Runs of a tiny network, in this process


def run(*arguments, evaluate=False):
    """Run main with a tiny network in place of the WRN; its pictures are quickly drawn, or not at all."""
    with pytest.MonkeyPatch.context() as patch:
        if not evaluate:
            patch.setattr(train, "evaluate_run", lambda *_: None)
        patch.setattr(train.wrn, "build_wrn", lambda *_: tiny_network(name="wrn-10-1"))
        patch.setattr(Figure, "tight_layout", lambda figure: None)
        patch.setattr(Figure, "savefig", lambda figure, path, real=Figure.savefig: real(figure, path, dpi=10))
        train.main(list(map(str, arguments)))


def run_tiny(out, small_data, *more, evaluate=False):
    run("wrn", "--scheme", 3, "--batch-size", 30, "--data", small_data, "--out", out, *more, evaluate=evaluate)
    return the_run(out)


def error_of(*arguments):
    """Return the one line with which main gives up."""
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, evaluate=True)
    assert isinstance(exit_.value.code, str)  # so that the exit status is 1
    assert exit_.value.code.startswith("error: ")
    assert "\n" not in exit_.value.code
    return exit_.value.code


def change_config(run_dir, **changes):
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | changes, indent=2) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_data):
    """A finished run of three epochs."""
    return run_tiny(tmp_path_factory.mktemp("finished"), small_data, "--epochs", 3, evaluate=True)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "name" / "time"))


@pytest.fixture
def interrupted(copy):
    """The same as if it were to have a fourth epoch."""
    change_config(copy, epochs=4)
    (copy / "metrics.json").unlink()
    return copy


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_kill_at_each_file_operation_of_an_epoch_changes_nothing(tmp_path, monkeypatch):
    real = {"replace": train.replace, "savez": np.savez, "open": open, "on_epoch_end": train.RunRecorder.on_epoch_end}
    operations, snapshots, kill_at = [], {}, [None]

    def spy(name):
        def operation(*arguments, **keywords):
            if name == "open" and "w" not in arguments:
                return open(*arguments, **keywords)
            operations.append(name)
            killed = kill_at[0] is not None and len(operations) == kill_at[0]
            if killed and name == "replace":
                raise Killed
            result = real[name](*arguments, **keywords)
            if killed:  # with half of the file on the disk
                Path(arguments[0]).write_bytes(Path(arguments[0]).read_bytes()[:2000])
                raise Killed
            return result

        return operation

    def on_epoch_end(self, epoch, logs=None):
        operations.clear()
        kill_at[0] = kill_in[1] if epoch == kill_in[0] else None
        real["on_epoch_end"](self, epoch, logs)
        assert snapshots.setdefault(epoch, contents(self.run_dir)) == contents(self.run_dir)

    monkeypatch.setattr(train, "replace", spy("replace"))
    monkeypatch.setattr(np, "savez", spy("savez"))
    monkeypatch.setattr(train, "open", spy("open"), raising=False)
    monkeypatch.setattr(train.RunRecorder, "on_epoch_end", on_epoch_end)

    def train_until(epochs, seed):
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        return train_tiny(tiny_model(seed), None, optimizer, epochs=epochs, batch_size=60, run_dir=tmp_path / folder)[0]

    folder, kill_in = "undisturbed", (None, None)
    whole = train_until(6, seed=0)
    assert operations[:3] == ["replace", "open", "replace"]
    assert operations[:5] == ["replace", "open", "replace", "savez", "replace"]  # best.keras is replaced each time
    assert whole["val_loss"] == sorted(whole["val_loss"], reverse=True)

    folder = "killed"
    for k in range(1, 6):  # in the second epoch at the first operation, in the third at the second, …
        kill_in = (k, k)
        with pytest.raises(Killed):
            train_until(6, seed=k - 1)
        for name in ("best.new.keras", "history.new.csv", "state.new.npz", "model.new.keras"):
            (tmp_path / folder / name).write_bytes(b"half of it")
    kill_in = (None, None)
    history = train_until(6, seed=9)
    assert {name: history[name] for name in history if name != "seconds"} == {
        name: whole[name] for name in whole if name != "seconds"
    }
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "killed", 6)


def test_lengthened_run_equals_a_long_one_and_another_seed_does_not(finished, small_data, tmp_path):
    run_dir = run_tiny(tmp_path / "short", small_data, "--epochs", 2)
    run("--resume", run_dir, "--epochs", 3)
    assert_equal_runs(finished, run_dir, 3)
    other = run_tiny(tmp_path / "other", small_data, "--epochs", 1, "--seed", 1)
    assert read_history(other)[0]["loss"] != read_history(finished)[0]["loss"]


def test_killed_after_the_last_epoch_goes_on_with_the_evaluation(finished, copy):
    metrics = json.loads((copy / "metrics.json").read_text())
    for name in ("metrics.json", "confusion.png", "model.keras"):
        (copy / name).unlink()
    (copy / "model.new.keras").write_bytes(b"half of it")
    run("--resume", copy, evaluate=True)
    assert_equal_runs(finished, copy, 3)
    assert json.loads((copy / "metrics.json").read_text()) == metrics


# ---------------------------------------------------------------- What --resume refuses, and what it says


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {}, "is finished: all 3 epochs are done"),
        (["--data", "sample"], {}, "is finished: all 3 epochs are done"),
        (["--epochs", 2], {}, "has 3 epochs; --epochs can lengthen it, not shorten it"),
        (["--epochs", 9], {"schedule": "cosine"}, "its learning rate is zero after 3 epochs; start a new run"),
        (["--epochs", 4, "--data", "sample"], {}, "was trained on other data"),
        (["--epochs", 4], {"data": {"source": "moved.npz"}}, "moved.npz"),
    ],
)
def test_run_says_why_it_cannot_go_on_and_stays_as_it_is(copy, arguments, changes, message):
    change_config(copy, **changes)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert message in error_of("--resume", copy, *arguments)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_resumed_with_moved_data_on_another_machine(interrupted, small_data, tmp_path, capsys):
    config = json.loads((interrupted / "config.json").read_text())
    cores = re.sub(r"\d+ cores", "99 cores", config["device"])
    assert cores != config["device"]
    change_config(interrupted, device=cores, data=config["data"] | {"source": "/moved.npz"})
    moved = shutil.copy(small_data, tmp_path / "moved.npz")
    run("--resume", interrupted, "--data", moved)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Another machine" in line]
    assert cores in line
    assert config["device"] in line
    assert len(read_history(interrupted)) == 4
    assert json.loads((interrupted / "config.json").read_text())["data"]["source"] == str(moved)


def test_run_without_a_state_says_that_it_begins_again(finished, interrupted, capsys):
    change_config(interrupted, epochs=3)
    (interrupted / "state.npz").unlink()
    run("--resume", interrupted)
    assert "No epoch of this run is complete: it begins again" in capsys.readouterr().out
    assert_equal_runs(finished, interrupted, 3)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/below"])
def test_folder_that_cannot_be_written_is_found_before_the_data_are_loaded(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(train.data, "load_cifar10", lambda *_: pytest.fail("the data are loaded"))
    assert out.split("/")[-1] in error_of("wrn", "--out", out)


# ---------------------------------------------------------------- Full disks, lost folders, damaged and hostile files


@pytest.mark.parametrize(
    ("owner", "function", "limit"),
    [
        (train, "train_run", 10),  # config.json
        (keras.callbacks.ModelCheckpoint, "on_epoch_end", 1000),
        (np, "savez", 1000),
        pytest.param(keras.callbacks.TensorBoard, "on_epoch_end", 10, marks=pytest.mark.long),
        pytest.param(train.RunRecorder, "on_epoch_end", 100, marks=pytest.mark.long),  # history.csv
        pytest.param(keras.Sequential, "save", 1000, marks=pytest.mark.long),
        (train, "plot_histories", 300),
        (train.RunRecorder, "on_epoch_end", None),
        (train, "evaluate_performance", None),
    ],
)
def test_full_disk_or_lost_folder_is_one_line(interrupted, monkeypatch, owner, function, limit):
    """Fills the disk, or removes the folder where `limit` is None, just before `function` is called."""
    real = getattr(owner, function)

    def disturbed(*arguments, **keywords):
        if limit is None:
            shutil.rmtree(interrupted)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, function, disturbed)
    if function in ("save", "plot_histories", "evaluate_performance"):
        change_config(interrupted, epochs=3)  # nothing is left to train
    try:
        error = error_of("--resume", interrupted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert shlex.split(error.split("continue with: ")[1])[-2:] == ["--resume", str(interrupted)]
    if limit:
        model = train.assemble(keras.Sequential([keras.layers.Identity()], trainable=False), tiny_network())
        model.compile(train.make_optimizer(train.RECIPES["tutorial"]["wrn"], 2))
        model.optimizer.build(model.trainable_variables)
        assert len(train.restore(model, interrupted)) == 3  # all is there to resume from
        assert not (interrupted / "metrics.json").exists()  # it would say that the run is finished


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def spoil(path, damage, trap):
    good = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "text":
        path.write_text("not what it was")
    elif damage == "pickle":
        arrays = dict(np.load(io.BytesIO(good)))
        np.savez(path, **arrays | {"epoch": np.array(Trap(trap), dtype=object)})
        np.load(path, allow_pickle=True)["epoch"]
        trap.unlink()  # it does run where pickle is allowed
    elif damage == "one array less":
        arrays = dict(np.load(io.BytesIO(good)))
        del arrays[f"arr_{len(arrays) - 2}"]
        np.savez(path, **arrays)
    elif damage == "other shapes":
        arrays = dict(np.load(io.BytesIO(good)))
        np.savez(path, **{name: array if name == "epoch" else np.zeros(3) for name, array in arrays.items()})
    elif damage == "one row less":
        path.write_bytes(b"".join(good.splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(RECORDS, ("truncated", "text")),
        *(("state.npz", damage) for damage in ("pickle", "one array less", "other shapes")),
        ("history.csv", "one row less"),
        *((name, "missing") for name in ("config.json", "history.csv", "best.keras")),
    ],
)
def test_damaged_file_is_one_line_and_nothing_else_changes(interrupted, tmp_path, name, damage):
    def files():
        config = (interrupted / "config.json").read_text() if name != "config.json" else "{}"
        others = [path for path in interrupted.iterdir() if path.is_file() and path.name != "config.json"]
        return json.loads(config), {path.name: path.read_bytes() for path in others}

    spoil(interrupted / name, damage, tmp_path / "trapped")
    before = files()
    assert str(interrupted) in error_of("--resume", interrupted)
    assert files() == before
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", ["[]", "5", "null", "{}", '{"network": "vgg"}', '{"network": "wrn"}'])
def test_file_that_is_no_config_is_refused(copy, content):
    (copy / "config.json").write_text(content)
    assert f"{copy} is not the folder of a run" in error_of("--resume", copy)


# ---------------------------------------------------------------- Many kills


def kill(program, out, moment, writing):
    """Kill a program after `moment` seconds of training, or when it then writes a file; return whether it struck."""
    program.wait_until(lambda: "Fitting the standard" in program.read(program.out))
    end = time.monotonic() + moment
    while program.process.poll() is None:
        if time.monotonic() > end and (not writing or [*the_run(out).glob("*.new.*")]):
            program.process.kill()
            break
        time.sleep(0 if writing else 0.001)
    status = program.process.wait()
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(program.read(program.err))
    return status != 0


def kill_at_random(arguments, kills, chance, folder, epochs, in_a_row=99):
    """Kill and resume runs at random moments until `kills` have struck; return (kills, runs, equal runs)."""
    started = Program(*arguments, "--out", folder / "whole")
    started.wait_until(lambda: "Fitting the standard" in started.read(started.out))
    begin = time.monotonic()
    assert started.end()[0] == 0
    length, struck, equal = time.monotonic() - begin, 0, []
    while struck < kills:
        out = folder / f"killed{len(equal)}"
        while not (the_run(out) and (the_run(out) / "metrics.json").exists()):
            program = start_or_resume(arguments, out)
            if struck < kills:
                struck += kill(program, out, chance.uniform(0, length), chance.random() < 0.33)
            else:
                assert program.end()[0] == 0
        try:
            assert_equal_runs(the_run(folder / "whole"), the_run(out), epochs)
            equal.append(True)
        except AssertionError as error:
            print(error)
            equal.append(False)
    return struck, len(equal), sum(equal)


@pytest.mark.long
@pytest.mark.parametrize("case", [["svgg", "--recipe", "modern", "--holdout"], WRN])  # with whitening: the WRN
def test_run_survives_five_kills(case, small_data, tmp_path):
    arguments = [*case, "--epochs", 4, "--batch-size", 30, "--data", small_data]
    whole = Program(*arguments, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    for epochs_before, writing in ((0, False), (0, True), (1, True), (2, False), (2, True)):
        program = start_or_resume(arguments, out)
        program.wait_until(lambda n=epochs_before: the_run(out) and epochs_in(the_run(out)) >= n)
        if (epochs_before, writing) == (2, False):
            assert program.end(signal.SIGTERM)[0] == -signal.SIGTERM  # at once, without a farewell
        else:
            assert kill(program, out, 0.2, writing)
        assert bool([*the_run(out).glob("*.new.*")]) >= writing
    assert start_or_resume(arguments, out).end()[0] == 0
    assert whole.end()[0] == 0
    assert_equal_runs(the_run(tmp_path / "whole"), the_run(out), 4)


def main():
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, compare them bit for bit.")
    parser.add_argument("--kills", type=int, default=20, help="for each network, recipe and protocol (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="those with this in their name, as wrn-tutorial-full"
    )
    options = parser.parse_args()
    table = [f"{'network':8} {'recipe':9} {'protocol':9} kills  runs  equal"]
    with tempfile.TemporaryDirectory() as folder:
        small_data = save_data(Path(folder) / "small.npz", 80, 20)
        for (network, *size), recipe, protocol in itertools.product(
            (WRN, ["svgg"]), train.RECIPES, ("full", "holdout")
        ):
            name = f"{network}-{recipe}-{protocol}"
            if options.only not in name:
                continue
            arguments = [network, *size, "--recipe", recipe, *(["--holdout"] if protocol == "holdout" else [])]
            arguments += ["--epochs", 4, "--batch-size", 40, "--data", small_data]
            chance = random.Random(f"{options.seed} {name}")  # the same if run in parts
            kills, runs, equal = kill_at_random(arguments, options.kills, chance, Path(folder) / name, 4)
            table.append(f"{network:8} {recipe:9} {protocol:9} {kills:5} {runs:5} {equal:6}")
            print(table[-1], flush=True)
            shutil.rmtree(Path(folder) / name)
    print("", *table, sep="\n")


if __name__ == "__main__":
    main()
