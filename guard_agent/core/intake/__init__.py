"""What happens in the thread of the application: snapshot, enrich, encode, into the ring."""
