"""ViT-B/16, another example of a network for --model=MODULE:FUNCTION.

Dosovitskiy et al., 2021 (https://arxiv.org/abs/2010.11929). Layers are called as in timm, the PyTorch package, so that
the weights of its vit_base_patch16_224 load by name: --backbone_weights=model.safetensors.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

EPSILON = 1e-6
_layers = tf.keras.layers


def vit_b16(input_shape: tuple[int, int, int]) -> tf.keras.Model:
    """Pixels float32 `[b, h, w, 3]` (0 to 255) to features `[b, 768]`; published for 224 x 224 pixels."""
    return vision_transformer(input_shape, patch=16, width=768, depth=12, heads=12)


def vision_transformer(
    input_shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int
) -> tf.keras.Model:
    """A ViT whose features `[b, width]` are the class token's after the last norm; height and width are in patches."""
    height, image_width, _ = input_shape
    if height % patch or image_width % patch:
        raise ValueError(f"photos of {height} x {image_width} pixels; expected multiples of {patch}")
    pixels = tf.keras.Input(input_shape, name="pixels", dtype="float32")
    x = _layers.Rescaling(1 / 127.5, -1.0, name="standardization")(pixels)
    x = _layers.Conv2D(width, patch, patch, name="patch_embed.proj")(x)
    x = _layers.Reshape((-1, width), name="patches")(x)
    x = ClassToken(name="cls_token")(x)
    x = PositionEmbedding(name="pos_embed")(x)
    for number in range(depth):
        x = _block(x, f"blocks.{number}", heads)
    x = _norm(x, "norm")
    return tf.keras.Model(pixels, FirstToken(name="first_token")(x))


@tf.keras.saving.register_keras_serializable("flair")
class ClassToken(tf.keras.layers.Layer):
    """Tokens `[b, n, d]` to `[b, n + 1, d]`, with a learned one in front."""

    def build(self, input_shape: tf.TensorShape) -> None:
        """Makes the weight `[1, 1, d]`."""
        self.cls_token_initializer = tf.keras.initializers.RandomNormal(stddev=1e-6)
        self.cls_token = self.add_weight("cls_token", (1, 1, input_shape[-1]), initializer=self.cls_token_initializer)

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        token = tf.cast(self.cls_token, tokens.dtype)
        return tf.concat([tf.tile(token, [tf.shape(tokens)[0], 1, 1]), tokens], axis=1)


@tf.keras.saving.register_keras_serializable("flair")
class PositionEmbedding(tf.keras.layers.Layer):
    """Adds a learned vector to each of the tokens `[b, n, d]`."""

    def build(self, input_shape: tf.TensorShape) -> None:
        """Makes the weight `[1, n, d]`."""
        self.pos_embed_initializer = tf.keras.initializers.TruncatedNormal(stddev=0.02)
        self.pos_embed = self.add_weight("pos_embed", (1, *input_shape[1:]), initializer=self.pos_embed_initializer)

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        return tokens + tf.cast(self.pos_embed, tokens.dtype)


@tf.keras.saving.register_keras_serializable("flair")
class SelfAttention(tf.keras.layers.Layer):
    """Queries, keys and values `[b, n, 3 d]` of all heads to `[b, n, d]`: scaled dot products."""

    def __init__(self, heads: int, **options: Any) -> None:
        super().__init__(**options)
        self.heads = heads

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        size = tokens.shape[-1] // 3 // self.heads
        shape = tf.concat([tf.shape(tokens)[:2], [3, self.heads, size]], axis=0)
        query, key, value = tf.unstack(tf.transpose(tf.reshape(tokens, shape), [2, 0, 3, 1, 4]))
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) * tf.cast(size**-0.5, tokens.dtype))
        heads = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return tf.reshape(heads, tf.concat([tf.shape(tokens)[:2], [self.heads * size]], axis=0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads}


@tf.keras.saving.register_keras_serializable("flair")
class FirstToken(tf.keras.layers.Layer):
    """Tokens `[b, n, d]` to the first one, `[b, d]`."""

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        return tokens[:, 0]


def _block(x: tf.Tensor, name: str, heads: int) -> tf.Tensor:
    width = int(x.shape[-1])
    y = _dense(_norm(x, f"{name}.norm1"), f"{name}.attn.qkv", 3 * width)
    y = SelfAttention(heads, name=f"{name}.attn.heads")(y)
    x = _layers.Add(name=f"{name}.add1")([x, _dense(y, f"{name}.attn.proj", width)])
    y = _dense(_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1", 4 * width)
    y = _layers.Activation("gelu", name=f"{name}.mlp.act")(y)
    return _layers.Add(name=f"{name}.add2")([x, _dense(y, f"{name}.mlp.fc2", width)])


def _dense(x: tf.Tensor, name: str, units: int) -> tf.Tensor:
    return _layers.Dense(units, kernel_initializer=tf.keras.initializers.TruncatedNormal(stddev=0.02), name=name)(x)


def _norm(x: tf.Tensor, name: str) -> tf.Tensor:
    return _layers.LayerNormalization(epsilon=EPSILON, name=name)(x)
