"""One worker behind HTTP: the OpenAI, native and admin APIs, text in and out, and the loop thread."""
