"""Dynamic rules on their way in: fetched, judged, kept, handed to the Guard engine."""
