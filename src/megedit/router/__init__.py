"""The router: which queries ask for an edited fact (candidates, a gate, and a verifier that reads)."""
