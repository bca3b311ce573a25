"""Very many pictures through models: what was done is on record, so that nothing is lost and nothing done twice."""
