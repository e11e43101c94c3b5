"""General ability: lm-evaluation-harness on the edited and on the unedited model. Needs the extra `general`."""
