"""The life of an edit in an adapter: added, updated, removed, undone, rolled back, consolidated."""
