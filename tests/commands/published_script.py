"""A script as somebody wrote it for ml-flair, from its README and signatures; test_published_script.py starts it.

What calls TensorFlow Federated is in the words of TFF 0.87, everything else as it was.
"""

import functools
import os
import sys

import tensorflow as tf
import tensorflow_federated as tff

from benchmark import flair_data, flair_metrics, flair_model

tfrecords_dir, pretrained_path, saved_path, output_dir = sys.argv[1:]
image_shape = (256, 256, 3)

# Data
label_to_index = flair_data.load_label_to_index(
    os.path.join(tfrecords_dir, "label_to_index.json"), use_fine_grained_labels=False
)
num_labels = len(label_to_index)
train_fed_data, val_fed_data, test_fed_data = flair_data.load_tfrecords_data(
    tfrecords_dir, image_shape=image_shape, num_labels=num_labels, use_fine_grained_labels=False
)
print("training users:", len(train_fed_data.client_ids))


def preprocess(data, is_training):
    return data.shuffle(10000).take(8).batch(4) if is_training else data.batch(8)


train_data = preprocess(train_fed_data.create_tf_dataset_from_all_clients(), is_training=True)
val_data = preprocess(val_fed_data.create_tf_dataset_from_all_clients(), is_training=False)
test_data = preprocess(test_fed_data.create_tf_dataset_from_all_clients(), is_training=False)

# Central training, from pretrained weights
strategy = tf.distribute.MirroredStrategy()
with strategy.scope():
    model = flair_model.resnet18(input_shape=image_shape, num_classes=num_labels, pretrained=True)
    model.load_weights(pretrained_path, skip_mismatch=True, by_name=True)
    model.compile(
        loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=flair_metrics.metrics_builder(num_labels),
        optimizer=tf.keras.optimizers.Adam(1e-4, clipnorm=10.0),
    )
checkpoint_path = os.path.join(output_dir, f"resnet18_central_{num_labels}labels.h5")
checkpoint = tf.keras.callbacks.ModelCheckpoint(
    checkpoint_path, save_weights_only=True, monitor="val_loss", mode="min", save_best_only=True
)
model.fit(train_data, epochs=1, validation_data=val_data, callbacks=[checkpoint], verbose=2)
model.load_weights(checkpoint_path, by_name=True)
metrics = flair_metrics.flatten_metrics(model.evaluate(test_data, return_dict=True, verbose=0))
flair_metrics.print_metrics({"central test " + name: value for name, value in metrics.items()})

# Federated training
model_builder = functools.partial(
    flair_model.resnet18, input_shape=image_shape, num_classes=num_labels, pretrained=False
)
metrics_builder = functools.partial(flair_metrics.metrics_builder, num_labels=num_labels)
train_fed_data = train_fed_data.preprocess(functools.partial(preprocess, is_training=True))


def model_fn():
    return tff.learning.models.from_keras_model(
        model_builder(),
        loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
        input_spec=train_fed_data.element_type_structure,
        metrics=metrics_builder(),
    )


training_process = tff.simulation.compose_dataset_computation_with_learning_process(
    train_fed_data.dataset_computation,
    tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
        server_optimizer_fn=tff.learning.optimizers.build_adam(0.1, epsilon=0.01),
    ),
)
sample_clients = tff.simulation.build_uniform_sampling_fn(train_fed_data.client_ids, replace=False, random_seed=0)
state = training_process.initialize()
state, round_metrics = training_process.next(state, list(sample_clients(0, size=2)))
flair_metrics.print_metrics(flair_metrics.flatten_metrics(round_metrics["client_work"]), iteration=0)

eval_model = model_builder()
eval_model.compile(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True), metrics=metrics_builder())
training_process.get_model_weights(state).assign_weights_to(eval_model)
metrics = flair_metrics.flatten_metrics(eval_model.evaluate(val_data, return_dict=True, verbose=0))
flair_metrics.print_metrics({"federated val " + name: value for name, value in metrics.items()})

# What federated_main has saved: its weights in the model that takes whole photos, and all of it as it is
eval_model.load_weights(saved_path, by_name=True)
metrics = flair_metrics.flatten_metrics(eval_model.evaluate(val_data, return_dict=True, verbose=0))
flair_metrics.print_metrics({"weights val " + name: value for name, value in metrics.items()})

saved_model = tf.keras.models.load_model(
    saved_path, custom_objects={"FrozenBatchNormalization": flair_model.FrozenBatchNormalization}
)
saved_model.compile(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True), metrics=metrics_builder())
metrics = flair_metrics.flatten_metrics(saved_model.evaluate(val_data, return_dict=True, verbose=0))
flair_metrics.print_metrics({"model val " + name: value for name, value in metrics.items()})
