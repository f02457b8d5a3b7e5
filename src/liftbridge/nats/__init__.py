"""Everything that talks NATS: connections, ingest, the embedded server."""
