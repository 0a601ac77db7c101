"""One's own network and images: adapting without labels, and predicting masks."""
