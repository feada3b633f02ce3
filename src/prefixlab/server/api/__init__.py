"""The HTTP APIs: native, OpenAI, admin. One file per API, and what they share."""
