"""Step 2 of the tutorial: image augmentation and standardisation (centring, scaling, ZCA whitening).

    python augment.py                  draw 20 augmentations of one image, and what whitening does (fetches CIFAR-10)
    python augment.py --data sample    the same with the small slice that comes with the code

It ends with the names of the figures it has drawn:

    20 augmentations by scheme 1: figures/augmented_scheme1.png
    20 augmentations by scheme 2: figures/augmented_scheme2.png
    Whitening, before and after: figures/whitening.png

Random shifts, flips, rotations, shears and zooms make a larger training set out of a small one, and force the network
to learn features that survive them. Without augmentation, the tutorial reports, the Wide ResNet memorises the training
set (100 % training accuracy) and generalises poorly. Validation and test images are never augmented, but they must be
standardised with the *training* set's statistics.

The tutorial leaves both jobs to a Keras ImageDataGenerator. Its three steps, and what they are here:

    generator = ImageDataGenerator(**settings)    SCHEMES                  define: the same keyword arguments
    generator.fit(x_train)                        standardiser(x_train)    fit: mean, deviation, whitening matrix
    generator.flow(x_train, y_train)              training_batches(…)      flow: transformed batches, epoch after epoch

Why not ImageDataGenerator itself? It is deprecated. It is slow: one image at a time in NumPy, a few hundred images per
second with whitening, where a GPU trains on thousands. And since the generator standardises, model.predict(x_test) on
plain images is wrong without a warning. Here augmentation belongs to the training data and standardisation to the
model, as its first layers, so that `evaluate` and `predict` take raw pixels. The pixels are the same:
tests/test_augment.py compares them with ImageDataGenerator's.

Shapes: B images in a batch, N in all, H = W = 32 pixels, C = 3 channels, D = H·W·C = 3072 numbers per image.
"""

import argparse

from data import CLASS_NAMES, errors_in_one_line, figure_path, load_cifar10  # first: it sets up Keras

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

# ---------------------------------------------------------------- Define: the augmentation schemes
#
# A scheme is a dict of ImageDataGenerator's own keyword arguments. rotation_range and shear_range are in degrees. A
# shift range below 1 is a fraction of the image's side; a float from 1 on is in pixels; and an int k means whole pixels
# from −(k−1) to k−1. Add a scheme of your own here, and `python train.py wrn --scheme NAME` trains with it.

SCHEMES = {
    # The tutorial's first choice: large shifts and flips. 0.25 is ±8 pixels; the paper it quotes shifts by ±4.
    1: {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
    # Smaller shifts, but rotations, shears and zooms too. (The shear is in degrees: 0.2 is next to nothing.) The
    # tutorial saw a wider gap between training and validation accuracy than with scheme 1.
    2: {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.1,
        "height_shift_range": 0.1,
        "rotation_range": 15,
        "shear_range": 0.2,
        "zoom_range": 0.2,
        "fill_mode": "nearest",
        "horizontal_flip": True,
    },
    # Scheme 1 with mean and standard deviation in place of whitening, which is cheaper and does as well or better.
    3: {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
    # Scheme 3 with the paper's shift: whole pixels, at most 4, which is in effect a random crop from a padded image.
    # Whole pixels keep the image sharp: a shift by half a pixel averages neighbours.
    4: {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 5,
        "height_shift_range": 5,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
}

RANGES = ("width_shift_range", "height_shift_range", "rotation_range", "shear_range", "zoom_range")
SWITCHES = ("featurewise_center", "featurewise_std_normalization", "zca_whitening", "horizontal_flip")
KEYWORDS = (*RANGES, *SWITCHES, "zca_epsilon", "fill_mode")


def scheme_settings(scheme):
    """Return the dict of keyword arguments for `scheme`: a key of SCHEMES, or such a dict itself.

    Raises ValueError for an unknown key, and for anything in the dict that would have no effect here.
    """
    if not isinstance(scheme, dict) and scheme not in list(SCHEMES):
        raise ValueError(f"scheme {scheme!r} does not exist; there are {', '.join(map(str, SCHEMES))}")
    settings = scheme if isinstance(scheme, dict) else SCHEMES[scheme]
    if unknown := [name for name in settings if name not in KEYWORDS]:
        raise ValueError(f"a scheme cannot have {', '.join(unknown)}; it may have {', '.join(KEYWORDS)}")
    for name in (*RANGES, "zca_epsilon"):
        if not isinstance(settings.get(name, 0), int | float) or isinstance(settings.get(name), bool):
            raise ValueError(f"{name} must be a single number, not {settings[name]!r}")
    for name in SWITCHES:
        if not isinstance(settings.get(name, False), bool):
            raise ValueError(f"{name} must be True or False, not {settings[name]!r}")
    if settings.get("fill_mode", "nearest") not in ("reflect", "nearest"):
        raise ValueError(f"fill_mode must be 'reflect' or 'nearest', not {settings['fill_mode']!r}")
    return settings


# ---------------------------------------------------------------- One transformation of one image
#
# Rotation, shift, shear, zoom and flip are each a 3×3 matrix on coordinates (x, y, 1), x to the right and y downwards.
# Multiplied together they are one matrix, and the image needs resampling, which blurs, only once. A matrix says for
# each pixel of the output where in the input to look.


def affine_matrices(theta, tx, ty, shear, zx, zy, flip_horizontal, size):
    """Return the output-to-input matrices of a batch of transformations: float32 (B, 3, 3).

    Each argument but the last has shape (B,), with ImageDataGenerator's names and units: `theta` and `shear` in
    degrees, `tx` and `ty` shifts in pixels, `zx` and `zy` zoom factors (above 1: the image looks smaller),
    `flip_horizontal` true or false. `size` is the side of the square images in pixels.
    """
    theta, tx, ty, shear, zx, zy, flip = (
        tf.cast(value, tf.float64) for value in (theta, tx, ty, shear, zx, zy, flip_horizontal)
    )
    theta, shear = theta * np.pi / 180, shear * np.pi / 180
    zero, one = tf.zeros_like(theta), tf.ones_like(theta)

    def matrices(*rows):  # two rows of three arrays (B,) -> (B, 3, 3)
        return tf.stack([tf.stack(row, axis=-1) for row in (*rows, (zero, zero, one))], axis=1)

    centre = (size / 2 - 0.5) * one
    origin_to_centre = matrices((one, zero, centre), (zero, one, centre))
    centre_to_origin = matrices((one, zero, -centre), (zero, one, -centre))
    rotation = matrices((tf.cos(theta), -tf.sin(theta), zero), (tf.sin(theta), tf.cos(theta), zero))
    translation = matrices((one, zero, tx), (zero, one, ty))
    shearing = matrices((one, -tf.sin(shear), zero), (zero, tf.cos(shear), zero))
    zooming = matrices((zx, zero, zero), (zero, zy, zero))
    mirroring = matrices((1 - 2 * flip, zero, (size - 1) * flip), (zero, one, zero))  # x -> size − 1 − x where flipped
    # Read it from right to left, from a pixel of the output to where it comes from: undo the flip, make the centre
    # the origin, zoom, shear, shift, rotate, and put the origin back into the corner.
    matrix = origin_to_centre @ rotation @ translation @ shearing @ zooming @ centre_to_origin @ mirroring
    return tf.cast(matrix, tf.float32)  # rounded once, at the end: a pixel is off by at most 0.002 of 255


def warp(images, matrices, fill_mode):
    """Resample each image by its own matrix, with bilinear interpolation: (B, H, W, C) -> float32 (B, H, W, C).

    matrices:  (B, 3, 3) from affine_matrices.
    fill_mode: what lies beyond the edges: "reflect" (d c b a | a b c d | d c b a) or "nearest" (a a a a | a b c d).
    """
    images = tf.cast(images, tf.float32)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.reshape(matrices, [-1, 9])[:, :8],  # the ninth number of such a matrix is always 1
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode.upper(),
    )


# ---------------------------------------------------------------- Random transformations of a batch


def draw_transforms(count, scheme, size, seed):
    """Draw `count` transformations as `scheme` says: a dict of affine_matrices' arguments, each of shape (count,).

    The distributions are ImageDataGenerator's. size: the side of the images in pixels; seed: two whole numbers, int64
    (2,). The draws depend on the arguments only: TensorFlow's "stateless" functions keep no generator whose state moves
    on from call to call, so the same seed gives the same transformations.
    """
    settings = scheme_settings(scheme)
    seeds = iter(tf.unstack(tf.random.split(seed, 9), num=9))  # at most 9 draws below, each with a seed of its own

    def uniform(low, high):
        return tf.random.stateless_uniform([count], next(seeds), low, high)

    def sign():
        return tf.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)

    def shift(limit):  # in pixels
        if isinstance(limit, int):  # 0 … limit − 1 times ±1, so 0 is twice as likely as any other, as in Keras
            return tf.floor(uniform(0.0, float(max(limit, 1)))) * sign()
        limit = limit * size if limit < 1 else limit
        return uniform(-limit, limit)

    angle, shear, zoom = (float(settings.get(key, 0)) for key in ("rotation_range", "shear_range", "zoom_range"))
    return {
        "theta": uniform(-angle, angle),
        # ImageDataGenerator has these two crossed: height_shift_range shifts in x. Kept, so that the pixels agree.
        "tx": shift(settings.get("height_shift_range", 0)),
        "ty": shift(settings.get("width_shift_range", 0)),
        "shear": uniform(-shear, shear),
        "zx": uniform(1 - zoom, 1 + zoom),
        "zy": uniform(1 - zoom, 1 + zoom),
        "flip_horizontal": (uniform(0.0, 1.0) < 0.5) & settings.get("horizontal_flip", False),
    }


def random_transform(images, scheme, seed):
    """Return `images` (B, H, W, C), H = W, each transformed at random as `scheme` says: float32, still 0…255.

    Every image gets a transformation of its own. `seed`: an int, or two whole numbers as int64 (2,).
    Raises ValueError for an unknown scheme or images that are not square.
    """
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    if height != width:
        raise ValueError(f"the transformations are for square images, not {height}×{width}")
    seed = tf.constant([seed, 0], tf.int64) if isinstance(seed, int) else seed
    matrices = affine_matrices(**draw_transforms(count, scheme, height, seed), size=height)
    return warp(images, matrices, scheme_settings(scheme).get("fill_mode", "nearest"))


# ---------------------------------------------------------------- Flow: the training batches


def training_batches(images, labels, scheme, batch_size, seed, first_epoch=0):
    """Return an endless tf.data.Dataset of training batches, epoch after epoch.

    images: uint8 (N, H, W, C); labels: whole numbers (N,); scheme: a key of SCHEMES or a dict; seed: an int.
    Each element is (float32 (B, H, W, C) of 0…255, transformed; float32 one-hot (B, 10)). An epoch has every image
    once, in ceil(N / batch_size) batches; the last one is smaller if batch_size does not divide N, as in the tutorial.
    Raises ValueError for an unknown scheme.

    The order of the images and their transformations in step s of epoch e depend on (seed, e, s) and on nothing that
    came before: training that resumes at `first_epoch` sees exactly what it would have seen uninterrupted.
    """
    scheme_settings(scheme)  # complain now, not when the first batch is drawn
    count, run_seed = len(images), tf.constant(seed, tf.int64)
    with tf.device("CPU:0"):  # keep the data set in main memory, once, as bytes
        images, labels = tf.constant(images), tf.constant(labels, tf.int32)

    def steps_of(epoch):  # -> the steps of an epoch, each as (epoch, step, indices of its images)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed=tf.stack([run_seed, epoch]))
        steps = tf.data.Dataset.from_tensor_slices(order).batch(batch_size).enumerate()
        return steps.map(lambda step, indices: (epoch, step, indices))

    def make_batch(epoch, step, indices):
        # fold_in makes a new seed from a seed and a number.
        step_seed = tf.random.fold_in(tf.random.fold_in(tf.stack([run_seed, 0]), epoch), step)
        batch = random_transform(tf.gather(images, indices), scheme, step_seed)
        return batch, tf.one_hot(tf.gather(labels, indices), len(CLASS_NAMES))

    # The steps of all epochs form one stream, so the transformations of the next epoch start while the last steps of
    # this one are trained. AUTOTUNE: transform on all processor cores, as many batches ahead as is worth it.
    steps = tf.data.Dataset.counter(first_epoch).flat_map(steps_of)
    return steps.map(make_batch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


# ---------------------------------------------------------------- Fit: standardisation and ZCA whitening
#
# Neighbouring pixels repeat each other. ZCA whitening is the linear map that removes all correlation between the pixels
# of the training images and gives every direction the variance 1; among all maps that do this, it changes the images
# least (it is PCA whitening, rotated back), and edges stand out. Its price is a matrix of 3072×3072 numbers, 38 MB. The
# WRN paper used it for some results; its authors later found mean and standard deviation per channel to do better.


def channel_statistics(images):
    """Return the mean and standard deviation of each channel of uint8 `images` (N, H, W, C): two float64 (C,).

    A byte has 256 values; counting how often each occurs gives both without a copy of the images, and without the
    rounding of summing 50 million float32 numbers.
    """
    values = np.arange(256.0)
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    shares = np.stack(counts) / counts[0].sum()  # (C, 256)
    mean = shares @ values
    return mean, np.sqrt(((values - mean[:, None]) ** 2 * shares).sum(axis=1))


def zca_matrix(images, mean, epsilon):
    """Return the ZCA whitening matrix, float64 (D, D), of uint8 `images` (N, H, W, C); `mean`: (C,), per channel.

    In plain NumPy, with X the images minus `mean`, (N, D), and ε = epsilon / sqrt(N) as in ImageDataGenerator:

        covariance = X.T @ X / N
        variances, directions = np.linalg.eigh(covariance)
        matrix = directions @ np.diag(1 / (np.sqrt(variances) + ε)) @ directions.T

    The code below does this with two precautions. It sums the products exactly. And it leaves out directions in which
    the images do not vary; these exist if there are fewer images than numbers per image, or if pixels are constant.
    Their computed variance is rounding error, and dividing by its root would ruin every image that is not in `images`.
    (Strictly, this is not the covariance: each pixel is centred by the mean of its channel, not by its own.)
    """
    rows = images.reshape(len(images), -1)  # (N, H, W, C) -> (N, D)
    count, size = rows.shape
    products, totals = np.zeros((size, size)), np.zeros(size)
    # Sums of 50,000 products would lose digits in float32, and take four times as long in float64. But pixels are whole
    # numbers: shifted to −128…127, the sum of 1,024 products is at most 2^24 and so is exact in float32.
    for start in range(0, count, 1024):
        block = rows[start : start + 1024].astype(np.float32) - 128
        products += block.T @ block
        totals += block.sum(axis=0, dtype=np.float64)
    # For two pixels p and q, with a and b the means of their channels (all minus 128): the mean of (p − a)(q − b) is
    # the mean of pq, minus b·(mean of p), minus a·(mean of q), plus ab.
    offset = np.tile(mean - 128, size // len(mean))  # (C,) -> (D,)
    cross = np.outer(totals / count, offset)
    second_moments = products / count - cross - cross.T + np.outer(offset, offset)

    variances, directions = np.linalg.eigh(second_moments)
    # Treat variances below the rounding error of these sums as zero. (The summed terms reach 128².)
    varying = variances > max(variances.max(), 128**2) * size * np.finfo(float).eps
    directions, deviations = directions[:, varying], np.sqrt(variances[varying])
    return (directions / (deviations + epsilon / np.sqrt(count))) @ directions.T


def standardiser(images, scheme):
    """Return frozen Keras layers, fitted on `images`, that centre, scale or whiten as `scheme` says: keras.Sequential.

    images: uint8 (N, H, W, C) of any size, the training images. The layers take raw pixels (B, H, W, C), 0…255, and
    return float32 of the same shape. They stand at the front of a model, hold nothing to train, need no code of ours
    when the model is loaded elsewhere, and stay float32 when the rest computes in float16.
    Raises ValueError for an unknown scheme or images that are not uint8.
    """
    settings = scheme_settings(scheme)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"standardiser needs uint8 images (N, H, W, C), got {images.dtype} {images.shape}."
            " Floats of 0…1 become bytes with (255 * images).round().astype('uint8')"
        )
    whitens = settings.get("zca_whitening")
    scales = settings.get("featurewise_std_normalization") and not whitens  # one or the other, as in ImageDataGenerator
    mean, std = channel_statistics(images)
    std = std + 1e-6 if scales else np.ones_like(std)
    if not (settings.get("featurewise_center") or scales or whitens):  # scaling and whitening imply centring
        mean = np.zeros_like(mean)

    # Normalization computes (x − mean) / sqrt(variance). Full-size arrays of the channels' means and variances give the
    # same numbers in a third of the time: TensorFlow broadcasts vectors of length three slowly.
    mean_image, variance_image = (np.broadcast_to(values, images.shape[1:]) for values in (mean, std**2))
    normalise = layers.Normalization((1, 2, 3), mean=mean_image, variance=variance_image, dtype="float32")
    stack = [keras.Input(images.shape[1:]), normalise]
    if whitens:  # (B, H, W, C) -> (B, D) -> (B, D) -> (B, H, W, C)
        matrix = zca_matrix(images, mean, settings.get("zca_epsilon", 1e-6))
        whiten = layers.Dense(len(matrix), use_bias=False, name="zca_whitening", dtype="float32")
        stack += [layers.Flatten(dtype="float32"), whiten, layers.Reshape(images.shape[1:], dtype="float32")]
    model = keras.Sequential(stack, name="standardiser")
    if whitens:
        whiten.set_weights([matrix])
    model.trainable = False
    return model


# ---------------------------------------------------------------- Look at the augmented images


def plot_grid(images, path, columns):
    """Write a figure of `images`, in rows of `columns`, to `path`."""
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(images) / columns))
    for axis, image in zip(figure.subplots(len(images) // columns, columns).ravel(), images, strict=True):
        axis.imshow(image)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)


def plot_augmentations(image, scheme, path, seed=0):
    """Write a figure of 20 random transformations of one uint8 image (H, W, C) to `path`, without whitening."""
    augmented = random_transform(np.stack([image] * 20), scheme, seed).numpy()
    plot_grid(np.clip(np.rint(augmented), 0, 255).astype(np.uint8), path, columns=5)


def plot_whitening(images, whitener, path):
    """Write a figure of uint8 `images` (N, H, W, C), above, and what `whitener` makes of each, below, to `path`."""
    whitened = np.asarray(whitener(images))
    low, high = (function(whitened, axis=(1, 2, 3), keepdims=True) for function in (np.min, np.max))
    plot_grid([*(images / 255), *((whitened - low) / (high - low))], path, columns=len(images))


def main(arguments=None):
    """Draw the augmented and the whitened images: the command line of this step."""
    parser = argparse.ArgumentParser(description="Step 2: augmented and whitened images.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, an archive, an .npz, or sample (default: download)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="folder for the figures (default: figures)")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        path = figure_path("whitening.png", options.out)
        x_train = load_cifar10(options.data).x_train
        for scheme in (1, 2):
            figure = path.with_name(f"augmented_scheme{scheme}.png")
            plot_augmentations(x_train[min(4, len(x_train) - 1)], scheme, figure)
            print(f"20 augmentations by scheme {scheme}: {figure}")
        print("Computing the whitening matrix", flush=True)
        plot_whitening(x_train[:8], standardiser(x_train, 1), path)
        print(f"Whitening, before and after: {path}")


if __name__ == "__main__":
    main()
