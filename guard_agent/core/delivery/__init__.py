"""What happens in the agent's own thread: from the ring through the store to the collectors."""
