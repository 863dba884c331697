"""How fast this code is beside the tutorial's ImageDataGenerator. Run by hand; pytest does not.

    python tests/benchmark.py                          whitening and input, on all of CIFAR-10: ten minutes on two cores
    python tests/benchmark.py --training               only training and evaluating the networks: a quarter of an hour
    python tests/benchmark.py --data sample --quick    whether it runs, with fewer steps and a smaller WRN: two minutes
    python tests/benchmark.py --batch-norm             only batch normalisation, beside TensorFlow's own: five minutes
    python tests/benchmark.py --recording              only what recording and saving an epoch costs: one minute

It prints a table, which is Markdown too. Both contestants run in this process, by turns, several rounds after one that
does not count, so that what else the machine does hits both. A figure is the median of the rounds, with the lowest and
the highest in brackets. "CPU" counts the work of all threads (images a CPU second, or CPU seconds), and is the figure
to trust on a machine that others use as well. The ratios are between the medians; above 1 ours is the better one.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import augment  # first: it sets up Keras
import data
import svgg
import train
import wrn

# isort: split
import keras
import numpy as np
import tensorflow as tf
from oracle import image_data_generator

BATCH_SIZE = 128
SECONDS, RATE = "seconds", "images/s"

# ---------------------------------------------------------------- Measuring and printing


def alternate(contestants, rounds, warm_up=True):
    """Run each of `contestants` by turns, `rounds` times. Return {name: [(seconds, CPU seconds), …]} for one item.

    contestants: {name: function}; a function returns how many items (images, steps, fits) it has worked on.
    """
    times = {name: [] for name in contestants}
    for number in range(-1 if warm_up else 0, rounds):  # round −1 builds graphs and fills caches
        for name, work in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            items = work()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number >= 0:
                times[name].append(tuple(seconds / items for seconds in spent))
    return times


def describe(values):
    """Return "median (lowest–highest)" with three significant digits."""

    def show(value):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    median = show(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({show(min(values))}–{show(max(values))})"


def print_row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_head(*titles):
    print()
    print_row(*titles)
    print_row(*["---"] * len(titles))


def print_comparison(what, unit, times, target=""):
    """Print a line for each contestant of `alternate`; the last one is ours, the first one what it is compared with."""
    *_, ours = times
    first = next(iter(times))
    for name, spent in times.items():
        columns = zip(*spent, strict=True)  # seconds, CPU seconds
        cells = [describe(values if unit == SECONDS else [1 / value for value in values]) for values in columns]
        ratios = ["", "", ""]
        if name == ours != first:
            ratios = [*(f"{median_of(times[first], i) / median_of(spent, i):.1f}" for i in (0, 1)), target]
        print_row(what, name, unit, *cells, *ratios)


def median_of(times, column):
    return statistics.median(pair[column] for pair in times)


COMPARISON = ("what", "contestant", "unit", "by the clock", "CPU", "ratio, clock", "ratio, CPU", "target")


def cpu_name():
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that has no name there
        return platform.processor() or platform.machine()


def print_machine(source):
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"{datetime.date.today()}, {cpu_name()}, {os.cpu_count()} cores{load}")
    versions = {"Keras": keras, "TensorFlow": tf, "NumPy": np}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
    print(f"Python {platform.python_version()}, {versions}; data: {source or 'CIFAR-10'}; batches of {BATCH_SIZE}")


# ---------------------------------------------------------------- Fitting the whitening


def benchmark_fit(images):
    """Fit both on `images` and print the times. Return {scheme: (ImageDataGenerator, our layers)}, schemes 1 to 3."""
    generators = {scheme: image_data_generator(scheme) for scheme in (1, 2, 3)}
    layers = {}

    def fit_generator():
        generators[1].fit(images)
        return 1

    def fit_layers():
        layers[1] = augment.standardiser(images, 1)
        return 1

    times = alternate({"ImageDataGenerator": fit_generator, "ours": fit_layers}, rounds=1, warm_up=False)
    print_comparison(f"fit the whitening on {len(images):,} images (one round)", SECONDS, times, "≥ 8")
    for name in ("mean", "zca_whitening_matrix"):  # scheme 2 has the same, so that is not computed again
        setattr(generators[2], name, getattr(generators[1], name))
    generators[3].fit(images)
    layers |= {2: layers[1], 3: augment.standardiser(images, 3)}
    return {scheme: (generators[scheme], layers[scheme]) for scheme in generators}


def whitening_in_float64(images):
    """Return the channels' means and the whitening matrix (D, D): straight from the definition, all in float64."""
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    second_moments = 0
    for start in range(0, len(images), 5000):
        rows = (images[start : start + 5000] - mean).reshape(-1, images[0].size)
        second_moments += rows.T @ rows / len(images)
    variances, directions = np.linalg.eigh(second_moments)
    kept = variances > variances.max() * 1e-12
    directions, deviations = directions[:, kept], np.sqrt(variances[kept])
    return mean, directions / (deviations + 1e-6 / np.sqrt(len(images))) @ directions.T


def benchmark_accuracy(images, unseen, generator, layers):
    """Compare whitened values with float64, as shares of their standard deviation."""
    mean, matrix = whitening_in_float64(images)
    for name, chosen in ("training images", images[:500]), ("test images", unseen[:500]):
        exact = ((chosen - mean).reshape(len(chosen), -1) @ matrix).reshape(chosen.shape)
        results = {
            "ImageDataGenerator": generator.standardize(chosen.astype("float32")),
            "ours": layers.predict(chosen, verbose=0),
        }
        for contestant, result in results.items():
            error = np.abs(result - exact) / exact.std()
            root_mean_square = np.sqrt((error**2).mean())
            target = "rms ≤ 0.1 %" if contestant == "ours" else ""
            print_row(
                f"whitened {name}, against float64", contestant, f"{root_mean_square:.1e}", f"{error.max():.1e}", target
            )


def peak_bytes():
    """Return the most memory that this process has had so far (Linux only)."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def memory_of_fit(path):
    """Return by how many bytes fitting the whitening raises the peak, with the images in memory already."""
    images = np.load(path)
    keras.ops.convert_to_numpy(keras.layers.Dense(1)(np.ones((1, 1), "float32")))  # what TensorFlow takes for itself
    before = peak_bytes()
    augment.standardiser(images, 1)
    return peak_bytes() - before


def benchmark_memory(images):
    """Print the peak memory of the fit above the images: in a process of its own, since a peak never goes down."""
    if not Path("/proc/self/status").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.npy")
        np.save(path, images)
        with multiprocessing.get_context("spawn").Pool(1) as process:
            peak = process.apply(memory_of_fit, [path])
    print(
        f"\nPeak memory of our fit, above the {images.nbytes / 1e9:.2f} GB of the images: {peak / 1e9:.2f} GB (< 1.5)"
    )


# ---------------------------------------------------------------- The input


def generator_input(generator, images, onehot, steps):
    """Return a contestant: `steps` batches from the tutorial's generator, augmented and standardised in NumPy."""
    batches = generator.flow(images, onehot, batch_size=BATCH_SIZE)

    def work():
        return sum(len(next(batches)[0]) for _ in range(steps))

    return work


def pipeline_input(images, labels, scheme, steps, layers=None):
    """Return a contestant: `steps` of our training batches, standardised by `layers`, compiled as in the model."""
    batches = augment.training_batches(images, labels, scheme, BATCH_SIZE, seed=0).take(steps)
    standardise = tf.function(layers or tf.identity, reduce_retracing=True)

    def work():
        return sum(len(standardise(batch).numpy()) for batch, _ in batches)

    return work


def benchmark_input(images, labels, fitted, rounds, steps):
    onehot = data.get_onehot(labels)
    for scheme, (generator, layers) in fitted.items():
        contestants = {
            "ImageDataGenerator": generator_input(generator, images, onehot, steps // 10),
            "ours": pipeline_input(images, labels, scheme, steps, layers),
        }
        target = "≥ 4" if scheme == 3 else "≥ 10"
        times = alternate(contestants, rounds)
        print_comparison(f"batches of scheme {scheme}, augmented and standardised", RATE, times, target)


def benchmark_pipeline(images, labels, rounds, steps):
    """What the pipeline sustains by itself: its images a CPU second is what one core feeds to a GPU."""
    contestants = {scheme: pipeline_input(images, labels, scheme, steps) for scheme in augment.SCHEMES}
    for scheme, times in alternate(contestants, rounds).items():
        print_comparison(f"batches of scheme {scheme}, augmented only", RATE, {"ours": times})


# ---------------------------------------------------------------- Training


def compiled(model, kind):
    """Compile `model` with the tutorial's recipe for `kind`, "svgg" or "wrn", and return it."""
    optimizer = train.make_optimizer(train.RECIPES["tutorial"][kind], steps_per_epoch=1)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model


def new_network(kind, num_convs=40):
    network = svgg.build_svgg() if kind == "svgg" else wrn.build_wrn(num_convs, 2, drop_rate=0.3)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # so that its statistics keep up with a training as short as this one
    return network


def training(model, batches, steps):
    """Return a contestant: fit `model` for `steps` steps."""

    def work():
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return steps * BATCH_SIZE

    return work


def benchmark_training(networks, kind, images, labels, fitted, rounds, steps):
    """Train two copies of a network, with scheme 1, the input included. Return the one that our input has trained."""
    generator, layers = fitted[1]
    usable = len(images) // BATCH_SIZE * BATCH_SIZE  # full batches only, to compare like with like
    images, labels = images[:usable], labels[:usable]
    theirs, network = networks
    flow = generator.flow(images, data.get_onehot(labels), BATCH_SIZE)
    batches = augment.training_batches(images, labels, 1, BATCH_SIZE, seed=0)
    contestants = {
        "ImageDataGenerator": training(compiled(theirs, kind), flow, steps),
        "ours, input only": pipeline_input(images, labels, 1, 10 * steps, layers),  # more, since its start takes time
        "ours": training(compiled(train.assemble(layers, network), kind), batches, steps),
    }
    times = alternate(contestants, rounds)
    input_only = times.pop("ours, input only")
    print_comparison(f"train {network.name} with scheme 1, input included", RATE, times, "> 1")
    # In CPU seconds: by the clock the input is made while the step before is computed.
    share = f"{100 * median_of(input_only, 1) / median_of(times['ours'], 1):.1f} %"
    print_row(f"train {network.name}: share of input and whitening in our step", "ours", "", "", share, "", "", "≤ 5 %")
    return network


# ---------------------------------------------------------------- Evaluation


STANDARDISING = ("featurewise_center", "featurewise_std_normalization", "zca_whitening", "zca_epsilon")


def evaluation_generator(fitted, scheme):
    """Return the tutorial's generator for evaluation: standardises like `fitted`, transforms nothing."""
    standardising = {name: value for name, value in augment.SCHEMES[scheme].items() if name in STANDARDISING}
    generator = image_data_generator(standardising)
    for name in ("mean", "std", "zca_whitening_matrix"):
        setattr(generator, name, getattr(fitted, name))
    return generator


def benchmark_evaluation(network, images, labels, fitted):
    """Evaluate the same network as the tutorial did, one image at a time through a generator, and as we do."""
    generator, layers = fitted[1]
    onehot, correct = data.get_onehot(labels), {}
    network = compiled(network, "wrn")
    model = compiled(train.assemble(layers, network), "wrn")
    flow = evaluation_generator(generator, 1).flow(images, onehot, batch_size=1, shuffle=False)

    def through_generator():
        correct["ImageDataGenerator"] = round(network.evaluate(flow, verbose=0)[1] * len(images))
        return len(images)

    def batched():
        batch_size = train.BATCH_SIZE_FOR_EVALUATION
        correct["ours"] = round(model.evaluate(images, onehot, batch_size, verbose=0)[1] * len(images))
        return len(images)

    network.evaluate(flow, steps=10, verbose=0)  # both compile now, since one image at a time is too slow to do twice
    model.evaluate(images[:10], onehot[:10], verbose=0)
    contestants = {"ImageDataGenerator, batches of 1": through_generator, "ours": batched}
    times = alternate(contestants, rounds=1, warm_up=False)
    print_comparison(f"evaluate {network.name} on {len(images):,} images (one round)", RATE, times, "≥ 5")
    print_row(f"evaluate {network.name}: correct", "both", "images", *correct.values(), "", "", "equal")


# ---------------------------------------------------------------- Batch normalisation


@keras.saving.register_keras_serializable("benchmark")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer with TensorFlow's fused kernel in place of its training step, for the time that it takes."""

    def call(self, inputs, training=None, mask=None):
        if not training:
            return super().call(inputs)
        result, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, new in (self.moving_mean, mean), (self.moving_variance, variance):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return result


def with_fused_batch_norm(network):
    def replace(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return FusedBatchNormalization.from_config(layer.get_config())
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=replace)


def benchmark_batch_norm(images, labels, rounds, steps):
    layers = augment.standardiser(images, 3)
    batch = layers(images[:BATCH_SIZE]), data.get_onehot(labels[:BATCH_SIZE])
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    network = wrn.build_wrn(40, 2, drop_rate=0.3)
    contestants = {
        "Keras's BatchNormalization": training(compiled(network, "wrn"), batches, steps),
        "fused": training(compiled(with_fused_batch_norm(network), "wrn"), batches, steps),
    }
    times = {
        name: [(wall * BATCH_SIZE, cpu * BATCH_SIZE) for wall, cpu in spent]
        for name, spent in alternate(contestants, rounds).items()
    }
    print_head(*COMPARISON)
    print_comparison(f"a training step of {network.name}, no input", SECONDS, times)


# ---------------------------------------------------------------- Recording an epoch


def benchmark_recording(cifar10, rounds):
    """Time what RunRecorder and ModelCheckpoint do after an epoch, for WRN-40-2 with whitening."""
    model = train.assemble(augment.standardiser(cifar10.x_train, 1), wrn.build_wrn(40, 2))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        path, logs = Path(folder), dict.fromkeys(("accuracy", "loss", "val_accuracy", "val_loss"), 1.0)
        recorder = train.RunRecorder(path, [])
        recorder.set_model(model)

        def record():
            recorder.started, recorder.rate = time.perf_counter(), 0.1
            recorder.on_epoch_end(0, logs)
            return 1

        def save_best():
            model.save(path / "best.new.keras")
            train.replace(path / "best.new.keras", path / "best.keras")
            return 1

        times = alternate({"history.csv and state.npz": record, "best.keras": save_best}, rounds)
    print_head(*COMPARISON[:5])
    for name, spent in times.items():
        columns = zip(*spent, strict=True)
        print_row("record an epoch of wrn-40-2 with whitening", name, SECONDS, *map(describe, columns))


# ---------------------------------------------------------------- All of it


def benchmark_networks(cifar10, images, labels, fitted, options):
    """Train both networks, and evaluate the Wide ResNet."""
    rounds, quick = (1, True) if options.quick else (3, False)
    networks = [new_network("svgg") for _ in range(2)]
    benchmark_training(networks, "svgg", images, labels, fitted, rounds, steps=1 if quick else 8)
    networks = [new_network("wrn", 16 if quick else 40) for _ in range(2)]
    network = benchmark_training(networks, "wrn", images, labels, fitted, rounds, steps=3 if quick else 20)
    chosen = 100 if quick else 10_000
    benchmark_evaluation(network, cifar10.x_test[:chosen], cifar10.y_test[:chosen], fitted)


def run_all(cifar10, options):
    # ImageDataGenerator was fitted on all 50,000 training images in the tutorial, and so is ours here.
    images = np.concatenate([cifar10.x_train, cifar10.x_val])
    labels = np.concatenate([cifar10.y_train, cifar10.y_val])
    rounds, quick = (1, True) if options.quick else (3, False)

    print_head(*COMPARISON)
    if options.training:
        generator = image_data_generator(1)
        generator.fit(images[:10_000])  # how many images it is fitted on makes no difference to the speed
        fitted = {1: (generator, augment.standardiser(images[:10_000], 1))}
        benchmark_networks(cifar10, images, labels, fitted, options)
        return
    fitted = benchmark_fit(images)
    benchmark_input(images, labels, fitted, rounds, steps=20 if quick else 200)
    benchmark_pipeline(images, labels, rounds, steps=20 if quick else 300)
    if quick:
        benchmark_networks(cifar10, images, labels, fitted, options)

    print_head("error ÷ standard deviation of the exact values", "contestant", "root mean square", "largest", "target")
    benchmark_accuracy(images, cifar10.x_test, *fitted[1])
    benchmark_memory(images)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Speed, accuracy and memory beside the tutorial's ImageDataGenerator.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, a tar archive, or sample (default: fetch CIFAR-10)")
    parser.add_argument("--quick", action="store_true", help="few rounds and steps, to see that it runs")
    parser.add_argument("--training", action="store_true", help="only training and evaluating the networks")
    parser.add_argument("--batch-norm", action="store_true", help="compare two kinds of batch normalisation instead")
    parser.add_argument("--recording", action="store_true", help="only recording and saving an epoch")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    cifar10 = data.load_cifar10(options.data)
    print_machine(options.data)
    if options.batch_norm:
        rounds, steps = (1, 2) if options.quick else (5, 20)
        benchmark_batch_norm(cifar10.x_train, cifar10.y_train, rounds, steps)
    elif options.recording:
        benchmark_recording(cifar10, 1 if options.quick else 5)
    else:
        run_all(cifar10, options)


if __name__ == "__main__":
    main()
