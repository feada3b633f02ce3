"""Text to tokens and back, without a library: the byte tokenizer, and text while tokens are still coming."""
