"""The router: which queries ask for an edited fact (familiarity network, nearest edits, calibrated decision)."""
