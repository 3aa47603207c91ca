"""The public data sets, fetched, checked and prepared."""
