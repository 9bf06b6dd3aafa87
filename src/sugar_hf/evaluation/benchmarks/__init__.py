"""The benchmarks that the paper names: their data, scorers, judges, tables, and modules for `evaluate`."""
