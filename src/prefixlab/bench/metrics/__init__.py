"""Numbers: pure folds over records."""
