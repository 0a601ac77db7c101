"""A drawn fundus world: eyes with exact masks, cameras, and knobs that turn one thing each."""
