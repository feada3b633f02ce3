"""One file per verb. A verb imports what it needs inside itself, so `--help` is instant."""
