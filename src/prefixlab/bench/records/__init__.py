"""The record of a request, and where records are kept."""
