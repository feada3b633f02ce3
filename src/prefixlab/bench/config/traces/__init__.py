"""Settings of the verbs that look at traces, one file per verb."""
