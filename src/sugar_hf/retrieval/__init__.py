"""Indexes on disk, search, retrieval-augmented generation and explanations."""
