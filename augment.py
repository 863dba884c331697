"""Step 2 of 5: image augmentation and standardisation (centring, scaling, ZCA whitening).

    python augment.py                  draw augmented and whitened images in figures/ (fetches CIFAR-10)
    python augment.py --data sample    the same with the small slice that comes with the code

Random shifts, flips, rotations, shears and zooms make a larger training set out of a small one, and force the network
to learn features that survive them. Without augmentation, the tutorial reports, the Wide ResNet memorises the training
set (100 % training accuracy) and generalises poorly. Validation and test images are never augmented, but they must be
standardised with the *training* set's statistics.

The tutorial leaves both jobs to a Keras ImageDataGenerator. Its three steps, and what they are here:

    generator = ImageDataGenerator(**settings)    SCHEMES                  define: the same keyword arguments
    generator.fit(x_train)                        standardiser(…)          fit: mean, deviation, whitening matrix
    generator.flow(x_train, y_train)              training_batches(…)      flow: transformed batches, epoch after epoch

Why not ImageDataGenerator itself? It is deprecated. It is slow: it changes one image at a time, in SciPy
(results/README.md has the times). And since the generator standardises, model.predict(x_test) on plain images is wrong
without a warning. Here augmentation belongs to the training data and standardisation to the model, as its first layers,
so that `evaluate` and `predict` take raw pixels.

tests/test_augment.py compares the pixels with ImageDataGenerator's: they are the same up to rounding. Two things are
different on purpose, since dividing by almost nothing ruins new images: a channel that never changes is not scaled,
and whitening leaves out what does not vary (see zca_matrix).

Shapes: B images in a batch, N in all, H = W = 32 pixels, C = 3 channels, D = H·W·C = 3072 numbers per image.
"""

# data.py comes first: it sets up Keras. (`# isort: split` keeps it there.)
from data import CLASS_NAMES, Parser, UserError, check_data, check_images, errors_in_one_line, figure_path, load_cifar10

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

# ---------------------------------------------------------------- Define: the augmentation schemes
#
# A scheme is a dict: eleven keyword arguments of ImageDataGenerator, and one of our own, are possible:
#
#   width_shift_range, height_shift_range    the largest shift; as in Keras, width is up or down, height left or right.
#                                            0.25: a quarter of the side; 8.0: pixels; the int 5: whole pixels, up to 4
#   rotation_range, shear_range              the largest angle, in degrees
#   zoom_range                               0.2: factors from 0.8 to 1.2, in width and height independently
#   horizontal_flip                          True: half of the images, drawn at random, are mirrored
#   fill_mode                                what fills the gaps at the edges: "reflect" or "nearest", see warp
#   cutout                                   our own: a grey square, its side this many pixels, at a random place
#   featurewise_center                       True: subtract the mean
#   featurewise_std_normalization            True: and divide by the standard deviation
#   zca_whitening                            True: whiten (see "Fit")
#   zca_epsilon                              a small number that keeps whitening from dividing by zero, see zca_matrix
#
# Add a scheme of your own, with a number or a word as its key, and `python train.py wrn --scheme KEY` trains with it.

SCHEMES = {
    # The tutorial's first choice: whitening, flips, large shifts. 0.25 is ±8 pixels; the paper it quotes shifts by ±4.
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
    # tutorial saw a wider gap between training and test accuracy than with scheme 1.
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
    # Scheme 1 with each channel's mean and standard deviation in place of whitening: much less to compute. The tutorial
    # found it about as good.
    3: {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
}
# Scheme 3 with shifts as in the paper: by whole pixels, at most 4 (it pads by 4 mirrored pixels, then crops 32×32 at
# random). Whole pixels keep the image sharp, while a shift by half a pixel averages neighbours.
SCHEMES[4] = SCHEMES[3] | {"width_shift_range": 5, "height_shift_range": 5}
# Scheme 4, a different part of each image hidden in each epoch: harder to memorise (https://arxiv.org/abs/1708.04552).
SCHEMES[5] = SCHEMES[4] | {"cutout": 8}


# ---------------------------------------------------------------- Define: one transformation of one image
#
# Rotation, shift, shear, zoom and flip are each a 3×3 matrix on coordinates (x, y, 1), x to the right and y downwards;
# the 1 lets a matrix add a shift. Their product is one matrix, so that the image is resampled only once: resampling
# blurs. A matrix says for each pixel of the output where in the input to look.


def affine_matrices(theta, tx, ty, shear, zx, zy, flip_horizontal, size):
    """Return the output-to-input matrices of a batch of transformations: float32 (B, 3, 3).

    Each argument but the last has shape (B,), with ImageDataGenerator's names and units: `theta` and `shear` in
    degrees, `tx` and `ty` shifts in pixels, `zx` and `zy` zoom factors (above 1: the image looks smaller),
    `flip_horizontal` true or false. `size` is the side of the square images in pixels.
    """
    # In float64, so that rounding errors do not add up in the product of seven matrices.
    values = (theta, tx, ty, shear, zx, zy, flip_horizontal)
    theta, tx, ty, shear, zx, zy, flip = (tf.cast(value, tf.float64) for value in values)
    theta, shear = theta * np.pi / 180, shear * np.pi / 180  # degrees -> radians
    zero, one = tf.zeros_like(theta), tf.ones_like(theta)

    def matrix_of(first, second):  # two rows, each of three arrays (B,); the third row is always 0, 0, 1 -> (B, 3, 3)
        return tf.stack([tf.stack(row, axis=-1) for row in (first, second, (zero, zero, one))], axis=1)

    centre = (size / 2 - 0.5) * one  # the middle of the pixels 0 … size − 1
    origin_to_centre = matrix_of((one, zero, centre), (zero, one, centre))
    centre_to_origin = matrix_of((one, zero, -centre), (zero, one, -centre))
    # A positive angle turns the image counterclockwise; positive shifts move it to the left and up.
    rotation = matrix_of((tf.cos(theta), -tf.sin(theta), zero), (tf.sin(theta), tf.cos(theta), zero))
    translation = matrix_of((one, zero, tx), (zero, one, ty))
    # Keras's own shear: the x axis stays, and the y axis turns by the angle. (The usual shear leaves y as it is; this
    # one multiplies it by cos(shear).)
    shearing = matrix_of((one, -tf.sin(shear), zero), (zero, tf.cos(shear), zero))
    zooming = matrix_of((zx, zero, zero), (zero, zy, zero))
    mirroring = matrix_of((1 - 2 * flip, zero, (size - 1) * flip), (zero, one, zero))  # x -> size − 1 − x where flipped
    # Read it from right to left, from a pixel of the output to where it comes from: undo the flip, make the centre
    # the origin, zoom, shear, shift, rotate, and put the origin back into the corner.
    matrix = origin_to_centre @ rotation @ translation @ shearing @ zooming @ centre_to_origin @ mirroring
    return tf.cast(matrix, tf.float32)  # rounded once, at the end: it changes a pixel by at most 0.002 of 255


def warp(images, matrices, fill_mode):
    """Resample each image by its own matrix, with bilinear interpolation: (B, H, W, C) -> float32 (B, H, W, C).

    matrices:  (B, 3, 3) from affine_matrices.
    fill_mode: what lies beyond the edges: "reflect" (d c b a | a b c d | d c b a) or "nearest" (a a a a | a b c d).
    """
    numbers = tf.reshape(matrices, [-1, 9])[:, :8]  # Keras takes eight; the ninth of such a matrix is always 1
    return keras.ops.image.affine_transform(tf.cast(images, tf.float32), numbers, "bilinear", fill_mode)


# ---------------------------------------------------------------- Define: random transformations of a batch


def draw_transforms(count, scheme, size, seed):
    """Draw `count` transformations as `scheme` says: a dict of affine_matrices' arguments, each of shape (count,).

    The distributions are ImageDataGenerator's. size: the side of the images in pixels; seed: two whole numbers, int64
    (2,). The draws depend on the arguments only: TensorFlow's "stateless" functions keep no generator whose state moves
    on from call to call, so the same seed gives the same transformations.
    """
    settings = scheme_settings(scheme)
    # Each draw needs a seed of its own. split makes nine from one, (2,) -> (9, 2); unstack makes a list of them. Seven
    # are for the arguments, and two for the signs of shifts by whole pixels.
    seeds = tf.unstack(tf.random.split(seed, 9), num=9)

    def uniform(low, high):  # takes the first seed off the list
        return tf.random.stateless_uniform([count], seeds.pop(0), low, high)

    def shift(limit):  # in pixels
        if isinstance(limit, int):  # 0 … limit − 1, times ±1. So 0 is twice as likely as any other, as in Keras
            return tf.floor(uniform(0.0, float(max(limit, 1)))) * tf.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
        limit = limit * size if limit < 1 else limit
        return uniform(-limit, limit)

    angle, shear, zoom = (float(settings.get(key, 0)) for key in ("rotation_range", "shear_range", "zoom_range"))
    return {
        "theta": uniform(-angle, angle),
        # Today's ImageDataGenerator swaps these two: height_shift_range shifts in x. Kept, so that pixels agree.
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
    Raises data.UserError for an unknown scheme or images that are not square.
    """
    count, size, settings = tf.shape(images)[0], side_of(images), scheme_settings(scheme)
    seed = tf.constant([seed, 0], tf.int64) if isinstance(seed, int) else seed
    matrices = affine_matrices(**draw_transforms(count, scheme, size, seed), size=size)
    images = warp(images, matrices, settings.get("fill_mode", "nearest"))
    if side := settings.get("cutout"):  # corners: first row and column of a square that lies inside; fold_in: new seed
        corners = tf.random.stateless_uniform([2, count, 1], tf.random.fold_in(seed, 9), 0, size - side + 1, tf.int32)
        rows, columns = tf.unstack((tf.range(size) >= corners) & (tf.range(size) < corners + side))  # masks (B, size)
        images = tf.where(rows[:, :, None, None] & columns[:, None, :, None], 127.5, images)  # grey, about the mean
    return images


# ---------------------------------------------------------------- Fit: standardisation and ZCA whitening
#
# Neighbouring pixels repeat each other. Whitening multiplies an image by a matrix, chosen so that over the training
# images no two numbers of the result are correlated, and each has the variance 1. Many matrices do that. The one of
# ZCA (zero-phase component analysis) changes the images least: one still sees what is in them, and edges stand out. It
# takes an image apart into the directions in which the training images vary (found by principal component analysis,
# PCA), scales the part in each direction to the variance 1, and puts the parts together again.
# Its price is a matrix of 3072×3072 numbers, 38 MB. The WRN paper used it for some results. Later its authors wrote in
# their repository that mean and standard deviation do better (results/README.md).


def channel_statistics(images):
    """Return the mean and standard deviation of each channel of uint8 `images` (N, H, W, C): two float64 (C,).

    A byte has 256 values. bincount counts how often each occurs, and the counts give both numbers without a float copy
    of the images, and without the rounding of summing 50 million float32 numbers.
    """
    values = np.arange(256.0)
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    shares = np.stack(counts) / counts[0].sum()  # (C, 256)
    mean = shares @ values
    return mean, np.sqrt(((values - mean[:, None]) ** 2 * shares).sum(axis=1))


def zca_matrix(images, mean, epsilon):
    """Return the ZCA whitening matrix, float64 (D, D), of uint8 `images` (N, H, W, C); `mean`: (C,), per channel.

    In three lines of NumPy, with X the images minus `mean`, (N, D):

        variances, directions = np.linalg.eigh(X.T @ X / N)
        deviations = np.sqrt(variances)
        matrix = directions @ np.diag(1 / (deviations + epsilon / np.sqrt(N))) @ directions.T

    This is what today's ImageDataGenerator computes. (In 2018 it was 1 / sqrt(variances + epsilon). And X.T @ X / N is
    not quite the covariance: each pixel is centred by the mean of its channel, not its own.) One thing is different:
    directions in which the images do not vary are left out. They exist if there are fewer images than numbers per
    image, or if pixels repeat each other exactly. Their computed variance is rounding error, and dividing by its root
    would ruin every image that is not in `images`. The limit is modelled on np.linalg.matrix_rank.
    """
    rows = images.reshape(len(images), -1)  # (N, H, W, C) -> (N, D)
    count, size = rows.shape
    covariance = np.zeros((size, size))
    for start in range(0, count, 5000):  # in parts: all of X, as float64, takes 1.2 GB
        part = rows[start : start + 5000] - np.tile(mean, size // len(mean))
        covariance += part.T @ part / count
    variances, directions = np.linalg.eigh(covariance)
    varying = variances > variances.max() * max(count, size) * np.finfo(float).eps  # above the rounding error
    directions, deviations = directions[:, varying], np.sqrt(variances[varying])
    return (directions / (deviations + epsilon / np.sqrt(count))) @ directions.T  # `/` divides column by column


def standardiser(images, scheme):
    """Return frozen Keras layers, fitted on `images`, that centre, scale or whiten as `scheme` says: keras.Sequential.

    images: uint8 (N, H, W, C) of any size, the training images. The layers take raw pixels (B, H, W, C), 0…255, and
    return float32 of the same shape. They stand at the front of a model, hold nothing to train, need no code of ours
    when the model is loaded elsewhere, and stay float32 when the rest computes in float16.
    Raises data.UserError for an unknown scheme or unusable images.
    """
    images, settings = check_images(images, shape=None), scheme_settings(scheme)
    whitens = settings.get("zca_whitening")
    scales = settings.get("featurewise_std_normalization") and not whitens  # one or the other, as in ImageDataGenerator
    mean, std = channel_statistics(images)
    std = np.where(std > 0, std + 1e-6, 1) if scales else np.ones_like(std)  # ImageDataGenerator adds 1e-6 as well
    if not (settings.get("featurewise_center") or scales or whitens):  # scaling and whitening imply centring
        mean = np.zeros_like(mean)

    # Normalization computes (x − mean) / sqrt(variance). One mean and variance per channel would do, but one for each
    # of the H·W·C numbers (axes 1, 2 and 3) gives the same results faster.
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


# ---------------------------------------------------------------- Flow: the training batches


def training_batches(images, labels, scheme, batch_size, seed, first_epoch=0):
    """Return an endless tf.data.Dataset of training batches, epoch after epoch.

    images: uint8 (N, H, W, C), H = W; labels: whole numbers 0…9, (N,) or (N, 1); scheme: a key of SCHEMES or a dict;
    seed: an int. Each element is (float32 (B, H, W, C) of 0…255, transformed; float32 one-hot (B, 10)). An epoch has
    every image once, in ceil(N / batch_size) batches; the last one is smaller if batch_size does not divide N, as in
    the tutorial. Raises data.UserError for an unknown scheme, and for unusable images or labels.

    The order of the images and their transformations in step s of epoch e depend on (seed, e, s) and on nothing that
    came before: training that resumes at `first_epoch` sees exactly what it would have seen uninterrupted.
    """
    images, labels = check_data(images, labels, shape=None)
    scheme_settings(scheme)  # complain about the scheme and the size now, not when the first batch is made
    side_of(images)
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

    #   counter     0, 1, …                                               the epochs (here of 391 steps)
    #   flat_map    (0, 0, indices), … (0, 390, indices), (1, 0, …), …    their steps, one epoch after the other
    #   map         (images, labels), (images, labels), …                 a batch for each step, on all processor cores
    # prefetch makes batches ahead: the first of the next epoch while the network still trains on the last of this one.
    # AUTOTUNE: tf.data chooses how many to make at a time, and how many ahead.
    steps = tf.data.Dataset.counter(first_epoch).flat_map(steps_of)
    return steps.map(make_batch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


# ---------------------------------------------------------------- Look at the augmented images

ONE_BY_ONE = (
    {"width_shift_range": 0.25, "height_shift_range": 0.25, "fill_mode": "reflect"},  # blurs: parts of pixels
    {"width_shift_range": 9, "height_shift_range": 9, "fill_mode": "reflect"},  # as far, by whole pixels: sharp
    {"rotation_range": 15},
    {"zoom_range": 0.2},  # in width and height independently
    {"shear_range": 12},  # degrees. With scheme 2's 0.2 there is nothing to be seen
    {"horizontal_flip": True},
    {"cutout": 8},
)


def plot_rows(rows, path, labels, title=""):
    """Write a figure of rows of images to `path`, a label at the left of each row, a title above the first image."""
    height, width = len(rows), len(rows[0])
    figure = Figure(figsize=(1.5 * width + 2 * any(labels), 1.5 * height + 0.3 * bool(title)), layout="compressed")
    for axes, images, label in zip(figure.subplots(height, width, squeeze=False), rows, labels, strict=True):
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], frame_on=False)
    figure.axes[0].set_title(title)
    figure.savefig(path)


def with_transformed(image, scheme, count, seed=0):
    """Return uint8 (1 + count, H, W, C): one uint8 image (H, W, C), and `count` random transformations of it."""
    transformed = random_transform(np.stack([image] * count), scheme, seed).numpy()
    return np.stack([image, *np.clip(np.rint(transformed), 0, 255).astype(np.uint8)])


def plot_one_by_one(image, path):
    """Write a figure to `path`: each row shows one kind of transformation of one uint8 image (H, W, C)."""
    labels = ["\n".join(f"{keyword} = {value}" for keyword, value in scheme.items()) for scheme in ONE_BY_ONE]
    plot_rows([with_transformed(image, scheme, 7) for scheme in ONE_BY_ONE], path, labels, "original")


def plot_augmentations(image, scheme, path):
    """Write a figure to `path`: one uint8 image (H, W, C) and 20 random transformations of it, not whitened."""
    images = with_transformed(image, scheme, 20)
    plot_rows([images[:7], images[7:14], images[14:]], path, [""] * 3, "original")


def plot_whitening(images, whitener, fitted_on, path):
    """Write a figure to `path`: uint8 `images` (N, H, W, C), and in a second row what `whitener` makes of them.

    Whitened values have no limits, so those of each image are stretched to 0…1. Edges stand out. `fitted_on`: how many
    images the whitener was fitted on. If they are too few, as in the sample, noise results, and the figure says so.
    """
    whitened = np.asarray(whitener(images))
    low, high = (function(whitened, axis=(1, 2, 3), keepdims=True) for function in (np.min, np.max))
    label, size = f"whitened (each image\nstretched to 0…1)\nfitted on {fitted_on:,} images", images[0].size
    if fitted_on < size:
        label += f"\nNoise: these are fewer\nthan the {size:,} numbers\nof one image"
    plot_rows([images, (whitened - low) / (high - low)], path, ("original", label))


# ---------------------------------------------------------------- The lesson ends here. Then: checks, the command line

SWITCHES = ("featurewise_center", "featurewise_std_normalization", "zca_whitening", "horizontal_flip")
NUMBERS = ("width_shift_range", "height_shift_range", "rotation_range", "shear_range", "zoom_range", "zca_epsilon")
KEYWORDS = (*NUMBERS, *SWITCHES, "fill_mode", "cutout")


def scheme_settings(scheme):
    """Return the dict of keyword arguments for `scheme`: a key of SCHEMES, or such a dict itself.

    Raises data.UserError, a kind of ValueError, for an unknown scheme or keyword, or a value without a meaning here.
    """
    if not isinstance(scheme, dict) and scheme not in list(SCHEMES):
        raise UserError(f"scheme {scheme!r} does not exist; there are {', '.join(map(str, SCHEMES))}")
    settings = scheme if isinstance(scheme, dict) else SCHEMES[scheme]
    for name, value in settings.items():
        if name not in KEYWORDS:
            raise UserError(f"a scheme cannot have {name}; it may have {', '.join(KEYWORDS)}")
        if name == "fill_mode" and value not in ("reflect", "nearest"):
            raise UserError(f"fill_mode must be 'reflect' or 'nearest', not {value!r}")
        if name == "cutout" and (type(value) is not int or not 1 <= value <= 32):
            raise UserError(f"cutout must be a whole number of pixels from 1 to 32, not {value!r}")
        if name in SWITCHES and not isinstance(value, bool):
            raise UserError(f"{name} must be True or False, not {value!r}")
        if name in NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0):
            raise UserError(f"{name} must be a single number, 0 or more, not {value!r}")
    return settings


def side_of(images):
    """Return the side in pixels of square images (N, H, W, C). Raises data.UserError for others."""
    height, width = images.shape[1:3]
    if height != width:
        raise UserError(f"the transformations are for square images, not {height} by {width} pixels")
    return height


def main(arguments=None):
    """Draw the augmented and the whitened images: the command line of this step."""
    parser = Parser(description="Step 2: augmented and whitened images.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, an archive, an .npz, or sample (default: download)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="folder for the figures (default: figures)")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        path = figure_path("augmentations.png", options.out)
        x_train = load_cifar10(options.data).x_train
        image = x_train[:2][-1]  # the second, if there are two
        plot_one_by_one(image, path)
        print(f"One kind of transformation per row: {path}")
        for scheme in (1, 2, 4):
            path = path.with_name(f"augmented_scheme{scheme}.png")
            plot_augmentations(image, scheme, path)
            print(f"20 augmentations by scheme {scheme}: {path}")
        path = path.with_name("whitening.png")
        plot_whitening(x_train[:8], standardiser(x_train, 1), len(x_train), path)
        print(f"Whitening, before and after: {path}")


if __name__ == "__main__":
    main()
