"""Workloads from files: prompts as somebody else wrote them."""
