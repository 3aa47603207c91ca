"""The comparison of models: a record for each cell, written when a sweep has finished it, and a page made of all records."""
