"""TFRecord files, one per user or in shards with an index, written and read without TensorFlow.

What enters is photos with their labels. What leaves is framed, checksummed `tf.train.Example`s, by user.
"""

__all__ = ["example", "frames", "layout", "reader", "writer"]
