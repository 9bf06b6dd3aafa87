"""The store of an index: documents and their vectors in a folder, crash safe, one writer and many readers."""
