"""The Trio glue: one file per role of the server."""
