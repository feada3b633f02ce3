"""What runs next: the queue, admission, chunked prefill, decode, preemption. `step()` decides, `commit()`
accounts.

Synchronous and deterministic: no thread, no socket, no clock of its own, no torch.
"""
