import augment, data, train  # first: they set up Keras
import keras
from keras import layers

keras.utils.set_random_seed(0)
stack = [keras.Input(data.IMAGE_SHAPE), layers.Conv2D(24, 2), layers.Activation("gelu")]
for filters in (64, 256, 256):
    for pooling in ([layers.MaxPooling2D(2)], []):
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), *pooling]
        stack += [layers.BatchNormalization(), layers.Activation("gelu")]
network = keras.Sequential([*stack, layers.GlobalMaxPooling2D(), layers.Dense(10, activation="softmax")], name="own")

images = data.load_cifar10("sample")  # or load_cifar10() for all of it, or "mine.npz"
arrays = train.training_and_validation(images)
settings = train.RECIPES["modern", "wrn"] | {"epochs": 15}
optimizer = train.make_optimizer(settings, steps_per_epoch=len(arrays[0]) // 32 + 1)
model = train.assemble(augment.standardiser(arrays[0], scheme=4), network)
how = {"epochs": 15, "batch_size": 32, "label_smoothing": 0.1}
history, run_dir = train.compile_and_train(model, "own", *arrays, 4, optimizer, **how)
train.evaluate_performance(model, history, run_dir, images.x_test, images.y_test)
