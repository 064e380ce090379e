"""Getting a file from a server that is not trusted."""
