"""Gets the dataset over HTTP: from Apple's server, a mirror of it, or Hugging Face.

What enters is an address and a folder. What leaves is a dataset directory, every byte of it verified as far as
anything is published to verify it by; an interrupted download continues at the byte.
"""

__all__ = ["archive", "client", "huggingface", "plan", "run", "server", "source"]
