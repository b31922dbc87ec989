"""The networks, their normalization layers, gradient clipping, and files of weights.

What enters is what --model says and an input size, or a file of weights that nobody vouches for. What leaves is a Keras
model, or such a file.
"""

__all__ = [
    "applications",
    "clipping",
    "custom",
    "exporting",
    "identity",
    "loading",
    "networks",
    "normalization",
    "safetensors",
    "saved",
    "specs",
    "trainable",
    "vision_transformer",
    "weights",
]
