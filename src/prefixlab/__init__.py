"""prefixlab: serve language models with a prefix cache, and measure what any server's cache is worth."""

__version__ = "0.1.0"
