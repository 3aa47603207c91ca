"""The page of results: read from committed records alone, so that it is rebuilt in seconds and no model is run."""
