"""What the package ships trained: the networks that read a question. Nothing here is part of the package."""
