"""What runs around the pipeline: the local broker and the demo."""
