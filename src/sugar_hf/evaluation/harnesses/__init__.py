"""Sugar models in harnesses of others: lmms-eval for answers, mteb for embeddings.

Neither is needed by the rest of the package, so nothing is imported here.
"""
